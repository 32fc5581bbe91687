"""The real authorization server of the examples, started and ended around a test."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from examples.demo.authorization_server import AuthorizationServer


@asynccontextmanager
async def running_authorization_server(
    data: Path, *arguments: str, warnings: str = "error"
) -> AsyncIterator[AuthorizationServer]:
    """Start it in `data` on a free port, any warning being an error; end it by pid."""
    server = await AuthorizationServer.start(data, *arguments, interpreter=("-W", warnings))
    try:
        yield server
    finally:
        await server.stop()
