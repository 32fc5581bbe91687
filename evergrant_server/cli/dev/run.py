"""The start and the end of `dev`.

Starts the Temporal dev server (with its UI and a database file), then the API, a worker and the gateway as
forks of this process, which imports for all; restarts those that exit, and stops all on Ctrl-C. Keys,
database and Temporal's file are in the data folder, so the next start continues with them.
"""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from evergrant_server.cli.dev import DATABASE_MADE_ANEW, DATABASE_READY, NAMESPACE_READY, settings_file
from evergrant_server.cli.dev.forked_process import ForkedProcess, Main, import_services
from evergrant_server.cli.dev.leftovers import end_leftovers, only_dev_of
from evergrant_server.cli.dev.messages import print_beginning, print_ready, start_line
from evergrant_server.cli.dev.temporal import TemporalStarts, require_free_ports, temporal_command
from evergrant_server.cli.process import WORKER_STOP_LIMIT_S, ChildProcess, keep_running, settings_environment
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.process import end_with_make
from evergrant_server.settings import BadSettings, Settings
from evergrant_server.settings.types import is_loopback

_START_LIMIT_S = 180.0  # a busy machine takes a minute
_POLL_S = 0.05
_GONE = (
    "it knows no integration, connection, app or API key of before, and answers them with 401. "
    "If you have a backup, stop this, restore it and start again"
)


async def run(settings: Settings, main: Main) -> None:
    """Run until SIGINT or SIGTERM. The forks run commands by `main`.

    Raises BadSettings, CommandFailed or Failure when a process can't start.
    """
    began = time.monotonic()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    end_with_make()
    _make_folder(settings.data_dir)
    settings = _on_this_machine(settings)

    def say(progress: str) -> None:
        print(f"  {time.monotonic() - began:5.1f} s  {progress}", flush=True)

    with only_dev_of(settings.data_dir):
        print_beginning(settings)
        await _await_unless_stopped(stop, end_leftovers(settings.data_dir, say))
        require_free_ports(settings)
        processes = _processes(settings, main)
        try:
            await _await_unless_stopped(stop, _start(settings, *processes, say))
            if not stop.is_set():
                print_ready(settings, settings_file.write(settings))
                await keep_running(stop, list(processes))
        finally:
            temporal, api, worker, gateway = processes
            for process in (gateway, api, worker, temporal):
                await process.stop()


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
    except OSError as error:
        why = (
            f"EVERGRANT_DATA_DIR: {folder} can't be used ({error.strerror}); name a folder of this user's own"
        )
        raise BadSettings(why) from None


def _on_this_machine(settings: Settings) -> Settings:
    unbound = settings.allow_unbound_consent or is_loopback(urlsplit(settings.public_url).hostname or "")
    return settings_file.with_remembered_hosts(settings).__replace__(
        start_command=start_line(settings),
        temporal_address=f"127.0.0.1:{settings.temporal_port}",
        temporal_ui_url=f"http://127.0.0.1:{settings.temporal_ui_port}",
        allow_unbound_consent=unbound,
    )


def _processes(
    settings: Settings, main: Main
) -> tuple[ChildProcess, ChildProcess, ChildProcess, ChildProcess]:
    """Temporal, the API, the worker and the gateway."""
    folder = settings.data_dir
    env = {**os.environ, **settings_environment(settings)}
    return (
        ChildProcess("temporal", temporal_command(settings), folder),
        ForkedProcess("api", "dev-api", folder, env, main),
        ForkedProcess("worker", "dev-worker", folder, env, main, stop_limit_s=WORKER_STOP_LIMIT_S),
        ForkedProcess("gateway", "dev-gateway", folder, env, main),
    )


async def _start(
    settings: Settings,
    temporal: ChildProcess,
    api: ChildProcess,
    worker: ChildProcess,
    gateway: ChildProcess,
    say: Callable[[str], None],
) -> None:
    """Start all, and return when API and gateway answer and the worker polls; say what is ready meanwhile."""
    starts = TemporalStarts(settings, temporal)
    await starts.check()
    import_services()  # while Temporal starts
    await api.start()
    await worker.start()
    await gateway.start()
    waiting: dict[str, Callable[[], Coroutine[Any, Any, bool]]] = {
        "the database is ready": _logs(api, DATABASE_READY),
        "Temporal is ready": _logs(worker, NAMESPACE_READY),
        "the API answers": lambda: _answers(settings_file.local_url(settings)),
        "the gateway answers": lambda: _answers(settings_file.local_gateway_url(settings)),
        "the worker takes tasks": _logs(worker, "worker ready"),
    }
    deadline = time.monotonic() + _START_LIMIT_S
    while waiting:
        for progress in [progress for progress, is_done in waiting.items() if await is_done()]:
            say(progress)
            del waiting[progress]
        await starts.check()
        for process in (api, worker, gateway):
            process.raise_if_exited()
        if time.monotonic() > deadline:
            missing = f"not ready after {_START_LIMIT_S:.0f} s; read the logs in {settings.data_dir}"
            raise Failure(ErrorCode.INTERNAL, missing)
        await asyncio.sleep(_POLL_S)
    if api.has_logged(DATABASE_MADE_ANEW):
        say("the database was gone, and a new one was made: " + _GONE)


def _logs(process: ChildProcess, text: str) -> Callable[[], Coroutine[Any, Any, bool]]:
    async def is_done() -> bool:
        return process.has_logged(text)

    return is_done


async def _answers(url: str) -> bool:
    """Whether `/readyz` there says that it serves."""
    where = urlsplit(url)
    try:
        reader, writer = await asyncio.open_connection(where.hostname, where.port)
    except OSError:
        return False
    try:
        writer.write(f"GET /readyz HTTP/1.1\r\nHost: {where.netloc}\r\nConnection: close\r\n\r\n".encode())
        return (await reader.readline()).startswith(b"HTTP/1.1 200")
    except OSError:
        return False
    finally:
        writer.close()


async def _await_unless_stopped(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Await `work`, but cancel it as soon as `stop` is set."""
    task = asyncio.create_task(work)
    waiter = asyncio.create_task(stop.wait())
    await asyncio.wait((task, waiter), return_when=asyncio.FIRST_COMPLETED)
    waiter.cancel()
    if not task.done():
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        return
    task.result()
