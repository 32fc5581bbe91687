"""Which keys, password and disk each role's process has: the same rules for compose, Kubernetes and systemd.

The page's own commands for Kubernetes fill its secrets, with a `kubectl` that writes down what it is told.
"""

import base64
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from evergrant_server.crypto import Role, keyfile
from evergrant_server.crypto.keyring import widest_role
from tests.fakes.platform.docker import blocks
from tests.fakes.platform.warm import warm_python

ROOT = Path(__file__).parents[3]
GUIDE = ROOT / "docs/guide"
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
MANIFESTS = [
    manifest
    for file in sorted((ROOT / "deploy/kubernetes").glob("*.yaml"))
    for manifest in yaml.safe_load_all(file.read_text(encoding="utf-8"))
]
_WORDS = {"serve": Role.API, "gateway": Role.GATEWAY, "worker": Role.WORKER}  # of a container's command
_PASSWORDS = {  # compose's volumes, as secrets
    "secrets": "database",
    **{f"{role}-secrets": f"{role}-database" for role in ("worker", "api", "gateway")},
}


@dataclass(frozen=True)
class Container:
    """What of a container decides what who takes it can do, and what is lost with it."""

    name: str
    role: Role
    key_stores: frozenset[str]  # the volumes or secrets that hold key files
    key_store_named: str  # by EVERGRANT_KEY_FILE
    may_write_keys: bool
    passwords: frozenset[str]
    database_user: str
    keeps_data: bool
    stop_s: int


@dataclass(frozen=True)
class Rule:
    key_store: str
    password: str
    database_user: str
    keeps_data: bool  # a worker's journal outlives its container
    stop_s: int


RULES = {
    Role.WORKER: Rule("worker-keys", "worker-database", "evergrant_worker", True, 150),
    Role.API: Rule("api-keys", "api-database", "evergrant_api", False, 30),
    Role.GATEWAY: Rule("gateway-keys", "gateway-database", "evergrant_gateway", False, 45),
}


def _user(environment: dict[str, str]) -> str:
    return environment["EVERGRANT_DATABASE_URL"].partition("//")[2].partition("@")[0]


def _of_compose() -> Iterator[Container]:
    for name, service in COMPOSE["services"].items():
        (word,) = service.get("command", [""])[:1]
        if not service["image"].startswith("evergrant:") or word not in _WORDS:
            continue
        mounts = {target: volume for volume, target, *_ in (mount.split(":") for mount in service["volumes"])}
        written = {mount.split(":")[0] for mount in service["volumes"] if not mount.endswith(":ro")}
        keys = frozenset(volume for volume in mounts.values() if volume.endswith("-keys"))
        environment = service["environment"]
        yield Container(
            f"compose {name}",
            _WORDS[word],
            keys,
            mounts[str(Path(environment["EVERGRANT_KEY_FILE"]).parent)],
            bool(keys & written),
            frozenset(_PASSWORDS[volume] for volume in mounts.values() if volume in _PASSWORDS),
            _user(environment),
            mounts.get("/var/lib/evergrant") in written,
            int(service["stop_grace_period"].removesuffix("s")),
        )


def _of_kubernetes() -> Iterator[Container]:
    maps = [manifest for manifest in MANIFESTS if manifest["kind"] == "ConfigMap"]
    settings = {manifest["metadata"]["name"]: manifest["data"] for manifest in maps}
    for manifest in MANIFESTS:
        pod = manifest.get("spec", {}).get("template", {}).get("spec")
        if pod is None or manifest["kind"] == "Job":
            continue
        (container,) = pod["containers"]
        environment: dict[str, str] = {}
        for source in container["envFrom"]:
            environment |= settings[source["configMapRef"]["name"]]
        environment |= {variable["name"]: variable["value"] for variable in container["env"]}
        secrets = {
            volume["name"]: volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume
        }
        mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
        copy = pod["initContainers"][0]  # the key file, from a secret to memory
        sources = {mount["mountPath"]: mount["name"] for mount in copy["volumeMounts"]}
        data = Path(environment.get("EVERGRANT_DATA_DIR", "/var/lib/evergrant"))
        claims = {claim["metadata"]["name"] for claim in manifest["spec"].get("volumeClaimTemplates", [])}
        keys_mounted = mounts[str(Path(environment["EVERGRANT_KEY_FILE"]).parent)]
        yield Container(
            f"kubernetes {manifest['metadata']['name']}",
            _WORDS[container["args"][0]],
            frozenset(name for name in secrets.values() if name.endswith("-keys")),
            secrets[sources[str(Path(copy["command"][-2]).parent)]],
            not keys_mounted.get("readOnly", False),
            frozenset(name for name in secrets.values() if name.endswith("database")),
            _user(environment),
            any(mounts[path]["name"] in claims for path in mounts if data.is_relative_to(path)),
            pod["terminationGracePeriodSeconds"] - _still_asked_s(container),
        )


