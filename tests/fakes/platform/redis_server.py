"""Debian's Redis on a socket of its own, without a file: what it holds ends with it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from redis.asyncio import Redis
from redis.exceptions import RedisError

from tests.fakes.mtls.proxies import program
from tests.fakes.patience import PATIENCE_S


@asynccontextmanager
async def redis_server(folder: Path, password: str = "") -> AsyncIterator[str]:
    """Its URL, for the length of a block. Skips the test where this machine has no Redis."""
    binary, env = program("redis-server")
    socket = folder / "redis.sock"
    command = [binary, "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(folder)]
    if password:
        command += ["--requirepass", password]
    with (folder / "redis.log").open("ab") as log:
        child = await asyncio.create_subprocess_exec(*command, env=env, stdout=log, stderr=log)
    try:
        await _until_answering(socket, password, child)
        yield f"unix://{socket}"
    finally:
        if child.returncode is None:
            child.terminate()
        await child.wait()


async def _until_answering(socket: Path, password: str, child: asyncio.subprocess.Process) -> None:
    client = Redis(unix_socket_path=str(socket), password=password or None)
    async with asyncio.timeout(PATIENCE_S):
        while True:
            if child.returncode is not None:
                raise RuntimeError(f"Redis ended, see {socket.parent / 'redis.log'}")
            try:
                await client.ping()
            except (RedisError, OSError):
                await asyncio.sleep(0.02)
                continue
            await client.aclose()
            return
