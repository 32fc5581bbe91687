"""The gateway in this process, on loopback, over the store of an `Api`, and a scripted API behind it.

    async with running_gateway(api, upstream) as gateway:
        answer = await gateway.get(f"/v1/proxy/{connection.id}/user", key)

The upstream is a raw server: it keeps the bytes of every request, and answers with bytes.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx2

from evergrant_server.access.context import ApiContext
from evergrant_server.api.connections.create import offer_consent
from evergrant_server.audit.lease_ledger import LeaseLedger
from evergrant_server.crypto import KeyRing, Role
from evergrant_server.egress import EgressPolicy, StreamingTransport
from evergrant_server.gateway.app import GatewayApp
from evergrant_server.gateway.parts import GatewayParts
from evergrant_server.gateway.proxy.outcomes import OutcomeLog
from evergrant_server.gateway.server import make_server
from evergrant_server.store import LeaseRows, Store
from evergrant_server.store.database.engine import Pool
from providers.definition.registry import Registry
from tests.fakes.api import Api

Handler = Callable[["Seen", asyncio.StreamWriter], Awaitable[None]]


class Seen:
    """A request as its bytes arrived."""

    def __init__(self, head: bytes, body: bytes) -> None:
        self.head, self.body = head, body
        first, *lines = head.decode("latin-1").split("\r\n")
        self.method, self.target, _ = first.split(" ")
        self.headers = [
            (name.lower(), value.strip()) for name, _, value in (it.partition(":") for it in lines)
        ]

    def values(self, name: str) -> list[str]:
        return [value for given, value in self.headers if given == name]


class RawUpstream:
    """A provider's API on loopback. It answers with `responses`, or as `handler` writes."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.connections = 0
        self.responses: list[bytes] = []  # for the next requests; afterwards OK
        self.handler: Handler | None = None
        self.url = ""
        self._writers: set[asyncio.StreamWriter] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n"))[:-4]
                seen = Seen(head, await _body(head, reader))
                self.seen.append(seen)
                if self.handler is not None:
                    await self.handler(seen, writer)
                else:
                    writer.write(self.responses.pop(0) if self.responses else OK)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    def end(self) -> None:
        """End the connections of handlers that answer nothing."""
        for writer in self._writers:
            writer.transport.abort()


async def _body(head: bytes, reader: asyncio.StreamReader) -> bytes:
    lower, body = head.lower(), b""
    if b"transfer-encoding: chunked" in lower:
        while size := int((await reader.readline()).partition(b";")[0], 16):
            body += await reader.readexactly(size)
            await reader.readline()
        await reader.readline()
    elif b"content-length:" in lower:
        body = await reader.readexactly(int(lower.partition(b"content-length:")[2].split(b"\r\n")[0]))
    return body


def answer(body: bytes = b"", status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


OK = answer(b'{"ok":true}', "200 OK", "Content-Type: application/json")


class Gateway:
    """The running gateway: its address, and a client that follows no redirect."""

    def __init__(self, parts: GatewayParts, port: int) -> None:
        self.parts, self.port = parts, port
        self.client = httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False)

    async def call(self, method: str, path: str, key: str, **more: Any) -> httpx2.Response:
        given = httpx2.Headers(more.pop("headers", {})).multi_items()
        headers = [("Authorization", f"Bearer {key}"), *given]
        return await self.client.request(method, path, headers=headers, **more)

    async def get(self, path: str, key: str, **more: Any) -> httpx2.Response:
        return await self.call("GET", path, key, **more)

    async def raw(self, data: bytes) -> bytes:
        """Send bytes on a connection of their own; all that comes back until it is closed."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(data)
            async with asyncio.timeout(60):
                return await reader.read()
        finally:
            writer.close()


@asynccontextmanager
async def upstream_api() -> AsyncIterator[RawUpstream]:
    upstream = RawUpstream()
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0, limit=1 << 20)
    upstream.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield upstream
        upstream.end()  # the server waits for its connections, from Python 3.12 on


def registry_for(base_url: str, **changes: Any) -> Registry:
    """The catalogue, whose gitlab has its API here."""
    specs = {spec.name: spec for spec in Registry.load().all()}
    specs["gitlab"] = specs["gitlab"].model_copy(
        update={"api_base_url": base_url, "api_request": None, **changes}
    )
    return Registry(specs)


@asynccontextmanager
async def running_gateway(
    api: Api, upstream: RawUpstream, *, database_url: str = "", **changes: Any
) -> AsyncIterator[Gateway]:
    """The gateway with keys of its own role, over the database of `api`. `changes` are of the definition.

    `database_url`: as this user of the same database.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    settings = api.parts.settings
    policy = EgressPolicy(allow=(upstream.url.removeprefix("http://"),))
    ring = KeyRing.open(settings.key_path, Role.GATEWAY)
    store = await Store.open(database_url or settings.database_url, ring, api.clock)
    ledger = LeaseLedger(store.in_pool(Pool.LEDGER), "gateway-test", api.clock)
    await ledger.start()
    base = changes.pop("api_base_url", f"{upstream.url}/api")
    context = ApiContext(
        settings=settings,
        store=store,
        ring=ring,
        registry=registry_for(base, **changes),
        clock=api.clock,
        link=api.link,
        relay=api.relay,
        ledger=ledger,
        lease_rows=LeaseRows(store),
        check_endpoint=policy.check_endpoint,
        offer_consent=offer_consent,
    )
    silence = settings.gateway_silence.total_seconds()
    outcomes = OutcomeLog(store, "gateway-outcomes")
    parts = GatewayParts(context, StreamingTransport(policy, silence_s=silence), outcomes)
    outcomes.start()
    app = GatewayApp(parts)
    server = make_server(app, drain_s=1)
    server.config.lifespan = "off"
    server.config.load()
    server.lifespan = server.config.lifespan_class(server.config)
    gateway = Gateway(parts, port)
    ended = asyncio.Event()
    # MCP sessions run in a task of their own, in which they also end
    sessions = asyncio.create_task(_serve_until(app, ended))
    running = asyncio.create_task(server._serve([listener]))  # `serve` would take the test's signals
    try:
        yield gateway
    finally:
        await gateway.client.aclose()
        server.should_exit = True
        await running
        ended.set()
        await sessions
        await parts.stop()
        await ledger.stop()
        await store.close()


async def _serve_until(app: GatewayApp, ended: asyncio.Event) -> None:
    async with app.running():
        await ended.wait()