def _still_asked_s(container: dict[str, Any]) -> int:
    """How long a pod that is to end goes on as before, so that proxies learn of it."""
    return container["lifecycle"]["preStop"]["sleep"]["seconds"] if "lifecycle" in container else 0


def _of_systemd() -> Iterator[Container]:
    """The folders of /etc/evergrant stand for secrets: `worker` has worker-keys and worker-database."""
    text = (GUIDE / "operations.md").read_text(encoding="utf-8")
    (each,) = re.findall(r'echo "EVERGRANT_DATABASE_URL=(\S+\$role\S+)"', text)
    for file in sorted((ROOT / "deploy/systemd").glob("*.service")):
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if "=" in line]
        directives: dict[str, list[str]] = {}
        for name, _, value in (line.partition("=") for line in lines):
            directives.setdefault(name, []).append(value)
        (command,) = directives["ExecStart"]
        word = command.partition("evergrant_server ")[2].split()[0]
        if word not in _WORDS:
            continue
        role = _WORDS[word]
        loaded = dict(value.split(":") for value in directives["LoadCredential"])
        folders = {name: Path(path).parent.name for name, path in loaded.items()}
        environment = dict(value.split("=", 1) for value in directives["Environment"])
        assert directives["ExecStartPre"] == [
            f"/usr/bin/install -m 0600 %d/keys.json {environment['EVERGRANT_KEY_FILE']}"
        ]
        assert f"/etc/evergrant/{role.value}/settings.env" in directives["EnvironmentFile"]
        yield Container(
            f"systemd {file.stem}",
            role,
            frozenset({f"{folders['keys.json']}-keys"}),
            f"{folders['keys.json']}-keys",
            False,  # the unit makes its copy anew at each start
            frozenset({f"{folders['database-password']}-database"}),
            _user({"EVERGRANT_DATABASE_URL": each.replace("$role", role.value)}),
            role is Role.WORKER
            and environment["EVERGRANT_DATA_DIR"] == f"%S/{directives['StateDirectory'][0]}",
            int(directives["TimeoutStopSec"][0]),
        )


WORKLOADS = {
    f"{manifest['kind'].lower()}/{manifest['metadata']['name']}"
    for manifest in MANIFESTS
    if manifest["kind"] in ("Deployment", "StatefulSet")
}
CONTAINERS = [*_of_compose(), *_of_kubernetes(), *_of_systemd()]


def test_every_role_has_a_container_in_each():
    roles = [(container.name.partition(" ")[0], container.role) for container in CONTAINERS]
    assert set(roles) == {(shape, role) for shape in ("compose", "kubernetes", "systemd") for role in RULES}


@pytest.mark.parametrize("container", CONTAINERS, ids=lambda container: container.name)
def test_a_container_has_what_its_role_needs_and_nothing_else(container: Container):
    rule = RULES[container.role]
    assert (container.key_stores, container.key_store_named) == ({rule.key_store}, rule.key_store)
    assert not container.may_write_keys
    assert container.passwords == {rule.password}
    assert container.database_user == rule.database_user
    assert container.keeps_data is rule.keeps_data
    assert container.stop_s == rule.stop_s


def test_the_guide_names_each_roles_keys():
    text = (GUIDE / "operations.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (worker|API|gateway)\b.*\| `(\S+)` \| `(\S+)` \|$", text, re.MULTILINE)
    assert {Role(role.lower()): stores for role, *stores in rows} == {
        role: [rule.key_store] * 2 for role, rule in RULES.items()
    }


