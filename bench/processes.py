"""Starts and stops the processes of a run: servers, a worker, a database, the load generator."""

import asyncio
import json
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import asyncpg

from bench.load import HOST
from evergrant_server.cli.process import ChildProcess
from tests.fakes.patience import PATIENCE_S
from tests.fakes.postgresql import program as postgres_program

_LINE_LIMIT = 1 << 26  # bytes: a round's latencies are one line


@asynccontextmanager
async def running_process(process: ChildProcess, *, port: int = 0, words: str = "") -> AsyncIterator[None]:
    """Run the process; yields once it listens on `port` or has logged `words`.

    Raises Failure INTERNAL with the last line of its log if it exits, TimeoutError after a minute.
    """
    await process.start()
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not (await _alive(port) if port else process.has_logged(words)):
                process.raise_if_exited()
                await asyncio.sleep(0.05)
        yield
    finally:
        await process.stop()


def python_module(
    name: str, folder: Path, *arguments: str, env: dict[str, str] | None = None
) -> ChildProcess:
    """A process of `python -m` with these arguments. Its name is the last part of `name`."""
    parts = name.split()
    command = [sys.executable, "-m", *parts, *arguments]
    return ChildProcess(parts[-1], command, folder, {**os.environ, **(env or {})}, stop_limit_s=20.0)


async def _alive(port: int) -> bool:
    try:
        reader, writer = await asyncio.open_connection(HOST, port)
    except OSError:
        return False
    try:
        writer.write(f"GET /livez HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
        return (await reader.readline()).startswith(b"HTTP/1.1 200")
    except OSError:
        return False
    finally:
        writer.close()


class Generator:
    """The load generator's process; see `bench.load`."""

    def __init__(self, child: asyncio.subprocess.Process) -> None:
        self._child = child

    async def round(self, **order: Any) -> dict[str, Any]:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(json.dumps(order).encode() + b"\n")
        await self._child.stdin.drain()
        return json.loads(await self._child.stdout.readline())


@asynccontextmanager
async def load_generator() -> AsyncIterator[Generator]:
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bench.load",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=_LINE_LIMIT,
        start_new_session=True,  # Ctrl-C doesn't reach it; it ends with its standard input
    )
    try:
        yield Generator(child)
    finally:
        assert child.stdin is not None
        child.stdin.close()
        await child.wait()


@asynccontextmanager
async def postgresql() -> AsyncIterator[Callable[[], Awaitable[str]]]:
    """Run PostgreSQL with fsync on, its default; yields what makes an empty database and returns its URL."""
    folder = Path(tempfile.mkdtemp(prefix="evergrant-bench-pg-"))
    server = await asyncio.to_thread(postgres_program.start, folder / "data")
    directory, numbers = str(server.get_postmaster_info().socket_dir), count(1)

    async def empty_database() -> str:
        name = f"bench_{next(numbers)}"
        connection = await asyncpg.connect(host=directory, user="postgres", database="postgres")
        try:
            await connection.execute(f"CREATE DATABASE {name}")
        finally:
            await connection.close()
        return f"postgresql+asyncpg://postgres@/{name}?host={directory}"

    try:
        yield empty_database
    finally:
        await asyncio.to_thread(server.cleanup)
        shutil.rmtree(folder, ignore_errors=True)


def sqlite(folder: Path) -> str:
    return f"sqlite:///{folder / 'evergrant.db'}"


def first_refusal(rounds: Iterable[dict[str, Any]]) -> str:
    """The first response that was not a 200."""
    return next((each["sample"][:400] for each in rounds if each["refused"]), "")
