"""docs/guide/operations.md without containers: the page's commands, from nothing to a lease, with the units
as processes here.

Folders and addresses are replaced by ones of this machine. `systemctl` does what the units say, but for users
and confinement, of which tests/unit/repo/test_systemd.py has systemd's own opinion.
"""

import asyncio
import json
import os
import signal
import sys
import tarfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.commands.test_compose import lease_as_alice
from tests.fakes.databases import postgres
from tests.fakes.patience import PATIENCE_S, eventually
from tests.fakes.platform.docker import answers, blocks
from tests.fakes.ports import free_port
from tests.fakes.providers.scripted_provider import ScriptedProvider
from tests.fakes.temporal import running_temporal
from tests.security.authority.test_database_roles import NAMES, SQL

ROOT = Path(__file__).parents[3]
_DOES_NOTHING = "#!/bin/sh\n"
# `python3 -m venv FOLDER`: this interpreter with this code, and a pip that has installed everything before
_PYTHON = """#!/bin/sh
mkdir -p "$3/bin"
printf '#!/bin/sh\\nPYTHONPATH={root} exec {python} "$@"\\n' > "$3/bin/python"
printf '#!/bin/sh\\ntest -f "$5"\\n' > "$3/bin/pip"
chmod +x "$3/bin/python" "$3/bin/pip"
"""
# starts units: credentials, environment and commands as systemd has them (a file wins over Environment=)
_SYSTEMCTL = """#!{python} -IS
import json, os, pathlib, shutil, subprocess, sys
place = pathlib.Path({place!r})
def start(name):
    unit = {{}}
    for line in (place / "etc/systemd/system" / (name + ".service")).read_text().splitlines():
        key, sign, value = line.partition("=")
        unit.setdefault(key, []).append(value) if sign else None
    credentials = place / "credentials" / name
    credentials.mkdir(parents=True)
    said = {{"%d": str(credentials), "%t": str(place / "run"), "%S": str(place / "var/lib")}}
    def full(text):
        for short, long in said.items():
            text = text.replace(short, long)
        return text
    for pair in unit["LoadCredential"]:
        credential, _, path = pair.partition(":")
        shutil.copyfile(path, credentials / credential)
    for folder in (*(place / "run" / it for it in unit["RuntimeDirectory"]),
                   *(place / "var/lib" / it for it in unit.get("StateDirectory", []))):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    env = {{"PATH": "/usr/bin:/bin"}}
    lines = [full(it) for it in unit["Environment"]]
    for file in unit["EnvironmentFile"]:
        lines += pathlib.Path(file).read_text().split()
    env |= dict(line.split("=", 1) for line in lines)
    for command in unit["ExecStartPre"]:
        subprocess.run(full(command).split(), env=env, check=True)
    command, folder = full(unit["ExecStart"][0]).split(), unit["WorkingDirectory"][0]
    if unit["Type"] == ["oneshot"]:
        subprocess.run(command, env=env, cwd=folder, check=True)
        return
    log = (place / (name + ".log")).open("wb")
    child = subprocess.Popen(command, env=env, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    (place / (name + ".pid")).write_text(str(child.pid))
match sys.argv[1:]:
    case ["daemon-reload"]:
        pass
    case ["start", name]:
        start(name)
    case ["enable", "--now", *names]:
        for name in names:
            start(name)
    case words:
        sys.exit("no test does this: " + " ".join(words))
"""


