"""Evergrant as `python -m evergrant_server dev` starts it, in a data folder of the demo's own."""

import hashlib
import os
import random
import signal
import socket
from contextlib import suppress
from pathlib import Path

from examples.demo.processes import ROOT, Process
from examples.demo.waiting import wait_until

_KEPT = (
    "EVERGRANT_DATABASE_URL",
    "EVERGRANT_KEY_FILE",
    "EVERGRANT_LOG_LEVEL",
    "EVERGRANT_ALLOW_TOKENS_IN_BROWSER",
)


class EvergrantProcess:
    """The running platform: API, worker, and Temporal with its UI."""

    def __init__(self, process: Process, data: Path) -> None:
        self._process = process
        self._data = data
        facts = process.ready
        self.api: str = facts["api"]
        self.ui: str = facts["ui"]
        self.temporal: str = facts["temporal"]
        self.namespace: str = facts.get("namespace", "default")
        self._worker_pid_file = Path(facts["worker_pid_file"])
        self.admin_key = Path(facts["admin_key_file"]).read_text().strip()

    @classmethod
    async def start(cls, data: Path, egress_allow: str) -> "EvergrantProcess":
        """Start it on free ports; it may reach `egress_allow` (host:port) over plain HTTP."""
        command = ["-m", "evergrant_server", "dev", "--data-dir", str(data), "--port", str(_free_port())]
        env = _environment(egress_allow)
        try:
            return cls(await Process.start("evergrant", command, ready_prefix="ready ", env=env), data)
        except BaseException:
            _kill(_pids(data))
            raise

    def worker_pid(self) -> int:
        return int(self._worker_pid_file.read_text())

    async def new_worker(self, instead_of: int) -> int:
        """Wait until `dev` has replaced the killed worker."""

        async def found() -> int | None:
            with suppress(OSError, ValueError):
                pid = self.worker_pid()
                return pid if pid != instead_of and _alive(pid) else None
            return None

        return await wait_until(found, "a new worker", 60)

    def pids(self) -> list[int]:
        """Every process of the platform, from its pid files."""
        return [*_pids(self._data), self._process.pid]

    async def stop(self) -> int:
        """Stop `dev`. If it had to be killed, kill its child processes as well."""
        pids = _pids(self._data)
        try:
            return await self._process.stop()
        finally:
            _kill(pids)

    def last_lines(self) -> list[str]:
        return list(self._process.last_lines)


def still_running(pids: list[int]) -> list[int]:
    return [pid for pid in pids if _alive(pid)]


def _pids(data: Path) -> list[int]:
    """The child processes of `dev`, each the leader of its own session."""
    pids = []
    for file in data.glob("*.pid"):
        with suppress(OSError, ValueError):  # just being written, or deleted
            pids.append(int(file.read_text()))
    return pids


def _kill(leaders: list[int]) -> None:
    for pid in filter(_alive, leaders):
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


def _environment(egress_allow: str) -> dict[str, str]:
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
    return {
        **env,
        "EVERGRANT_EGRESS_ALLOW": egress_allow,
        **{name: str(port) for name, port in ports.items()},
    }


def _free_port() -> int:
    """An unused port below the range from which the system assigns ports."""
    while True:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", random.randrange(12_000, 20_000)))
            return probe.getsockname()[1]


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