# A `kubectl` that has secrets, as files, and the words that it was told beside them.
_KUBECTL = """#!{python}
import base64, pathlib, sys, yaml
words, secrets = sys.argv[1:], pathlib.Path({secrets!r})
with secrets.with_name("told").open("a") as told:
    print(*words, file=told)
if "create" in words and "secret" in words:
    name = words[words.index("generic") + 1]
    (source,) = [word.partition("=")[2] for word in words if word.startswith("--from-file=")]
    key, _, path = source.rpartition("=")
    data = {{key or path: base64.b64encode(pathlib.Path(path).read_bytes()).decode()}}
    secret = {{"kind": "Secret", "metadata": {{"name": name}}, "data": data}}
    if "--dry-run=client" in words:
        print(yaml.safe_dump(secret))
    else:
        (secrets / name).write_text(yaml.safe_dump(secret))
if words[0] == "apply" and "--filename" in words:
    secret = yaml.safe_load(sys.stdin)
    (secrets / secret["metadata"]["name"]).write_text(yaml.safe_dump(secret))
"""


@dataclass
class Desk:
    """The operator's machine, with its own `kubectl`."""

    folder: Path

    def follow(self, block: str) -> None:
        path = f"{self.folder / 'bin'}:{warm_python()}:{Path(sys.executable).parent}:/usr/bin:/bin"
        env = {"PATH": path, "PYTHONPATH": str(ROOT), "HOME": str(self.folder)}
        ran = subprocess.run(
            ["sh", "-euc", block], cwd=self.folder, env=env, capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr

    def key_file(self, secret: str) -> keyfile.KeyFile:
        """The key file that a pod copies from this secret."""
        data = yaml.safe_load((self.folder / "secrets" / secret).read_text(encoding="utf-8"))["data"]
        path = self.folder / "copied.json"
        path.write_bytes(base64.b64decode(data["keys.json"]))
        path.chmod(0o600)
        return keyfile.read(path)

    def told(self) -> str:
        return (self.folder / "told").read_text(encoding="utf-8")


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    for name in ("bin", "secrets"):
        (tmp_path / name).mkdir()
    program = tmp_path / "bin/kubectl"
    program.write_text(
        _KUBECTL.format(python=sys.executable, secrets=str(tmp_path / "secrets")), encoding="utf-8"
    )
    program.chmod(0o755)
    for name in ("owner", "worker", "api", "gateway"):
        name = f"{name}-database-password"
        (tmp_path / name).write_text("hush")
    return Desk(tmp_path)


def test_a_rotation_in_kubernetes_reaches_every_secret_and_restarts_what_reads_it(desk: Desk):
    page = GUIDE / "kubernetes.md"
    (first,) = blocks(page, "## Before the first start", "kubernetes")
    desk.follow(first)
    stores = {role: rule.key_store for role, rule in RULES.items()}
    before = {role: desk.key_file(store).purposes["lease"].current for role, store in stores.items()}
    (rotation,) = blocks(page, "## Rotating the key file", "kubernetes")
    desk.follow(rotation)
    files = {role: desk.key_file(store) for role, store in stores.items()}
    assert {role: widest_role(file) for role, file in files.items()} == {
        Role.WORKER: Role.OPERATOR,
        Role.API: Role.API,
        Role.GATEWAY: Role.GATEWAY,
    }
    (current,) = {file.purposes["lease"].current for file in files.values()}
    assert current not in before.values()
    restarted = re.findall(r"rollout restart (.*)", desk.told())
    assert set(" ".join(restarted).split()) == WORKLOADS


def test_who_is_asked_from_outside_goes_on_until_proxies_know_that_it_ends():
    pods = [it["spec"]["template"]["spec"] for it in MANIFESTS if it["kind"] in ("Deployment", "StatefulSet")]
    asked = {pod["containers"][0]["name"]: _still_asked_s(pod["containers"][0]) for pod in pods}
    assert asked == {"api": 5, "gateway": 5, "worker": 0}


def test_an_upgrade_in_kubernetes_migrates_anew_and_stops_nothing(desk: Desk):
    (block,) = blocks(GUIDE / "upgrades.md", "## On Kubernetes", "kubernetes")
    desk.follow(block)
    migrates, applies, *rest = desk.told().splitlines()
    assert "delete job prepare" in migrates
    assert applies.startswith("apply --kustomize")
    assert {line.split()[-1] for line in rest if "rollout status" in line} == WORKLOADS
    assert "replicas" not in desk.told()
