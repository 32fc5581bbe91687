"""A scripted Evergrant on loopback: answers what it was told to, in order, and remembers requests."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit

TOKEN = "canary/tok+en.0123456789abcdefXYZ"
LINK = "https://evergrant.example/connect/canary-link-0123456789"


@dataclass(frozen=True)
class ScriptedResponse:
    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"
    drop: bool = False  # close the connection without a word


@dataclass(frozen=True)
class RecordedRequest:
    """One request, and when it came (the loop's clock, seconds)."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any
    at: float


def problem(
    status: int, kind: str, code: str, headers: Mapping[str, str] | None = None, **more: Any
) -> ScriptedResponse:
    body = {"type": f"/docs/errors#{code}", "title": code, "status": status, "code": code, "kind": kind}
    return ScriptedResponse(
        status, body | {"detail": "said so"} | more, headers or {}, "application/problem+json"
    )


def lease(**changes: Any) -> ScriptedResponse:
    body = {
        "connection_id": "con_1",
        "access_token": TOKEN,
        "token_type": "Bearer",
        "expires_at": "2030-01-02T03:04:05Z",
        "scopes": ["read"],
        "generation": 7,
    }
    return ScriptedResponse(200, body | changes)


def consent_required() -> ScriptedResponse:
    return problem(
        409, "ReconnectNeeded", "consent_required", connect_url=LINK, connection_id="con_1", expires_at=None
    )


def connection(**changes: Any) -> dict[str, Any]:
    return {
        "id": "con_1",
        "integration": "crm",
        "provider": "hubspot",
        "subject": "alice",
        "label": "default",
        "state": "active",
        "generation": 1,
        "scopes": ["read"],
        "expires_at": None,
        "reason": None,
        "repairer": None,
        "created_at": "2030-01-01T00:00:00Z",
        "changed_at": "2030-01-01T00:00:00+00:00",
    } | changes


class ScriptedEvergrant:
    """The last answer of a route is repeated; a route nobody scripted is a 404 without a problem."""

    def __init__(self) -> None:
        self.seen: list[RecordedRequest] = []
        self.url = ""
        self._answers: dict[str, list[ScriptedResponse]] = {}

    def script(self, route: str, *answers: ScriptedResponse) -> None:
        """`route` is method and path: `POST /v1/lease`."""
        self._answers[route] = list(answers)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while request := await self._read(reader):
                self.seen.append(request)
                answer = self._next(f"{request.method} {request.path}")
                if answer.drop:
                    return
                writer.write(_rendered(answer))
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def _next(self, route: str) -> ScriptedResponse:
        left = self._answers.get(route)
        if not left:
            return ScriptedResponse(404, "nothing here", content_type="text/html")
        return left.pop(0) if len(left) > 1 else left[0]

    async def _read(self, reader: asyncio.StreamReader) -> RecordedRequest | None:
        line = await reader.readline()
        if not line:
            return None
        method, target, _ = line.decode().split()
        headers: dict[str, str] = {}
        while (field_line := (await reader.readline()).decode().strip()) != "":
            name, _, value = field_line.partition(":")
            headers[name.lower()] = value.strip()
        raw = await reader.readexactly(int(headers.get("content-length", "0")))
        parts = urlsplit(target)
        now = asyncio.get_running_loop().time()
        return RecordedRequest(
            method, parts.path, dict(parse_qsl(parts.query)), headers, json.loads(raw) if raw else None, now
        )


def _rendered(answer: ScriptedResponse) -> bytes:
    body = answer.body if isinstance(answer.body, str) else json.dumps(answer.body)
    fields = {"content-type": answer.content_type, "content-length": str(len(body.encode()))}
    head = "".join(f"{name}: {value}\r\n" for name, value in (fields | dict(answer.headers)).items())
    return f"HTTP/1.1 {answer.status} Scripted\r\n{head}\r\n{body}".encode()


@asynccontextmanager
async def scripted_evergrant() -> AsyncIterator[ScriptedEvergrant]:
    evergrant = ScriptedEvergrant()
    connections: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        try:
            await evergrant.serve(reader, writer)
        except asyncio.CancelledError:
            pass  # only the end of the block below cancels; asyncio's own callback would log it as an error
        finally:
            connections.discard(task)

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    evergrant.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        yield evergrant
    finally:
        listener.close()
        for task in tuple(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
