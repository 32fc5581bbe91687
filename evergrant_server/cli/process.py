"""A child process: the settings it inherits; for `dev` its log, its pid file, its restarts and its end."""

import asyncio
import os
import signal
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, Protocol

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.process import end_with_parent
from evergrant_server.settings import BadSettings, Settings, load_settings
from evergrant_server.settings.types import without_password

WORKER_STOP_LIMIT_S = 130.0  # longer than a worker's graceful shutdown while its store is unavailable
_STOP_LIMIT_S = 10.0
_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 10.0
_PASSED_TO_CHILDREN = (
    *("data_dir", "database_url", "key_file", "key_service", "key_service_before", "api_workers"),
    *("host", "port", "public_url", "allow_unbound_consent"),
    *("gateway_host", "gateway_port", "gateway_public_url"),
    *("temporal_address", "temporal_namespace", "temporal_task_queue", "temporal_ui_url"),
    *("log_level", "log_format", "start_command"),
)


class CommandFailed(Exception):
    """A child that is a command of Evergrant has ended with a message of its own, and this status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


class RunningChild(Protocol):
    """What of `asyncio.subprocess.Process` a `ChildProcess` uses."""

    @property
    def pid(self) -> int: ...
    @property
    def returncode(self) -> int | None: ...
    async def wait(self) -> int: ...
    def send_signal(self, signal: int, /) -> None: ...


class ChildProcess:
    """A child process in a session of its own, so that Ctrl-C reaches only `dev`. It ends with `dev`."""

    def __init__(
        self,
        name: str,
        command: list[str],
        folder: Path,
        env: dict[str, str] | None = None,
        stop_limit_s: float = _STOP_LIMIT_S,
    ) -> None:
        self.name = name
        self._stop_limit_s = stop_limit_s
        self.pid_file = folder / f"{name}.pid"
        self._command = command
        self._log = folder / f"{name}.log"
        self._env = env
        self._child: RunningChild | None = None
        self._log_start = 0

    async def start(self) -> None:
        with self._log.open("ab") as log:
            self._log_start = log.tell()
            self._child = await self._spawn(log)
        self.pid_file.write_text(f"{self._child.pid} {started_at(self._child.pid) or 0}\n")

    async def _spawn(self, log: IO[bytes]) -> RunningChild:
        return await asyncio.create_subprocess_exec(
            *self._command, stdout=log, stderr=log, stdin=asyncio.subprocess.DEVNULL,
            env=self._env, start_new_session=True, preexec_fn=partial(end_with_parent, os.getpid()),
        )  # fmt: skip

    async def wait(self) -> int:
        assert self._child is not None
        return await self._child.wait()

    @property
    def has_exited(self) -> bool:
        return self._child is not None and self._child.returncode is not None

    def has_logged(self, text: str) -> bool:
        """Whether its log contains `text` since the last start."""
        return text in self._output()

    def raise_if_exited(self) -> None:
        """Raise CommandFailed with the message of a command that has failed, else Failure INTERNAL with the
        last line of its log, if it has exited."""
        if self._child is None or self._child.returncode is None:
            return
        _, command, message = self._output().rpartition("evergrant: ")
        if command:
            raise CommandFailed(f"{message.strip()}\n  (log: {self._log})", self._child.returncode)
        lines = self._output().strip().splitlines()
        raise Failure(
            ErrorCode.INTERNAL,
            f"{self.name} exited with status {self._child.returncode}: {lines[-1] if lines else 'no output'} "
            f"(log: {self._log})",
        )

    def _output(self) -> str:
        with self._log.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")

    async def stop(self) -> None:
        """Send SIGTERM and wait for the exit; kill its whole session after the time limit."""
        child = self._child
        if child is None:
            return
        if child.returncode is None:
            with suppress(ProcessLookupError):
                child.send_signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(self._stop_limit_s):
                    await child.wait()
            except TimeoutError:
                with suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                await child.wait()
        self.pid_file.unlink(missing_ok=True)


def started_at(pid: int) -> int | None:
    """When a process started, in ticks since the boot (proc(5)): with its pid it names one process.

    None when there is none, or it has ended and its parent hasn't noticed yet.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


async def keep_running(stop: asyncio.Event, processes: list[ChildProcess]) -> None:
    """Restart processes that exit, with growing pauses, until `stop` is set."""

    async def keep(process: ChildProcess) -> None:
        pause = _FIRST_PAUSE_S
        while True:
            started = asyncio.get_running_loop().time()
            status = await process.wait()
            if asyncio.get_running_loop().time() - started > 60:
                pause = _FIRST_PAUSE_S
            print(f"{process.name} exited with status {status}; starting it again", flush=True)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_S)
            await process.start()

    keepers = [asyncio.create_task(keep(process)) for process in processes]
    await stop.wait()
    for keeper in keepers:
        keeper.cancel()
    await asyncio.gather(*keepers, return_exceptions=True)


def settings_environment(settings: Settings) -> dict[str, str]:
    """The variables that give a child process these settings, without a secret that it reads from a file.

    Each further child inherits them, and every process of the same user can read them.
    """
    values = {f"EVERGRANT_{name.upper()}": str(getattr(settings, name)) for name in _PASSED_TO_CHILDREN}
    values["EVERGRANT_KEY_HOLD"] = str(settings.key_hold.total_seconds())
    values["EVERGRANT_EGRESS_ALLOW"] = ",".join(settings.egress_allow)
    if settings.trusted_ca_file is not None:
        values["EVERGRANT_TRUSTED_CA_FILE"] = str(settings.trusted_ca_file.absolute())
    if settings.database_password_file is not None and not settings.uses_sqlite:
        values["EVERGRANT_DATABASE_URL"] = without_password(settings.database_url)
        values["EVERGRANT_DATABASE_PASSWORD_FILE"] = str(settings.database_password_file.absolute())
    elif _is_read_without_flags(settings.database_url):
        del values["EVERGRANT_DATABASE_URL"]
    return values


def _is_read_without_flags(database_url: str) -> bool:
    """Whether a child that starts in this folder reads this URL by itself, perhaps from the settings file."""
    try:
        return load_settings().database_url == database_url
    except BadSettings:  # a flag replaces the setting that is wrong
        return False
