"""Files of tests side by side, in forks of the process that has collected them: `pytest --at-once 4`.

Processes that start by themselves would each import the server, collect ten thousand tests and prepare
routes, tables and statements. A fork takes the next file when it has ended one, and sends what its tests
report to the first process. Session fixtures are each fork's own.
"""

import asyncio
import os
import signal
import struct
import tempfile
import threading
import traceback
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from itertools import groupby
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any, NoReturn

import pytest

from evergrant_server.process import end_with_parent, exit_process
from tests.fakes.ports import PLACE

_NEXT = struct.Struct("=H")  # the number of a file, in the pipe that forks take it from
_MANY = 20  # files: for fewer, each fork prepares what it needs
_WITH_PROCESSES = {"e2e", "faults"}

Files = Sequence[Sequence[pytest.Item]]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--at-once", type=int, default=1, metavar="N", help="run N files of tests at a time")


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    at_once: int = session.config.getoption("at_once") or 1
    if at_once < 2 or session.config.option.collectonly or session.testsfailed:
        return None  # pytest's own loop
    files = [list(items) for _, items in groupby(session.items, key=lambda item: item.path)]
    if len(files) >= _MANY:
        _prepare({part for items in files for part in items[0].path.parts})
    numbers = _pipe_of_numbers(len(files))
    forks = [_Fork.start(session, files, numbers, place) for place in range(min(at_once, len(files)))]
    os.close(numbers)
    try:
        for fork, message in _messages(forks):
            fork.take(session, message)
            if session.shouldfail:
                raise session.Failed(session.shouldfail)
            if session.shouldstop:
                raise session.Interrupted(session.shouldstop)
    finally:
        for fork in forks:
            fork.end()
    return True


def _prepare(folders: Set[str]) -> None:
    """Do once what each fork would do at its first request, or command of the server."""
    from evergrant_server.api.apps.keys import bootstrap_admin
    from tests.fakes.api import TENANT, running_api
    from tests.fakes.platform.warm import forking

    async def first_request(folder: Path) -> None:
        async with running_api(folder) as api:
            key = await bootstrap_admin(api.store, api.clock, TENANT, api.parts.settings.api_key_lifetime)
            await api.get("/v1/connections", key)
            api.app.openapi()

    if folders & _WITH_PROCESSES:
        forking()
    with tempfile.TemporaryDirectory(prefix="evergrant-") as folder:
        asyncio.run(first_request(Path(folder)))
    for thread in threading.enumerate():  # none may run while the process forks
        if thread is not threading.current_thread():
            thread.join()


def _pipe_of_numbers(count: int) -> int:
    """The reading end of a pipe that holds the number of each file."""
    reading, writing = os.pipe()
    os.write(writing, b"".join(map(_NEXT.pack, range(count))))
    os.close(writing)
    return reading


@dataclass
class _Fork:
    """A process that runs files of tests. `test` is the one that it began last."""

    pid: int
    messages: Connection
    test: pytest.Item | None = None

    @classmethod
    def start(cls, session: pytest.Session, files: Files, numbers: int, place: int) -> "_Fork":
        receiving, sending = Pipe(duplex=False)
        parent, folder = os.getpid(), session.config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]  # its name has no public one
        if pid := os.fork():
            sending.close()
            return cls(pid, receiving)
        try:
            os.setpgid(0, 0)  # a Ctrl-C reaches the first process, which ends its forks
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            end_with_parent(parent)
            _become_a_fork(session, folder / f"fork-{place}", place)
            _run(session, files, numbers, sending)
        except KeyboardInterrupt:
            exit_process(1)
        except BaseException:
            traceback.print_exc()
            exit_process(1)

    def take(self, session: pytest.Session, message: object) -> None:
        """What it tells: the index of the test that begins, a report, or None for its end."""
        config = session.config
        if isinstance(message, int):
            self.test = session.items[message]
        elif message is not None:
            report = config.hook.pytest_report_from_serializable(config=config, data=message)
            config.hook.pytest_runtest_logreport(report=report)
        elif status := self._status():
            words = f"the process of this test ended with status {status}, and its file with it"
            place = (self.test.nodeid, self.test.location) if self.test else ("", ("", None, ""))
            report = pytest.TestReport(*place, {}, "failed", words, "call")
            config.hook.pytest_runtest_logreport(report=report)
            raise session.Failed(words)

    def end(self) -> None:
        """Interrupt it, unless it has ended."""
        if self.pid:
            os.kill(self.pid, signal.SIGTERM)
            self._status()

    def _status(self) -> int:
        status = os.waitpid(self.pid, 0)[1]
        self.pid = 0
        return os.waitstatus_to_exitcode(status)


def _messages(forks: Sequence[_Fork]) -> Iterator[tuple[_Fork, object]]:
    """The messages of all forks, until each has ended."""
    open_ends = {fork.messages: fork for fork in forks}
    while open_ends:
        for end in wait(list(open_ends)):
            assert isinstance(end, Connection)
            try:
                yield open_ends[end], end.recv()
            except EOFError:
                yield open_ends.pop(end), None


class _Reports:
    """Sends what the tests of a fork report."""

    def __init__(self, config: pytest.Config, sending: Connection) -> None:
        self._config, self._sending = config, sending

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        serializable = self._config.hook.pytest_report_to_serializable
        self._sending.send(serializable(config=self._config, report=report))


def _become_a_fork(session: pytest.Session, folder: Path, place: int) -> None:
    """A folder, ports and captured output of its own, and no terminal."""
    config = session.config
    os.environ[PLACE] = str(place)
    folder.mkdir(mode=0o700)
    config._tmp_path_factory._basetemp = folder  # type: ignore[attr-defined]  # as above
    config.pluginmanager.unregister(name="terminalreporter")
    capture: Any = config.pluginmanager.getplugin("capturemanager")
    capture.stop_global_capturing()  # whose files all forks would share
    capture.start_global_capturing()
    capture.suspend_global_capture()


def _run(session: pytest.Session, files: Files, numbers: int, sending: Connection) -> NoReturn:
    session.config.pluginmanager.register(_Reports(session.config, sending))
    indexes = {item: index for index, item in enumerate(session.items)}
    try:
        while (number := os.read(numbers, _NEXT.size)) and not session.shouldfail:
            items = files[_NEXT.unpack(number)[0]]
            for item, following in zip(items, [*items[1:], session], strict=True):
                sending.send(indexes[item])
                # the session after the last one: fixtures of the file end, those of the session stay
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                if session.shouldfail:
                    break
    finally:
        session._setupstate.teardown_exact(None)  # as pytest does after a last item
    exit_process(0)