@dataclass
class Host:
    """A host whose root folder is `place`."""

    place: Path
    replaced: dict[str, str]

    def here(self, text: str) -> str:
        for theirs, ours in self.replaced.items():
            text = text.replace(theirs, ours)
        return text

    def prepare(self) -> None:
        """The release's archive, and the programs that a Debian has."""
        (self.place / "bin").mkdir()
        (self.place / "opt").mkdir()
        programs = {
            "apt-get": _DOES_NOTHING,
            "systemd-sysusers": _DOES_NOTHING,
            "python3": _PYTHON.format(root=ROOT, python=sys.executable),
            "systemctl": _SYSTEMCTL.format(python=sys.executable, place=str(self.place)),
        }
        for name, text in programs.items():
            (self.place / "bin" / name).write_text(text, encoding="utf-8")
            (self.place / "bin" / name).chmod(0o755)
        release = self.place / "release/evergrant"
        for file in (*(ROOT / "deploy/systemd").iterdir(), ROOT / "requirements/server.txt"):
            copy = release / file.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(self.here(file.read_text(encoding="utf-8")), encoding="utf-8")
        with tarfile.open(self.place / "evergrant-source.tar.gz", "w:gz") as archive:
            archive.add(release, "evergrant")

    async def shell(self, block: str) -> str:
        path = f"{self.place / 'bin'}:{self.place / 'usr/local/bin'}:/usr/bin:/bin"
        child = await asyncio.create_subprocess_exec(
            "sh", "-euc", self.here(block), cwd=self.place, env={"PATH": path},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        output, errors = await asyncio.wait_for(child.communicate(), PATIENCE_S)
        assert child.returncode == 0, f"{block}\n{(output + errors).decode()}"
        return output.decode()

    def setting(self, file: str, **settings: object) -> None:
        with (self.place / "etc/evergrant" / file).open("a", encoding="utf-8") as lines:
            lines.writelines(f"EVERGRANT_{name}={value}\n" for name, value in settings.items())


@asynccontextmanager
async def a_host(folder: Path, stack: AsyncExitStack) -> AsyncIterator[tuple[Host, int]]:
    server, port = postgres(), free_port()
    socket = server.url("evergrant").partition("?host=")[2]
    temporal = await stack.enter_async_context(running_temporal(folder))
    host = Host(
        folder,
        {
            **{
                root: f"{folder}{root}" for root in ("/opt/evergrant", "/etc/", "/var/lib/", "/usr/local/bin")
            },
            "@db.internal/evergrant": f"@/evergrant?host={socket}",
            "temporal.internal:7233": temporal.address,
            "https://evergrant.example.com\n": f"http://127.0.0.1:{port}\n",
        },
    )
    host.prepare()
    await server.admin(*(statement for statement in SQL.split(";") if statement.strip()))
    try:
        yield host, port
    finally:
        for pid in _pids(folder):
            await _ended(pid)
        await server.drop(server.url("evergrant"))
        await server.admin(*(f"DROP ROLE {name}" for name in NAMES))


async def _ended(pid: int) -> None:
    """SIGTERM to what `systemctl` has started, which isn't a child of this process."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    await eventually(lambda: asyncio.to_thread(_is_gone, pid), bool)


def _pids(folder: Path) -> list[int]:
    return [int(file.read_text(encoding="utf-8")) for file in folder.glob("*.pid")]


def _is_gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


@pytest.mark.soak
async def test_the_pages_commands_lead_from_nothing_to_a_lease(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        idp = await stack.enter_async_context(ScriptedProvider())
        host, port = await stack.enter_async_context(a_host(tmp_path, stack))
        install, settings, start, checks = blocks(
            ROOT / "docs/guide/operations.md", "## Without compose", "debian"
        )
        await host.shell(install)
        passwords = [file.read_text() for file in (tmp_path / "etc/evergrant").glob("*/database-password")]
        assert len({*passwords}) == 4
        assert all(len(password) == 64 for password in passwords)
        await host.shell(settings)
        gateway_port, metrics_port = free_port(), free_port()
        ports = {"PORT": port, "GATEWAY_PORT": gateway_port}
        allowed = {"EGRESS_ALLOW": idp.allowance, "ALLOW_UNBOUND_CONSENT": "true"}
        host.setting("settings.env", **ports, **allowed)
        host.setting("worker/settings.env", METRICS_PORT=metrics_port)
        admin_key = (await host.shell(start)).strip().splitlines()[-1]
        for at in (port, gateway_port, metrics_port):
            await eventually(lambda at=at: answers(at), bool)
        output = await host.shell(
            checks.replace("doctor", "doctor -o json").replace("\nevergrant", "\necho '---'; evergrant")
        )
        for findings in output.split("---\n"):
            assert [finding for finding in json.loads(findings) if not finding["ok"]] == []
        await lease_as_alice(port, idp, admin_key, stack)
