"""The files that production is made from: compose, image, and what pip installs."""

import json
import re
import select
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

import worker
from activities.single_use.intent import CLEANUP_TIMEOUT_S
from evergrant_server import __version__
from evergrant_server.cli.process import WORKER_STOP_LIMIT_S
from evergrant_server.core.messages.jobs import PROVIDER_TIMEOUT
from evergrant_server.core.single_use.attempt import LIMITS
from evergrant_server.store.database.engine import MOST_CONNECTIONS
from tests.fakes.patience import PATIENCE_S

ROOT = Path(__file__).parents[3]
BIN = Path(sys.executable).parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
SECRETS = {name for name in COMPOSE["volumes"] if name.endswith("secrets")}
OURS = ("init", "api", "gateway", "worker-1", "worker-2")


def run(*command: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_compose_follows_its_specification() -> None:
    checked = run(BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml")
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_hadolint_accepts_the_dockerfile() -> None:
    checked = run(BIN / "hadolint", "Dockerfile")
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_setup_says_how_far_pip_is_while_it_runs() -> None:
    """A reader that collects its input, as Debian's awk does, is silent until pip has ended."""
    text = (ROOT / "requirements/setup.sh").read_text(encoding="utf-8")
    functions = re.findall(r"^(say\(\) .*?$|progress\(\) \{.*?^\})", text, re.MULTILINE | re.DOTALL)
    script = "\n".join(["set -euo pipefail", "lock=requirements/demo.txt", *functions, "progress"])
    pipe = subprocess.PIPE
    with subprocess.Popen(["bash", "-c", script], cwd=ROOT, stdin=pipe, stderr=pipe) as child:
        assert child.stdin is not None
        assert child.stderr is not None
        child.stdin.write(b"Collecting a\n" * 10)
        child.stdin.flush()
        assert select.select([child.stderr], [], [], PATIENCE_S)[0], "nothing is shown yet"
        assert child.stderr.readline().startswith(b"    10 of up to ")
        child.stdin.close()
    assert child.returncode == 0


def test_only_workers_and_init_hold_the_full_key_file() -> None:
    holders = {
        name
        for name, service in SERVICES.items()
        if any("worker-keys" in volume for volume in service.get("volumes", []))
    }
    assert holders == {"init", "worker-1", "worker-2"}
    for name in ("api", "gateway"):
        assert SERVICES[name]["environment"]["EVERGRANT_KEY_FILE"].startswith(f"/keys/{name}/")


def _folders_of_the_image() -> set[str]:
    """The folders that the Dockerfile makes for its user. Docker gives their owner to a new volume there."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    (made,) = re.findall(r"install -d -o evergrant -g evergrant -m 0700((?: +/\S+)+)", text)
    return set(made.split())


def _is_written(volume: str) -> bool:
    return not volume.endswith(":ro")


def test_the_image_has_each_folder_where_compose_mounts_a_volume_that_it_writes() -> None:
    """A volume at a folder that the image hasn't is root's, and the process can't write there."""
    ours = [
        it for name in OURS for it in SERVICES[name]["volumes"] if it.partition(":")[0] in COMPOSE["volumes"]
    ]
    written = {volume.split(":")[1] for volume in ours if _is_written(volume)}
    assert {"/keys/worker", "/keys/api", "/keys/gateway", "/var/lib/evergrant"} <= written
    assert written == _folders_of_the_image()


def test_what_the_image_is_built_of_reaches_the_build() -> None:
    """.dockerignore leaves out everything that it doesn't name."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE)
    sources = {name for names in copied for name in names.split()}
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {"requirements/server.txt", "evergrant_server"} <= sources
    assert lines[0] == "*"
    assert sources == {line.removeprefix("!") for line in lines if line.startswith("!")}


def test_what_compose_mounts_to_be_read_is_written_by_a_service_before() -> None:
    """The first service that mounts a volume fills it: one that nobody writes stays empty, and root's."""
    mounts = [it for service in SERVICES.values() for it in service.get("volumes", [])]
    named = [it for it in mounts if it.partition(":")[0] in COMPOSE["volumes"]]
    assert {it.split(":")[0] for it in named if _is_written(it)} == set(COMPOSE["volumes"])


@pytest.mark.parametrize("role", ["worker", "api", "gateway"])
def test_each_role_has_a_password_of_its_own_and_no_other(role: str) -> None:
    """The role of its URL is the one that `init` makes, with that password. None is the superuser."""
    name = "worker-1" if role == "worker" else role
    held = {it.partition(":")[0] for it in SERVICES[name]["volumes"]} & SECRETS
    assert held == {f"{role}-secrets"}
    made = re.search(rf"--{role}-role (\S+) --{role}-password-file (\S+)", SERVICES["init"]["command"][0])
    assert made is not None
    environment = SERVICES[name]["environment"]
    assert f"//{made[1]}@" in environment["EVERGRANT_DATABASE_URL"]
    assert made[2] == environment["EVERGRANT_DATABASE_PASSWORD_FILE"]
    assert made[1] not in ("postgres", "evergrant", "temporal")


def test_nobody_connects_as_the_superuser() -> None:
    """The image makes it, as `postgres`; its password is in the server's own volume alone."""
    assert "POSTGRES_USER" not in SERVICES["postgres"]["environment"]
    holders = {
        name
        for name, service in SERVICES.items()
        if any(it.startswith("postgres-secrets:") for it in service.get("volumes", []))
    }
    assert holders == {"secrets", "postgres"}
    script = (ROOT / "deploy/postgresql/roles.sh").read_text(encoding="utf-8")
    made = re.findall(r"^CREATE ROLE (\w+) (.*) PASSWORD", script, re.MULTILINE)
    assert dict(made) == {"evergrant": "LOGIN CREATEROLE", "temporal": "LOGIN CREATEDB"}
    assert "//evergrant@" in SERVICES["init"]["environment"]["EVERGRANT_DATABASE_URL"]
    assert SERVICES["temporal"]["environment"]["POSTGRES_USER"] == "temporal"


def test_postgresql_lets_every_process_in() -> None:
    """And as many again for Temporal, commands and a roll-out."""
    seats = int(SERVICES["postgres"]["command"][-1].removeprefix("max_connections="))
    processes = set(OURS) - {"init"}
    assert seats >= 2 * MOST_CONNECTIONS * len(processes)
    text = (ROOT / "docs/guide/operations.md").read_text(encoding="utf-8")
    assert f"max_connections = {MOST_CONNECTIONS} \N{MULTIPLICATION SIGN} (APIs" in text
    assert f"opens up to {MOST_CONNECTIONS} connections" in text


def test_workers_have_journals_of_their_own() -> None:
    folder = "/var/lib/evergrant"
    volumes = [
        volume.partition(":")[0]
        for name in ("worker-1", "worker-2")
        for volume in SERVICES[name]["volumes"]
        if volume.endswith(folder)
    ]
    assert len(volumes) == len(set(volumes)) == 2


@pytest.mark.parametrize("name", ["worker-1", "worker-2"])
def test_every_stop_limit_includes_the_one_inside_it(name: str) -> None:
    """The provider's answer, its activity, the graceful shutdown, the commits, the process, the container."""
    commits = worker.GRACEFUL_SHUTDOWN + worker.COMMIT_LIMIT
    stages = [LIMITS.send + LIMITS.answer, PROVIDER_TIMEOUT, worker.GRACEFUL_SHUTDOWN]
    times = [it.total_seconds() for it in stages]
    times += [commits.total_seconds() + CLEANUP_TIMEOUT_S, WORKER_STOP_LIMIT_S]
    times.append(float(SERVICES[name]["stop_grace_period"].removesuffix("s")))
    assert times == sorted(set(times))


@pytest.mark.parametrize("name", OURS)
def test_our_containers_are_unprivileged(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert re.search(r"^USER 10001$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)


def test_no_service_reads_a_password_from_the_environment() -> None:
    words = ("PASSWORD", "PWD", "SECRET", "TOKEN")
    named = [
        (name, variable)
        for name, service in SERVICES.items()
        for variable in service.get("environment", {})
        if any(word in variable for word in words) and not variable.endswith("_FILE")
    ]
    assert named == []


def test_images_are_tagged_and_name_no_host() -> None:
    for name, service in SERVICES.items():
        image = service["image"]
        assert ":" in image, name
        assert not image.endswith(":latest"), name
        assert "." not in image.partition("/")[0] or "/" not in image, f"{name}: {image} names a host"
    assert SERVICES["api"]["image"] == f"evergrant:{__version__}"


def test_ports_are_published_on_loopback_alone() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_files_that_compose_mounts_exist() -> None:
    mounted = [
        volume.partition(":")[0]
        for service in SERVICES.values()
        for volume in service.get("volumes", [])
        if volume.startswith("./")
    ]
    assert mounted
    for name in mounted:
        text = (ROOT / name).read_text(encoding="utf-8")
        assert text.startswith("#!/bin/sh\n") if name.endswith(".sh") else yaml.safe_load(text)


def test_one_version_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    packages = [ROOT / f"clients/{name}/package.json" for name in ("typescript", "web")]
    npm = {json.loads(path.read_text(encoding="utf-8"))["version"] for path in packages}
    client = tomllib.loads((ROOT / "clients/python/pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == __version__ == client["version"]
    assert npm == {__version__}
    assert f"## [{__version__}]" in changes
    image = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert f'org.opencontainers.image.version="{__version__}"' in image


def test_installing_the_root_installs_dependencies_but_no_package(tmp_path: Path) -> None:
    """`pip install -e .` requires the dependencies and makes no module such as `workflows` importable."""
    build = "import sys; from setuptools.build_meta import build_editable; print(build_editable(sys.argv[1]))"
    built = run(sys.executable, "-c", build, tmp_path)
    assert built.returncode == 0, built.stderr
    venv.create(tmp_path / "venv", with_pip=False)
    site = next((tmp_path / "venv/lib").glob("python*/site-packages"))
    with zipfile.ZipFile(tmp_path / built.stdout.splitlines()[-1]) as wheel:
        wheel.extractall(site)
    look = (
        "import importlib.metadata as m, importlib.util as u, json;"
        "print(json.dumps([m.requires('evergrant-server'),"
        "[n for n in ('workflows','activities','providers','evergrant_server') if u.find_spec(n)]]))"
    )
    requires, importable = json.loads(
        run(tmp_path / "venv/bin/python", "-I", "-c", look, cwd=tmp_path).stdout
    )
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    assert sorted(it for it in requires if "extra ==" not in it) == sorted(declared)
    assert importable == []
