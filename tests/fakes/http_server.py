"""An ASGI application on loopback, in this process: just enough HTTP/1.1 for our clients.

    async with served(app) as url: ...

Not granian: that starts processes of its own, and these tests want the application's parts at hand.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import unquote


async def _request(reader: asyncio.StreamReader) -> tuple[dict[str, Any], bytes] | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    first, *lines = head.split("\r\n")
    method, target, _ = first.split(" ")
    pairs = [line.partition(":") for line in lines if line]
    headers = [(n.strip().lower().encode(), v.strip().encode("latin-1")) for n, _, v in pairs]
    body = await reader.readexactly(int(dict(headers).get(b"content-length", b"0")))
    path, _, query = target.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 1),
    }
    return scope, body


async def _respond(app: Any, writer: asyncio.StreamWriter, scope: dict[str, Any], body: bytes) -> None:
    status, headers, parts = 500, [], []
    left = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        return left.pop() if left else await asyncio.Event().wait()  # type: ignore[return-value]  # never returns

    async def send(message: dict[str, Any]) -> None:
        nonlocal status, headers
        if message["type"] == "http.response.start":
            status, headers = message["status"], message["headers"]
        else:
            parts.append(message.get("body", b""))

    await app(scope, receive, send)
    content = b"".join(parts)
    kept = [(n, v) for n, v in headers if n.lower() != b"content-length"]
    lines = [f"HTTP/1.1 {status} Answer".encode(), *(n + b": " + v for n, v in kept)]
    lines.append(b"content-length: " + str(len(content)).encode())
    writer.write(b"\r\n".join(lines) + b"\r\n\r\n" + content)
    await writer.drain()


@asynccontextmanager
async def listening(
    talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]], port: int = 0
) -> AsyncIterator[int]:
    """A port on loopback, for the length of a block; `talk` is called for each connection."""
    busy: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        busy.add(task)
        try:
            await talk(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client went away
        finally:
            busy.discard(task)
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", port)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in busy:
            task.cancel()
        await asyncio.gather(*busy, return_exceptions=True)
        await server.wait_closed()


@asynccontextmanager
async def served(app: Any, port: int = 0) -> AsyncIterator[str]:
    """The application's URL, for the length of a block; on a port of its own, unless one is given."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (request := await _request(reader)) is not None:
            await _respond(app, writer, *request)

    async with listening(talk, port) as bound:
        yield f"http://127.0.0.1:{bound}"
