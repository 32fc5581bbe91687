"""An ASGI application on loopback, in this process: just enough HTTP/1.1 for our clients.

    async with served(app) as url: ...

Not granian: that starts processes of its own, and these tests want the application's parts at hand.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import unquote

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def read_request(reader: asyncio.StreamReader) -> tuple[str, str, dict[str, str], bytes]:
    """Method, target, headers by their names in lower case, and body."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.split("\r\n")
    method, target, _ = first.split(" ")
    pairs = (line.partition(":") for line in lines if line)
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return method, target, headers, body


def _scope(method: str, target: str, headers: dict[str, str]) -> dict[str, Any]:
    path, _, query = target.partition("?")
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 1),
    }


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
    talk: Talk,
    port: int = 0,
    tls: ssl.SSLContext | None = None,
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
        except asyncio.CancelledError:
            pass  # this server goes: asyncio of 3.11 prints a traceback for a handler that says so
        finally:
            busy.discard(task)
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", port, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in busy:
            task.cancel()
        await asyncio.gather(*busy, return_exceptions=True)
        await server.wait_closed()


def talk_to(app: Any) -> Talk:
    """For `listening`: each request of a client goes to the application."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:  # until the client goes away
            method, target, headers, body = await read_request(reader)
            await _respond(app, writer, _scope(method, target, headers), body)

    return talk


@asynccontextmanager
async def served(app: Any, port: int = 0) -> AsyncIterator[str]:
    """The application's URL, for the length of a block; on a port of its own, unless one is given."""
    async with listening(talk_to(app), port) as bound:
        yield f"http://127.0.0.1:{bound}"
