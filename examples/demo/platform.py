"""Evergrant as `python -m evergrant_server dev` starts it, in a data folder of the demo's own."""

import hashlib
import itertools
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from evergrant_server.cli.dev import settings_file
from evergrant_server.cli.dev.messages import READY
from examples.demo.processes import ROOT, Process
from examples.demo.waiting import wait_until

_KEPT = (
    "EVERGRANT_DATABASE_URL",
    "EVERGRANT_KEY_FILE",
    "EVERGRANT_LOG_LEVEL",
    "EVERGRANT_ALLOW_TOKENS_IN_BROWSER",
    "EVERGRANT_CLIENT_METADATA_URL",
)
_OF_ONE_PROCESS = 20  # ports


class EvergrantProcess:
    """The running platform: API, worker, and Temporal with its UI."""

    def __init__(self, process: Process, data: Path) -> None:
        self._process = process
        self._data = data
        facts = settings_file.read(settings_file.server_file(data))
        self.api = facts["EVERGRANT_PUBLIC_URL"]
        self.gateway = facts["EVERGRANT_GATEWAY_URL"]
        self.ui = f"http://127.0.0.1:{facts['EVERGRANT_TEMPORAL_UI_PORT']}"
        self.temporal = facts["EVERGRANT_TEMPORAL_ADDRESS"]
        self.namespace = facts["EVERGRANT_TEMPORAL_NAMESPACE"]
        self.admin_key = Path(facts["EVERGRANT_API_KEY_FILE"]).read_text().strip()

    @classmethod
    async def start(
        cls, data: Path, egress_allow: str, *, authorities: Path | None = None
    ) -> "EvergrantProcess":
        """Start it on free ports; it may reach `egress_allow` (host:port), also over plain HTTP.

        It trusts the certificate authorities of the file, by default those of this machine.
        """
        command, env = dev_command(data), dev_environment(egress_allow)
        if authorities is not None:
            env["SSL_CERT_FILE"] = str(authorities)
        process = await Process.start(
            "evergrant", ["-m", "evergrant_server", *command], ready_prefix=READY, env=env
        )
        return cls(process, data)

    def worker_pid(self) -> int:
        return _pid(self._data / "worker.pid")

    async def new_worker(self, instead_of: int) -> int:
        """Wait until `dev` has replaced the killed worker."""

        async def found() -> int | None:
            with suppress(OSError, ValueError, IndexError):
                pid = self.worker_pid()
                return pid if pid != instead_of and _alive(pid) else None
            return None

        return await wait_until(found, "a new worker", 60)

    def pids(self) -> list[int]:
        """Every process of the platform, from its pid files."""
        return [*_pids(self._data), self._process.pid]

    async def stop(self) -> int:
        """Stop `dev`, and with it every process of the platform."""
        return await self._process.stop()

    def last_lines(self) -> list[str]:
        return list(self._process.last_lines)


def still_running(pids: list[int]) -> list[int]:
    return [pid for pid in pids if _alive(pid)]


def _pids(data: Path) -> list[int]:
    """The child processes of `dev`, each the leader of its own session."""
    pids = []
    for file in data.glob("*.pid"):
        with suppress(OSError, ValueError, IndexError):  # just being written, or deleted
            pids.append(_pid(file))
    return pids


def _pid(file: Path) -> int:
    return int(file.read_text().split()[0])


def dev_command(data: Path, port: int | None = None) -> list[str]:
    """`dev` at this port, by default at a free one."""
    return ["dev", "--data-dir", str(data), "--port", str(port or _free_port())]


def dev_environment(egress_allow: str) -> dict[str, str]:
    """This environment without the settings of another installation."""
    env = {
        name: value
        for name, value in os.environ.items()
        if name in _KEPT or not name.startswith(("EVERGRANT_", "TEMPORAL_"))
    }
    url = env.get("EVERGRANT_DATABASE_URL")
    if url and "EVERGRANT_KEY_FILE" not in env:
        # The keys must be kept as long as the database, not only for this run.
        fingerprint = hashlib.sha256(url.encode()).hexdigest()[:12]
        env["EVERGRANT_KEY_FILE"] = str(ROOT / ".demo" / f"keys-{fingerprint}.json")
        (ROOT / ".demo").mkdir(mode=0o700, exist_ok=True)
    ports = {"EVERGRANT_TEMPORAL_PORT": _free_port(), "EVERGRANT_TEMPORAL_UI_PORT": _free_port()}
    ports["EVERGRANT_GATEWAY_PORT"] = _free_port()
    return {
        **env,
        "EVERGRANT_EGRESS_ALLOW": egress_allow,
        **{name: str(port) for name, port in ports.items()},
    }


def _ports_of_this_process() -> Iterator[int]:
    """Ports that no other process on this machine asks for: two of them at once would take each other's."""
    first = 12_000 + os.getpid() % 400 * _OF_ONE_PROCESS
    return itertools.cycle(range(first, first + _OF_ONE_PROCESS))


_ports = _ports_of_this_process()


def _free_port() -> int:
    """An unused port below the range from which the system assigns ports; each comes again late."""
    for port in itertools.islice(_ports, _OF_ONE_PROCESS):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError(f"none of {_OF_ONE_PROCESS} ports is free")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return not _zombie(pid)


def _zombie(pid: int) -> bool:
    """True for a process that has exited but wasn't waited for yet (on systems with /proc)."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return False
