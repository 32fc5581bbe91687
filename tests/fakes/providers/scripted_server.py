"""The HTTP side of a scripted server: reads requests, remembers them, answers as its script says."""

import asyncio
import base64
import json
import re
import time
from abc import ABC, abstractmethod
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar
from urllib.parse import parse_qsl, urlsplit

from tests.fakes.certificates import LoopbackTls
from tests.fakes.http_server import listening, read_request
from tests.fakes.patience import PATIENCE_S

T = TypeVar("T")

_SECRET = re.compile(r"^(?:code|code_verifier|refresh_token|token|client_secret|device_code)$")


@dataclass(frozen=True)
class Answer:
    """One step of a script."""

    acts: bool = True
    answers: bool = True
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None  # None: what acting gives
    fields: Mapping[str, Any] = field(default_factory=dict)
    wait: "asyncio.Event | float | None" = None
    wait_first: bool = True
    then: "Answer | None" = None
    echoes: str = ""  # the name of an error whose description quotes every secret of the request
    drips_s: float = 0.0  # the reply is sent a byte at a time, over so many seconds


def written(data: Any, fields: Mapping[str, Any]) -> bytes:
    """What acting gives, as a body: JSON, or bytes as they are."""
    if isinstance(data, bytes):
        return data
    return b"" if data is None else json.dumps({**data, **fields}).encode()


def ok(**fields: Any) -> Answer:
    return Answer(fields=fields)


def status(code: int, headers: Mapping[str, str] | None = None) -> Answer:
    return Answer(acts=False, status=code, headers=headers or {}, body=b"")


def error(name: str, code: int = 400) -> Answer:
    return raw(json.dumps({"error": name}).encode(), code, {"Content-Type": "application/json"})


def echo(name: str, code: int = 400) -> Answer:
    """An error that quotes what was sent, as some providers do."""
    return Answer(acts=False, status=code, headers={"Content-Type": "application/json"}, echoes=name)


def html(code: int = 200) -> Answer:
    return raw(b"<!doctype html><title>Sorry</title>", code, {"Content-Type": "text/html"})


def raw(body: bytes, code: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    return Answer(acts=False, status=code, headers=headers or {}, body=body)


def drop() -> Answer:
    return Answer(acts=False, answers=False)


def drop_after_commit() -> Answer:
    return Answer(answers=False)


def delay(until: "asyncio.Event | float", then: Answer | None = None) -> Answer:
    return Answer(wait=until, then=then or ok())


def drip(over_s: float) -> Answer:
    return Answer(drips_s=over_s)


def hold_answer(until: asyncio.Event) -> Answer:
    return Answer(wait=until, wait_first=False)


@dataclass(frozen=True)
class Call:
    """One request as it came."""

    endpoint: str
    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    params: dict[str, str]
    at: float = field(default_factory=time.monotonic)

    @property
    def secrets(self) -> str:
        """What it sent that no one else may know, as a provider could quote it."""
        sent = [value for name, value in self.params.items() if _SECRET.search(name)]
        scheme, _, value = self.headers.get("authorization", "").partition(" ")
        if scheme:
            sent.append(base64.b64decode(value).decode().partition(":")[2] if scheme == "Basic" else value)
        return " ".join(sent)


class ScriptedServer(ABC):
    """Listens on loopback while it is entered; what acting means is its subclass's."""

    def __init__(self, path: str, tls: LoopbackTls | None) -> None:
        self.tls = tls
        self.aliases: dict[str, str] = {}  # another path -> the endpoint it is
        self.calls: list[Call] = []
        self._path = path
        self._scripts: dict[str, deque[Answer]] = defaultdict(deque)
        self._news = asyncio.Condition()

    @abstractmethod
    def _act(self, call: Call) -> tuple[int, dict[str, str], dict[str, Any] | None]:
        """Do what a request asks for: the reply's status, headers and JSON."""

    async def __aenter__(self) -> Self:
        self._listening = listening(self._serve, tls=self.tls.server if self.tls else None)
        self.port = await self._listening.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._listening.__aexit__(*error)

    @property
    def allowance(self) -> str:
        """What EgressPolicy(allow=…) needs to reach this server."""
        return f"127.0.0.1:{self.port}"

    @property
    def origin(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def issuer(self) -> str:
        return self.origin + self._path

    def url(self, endpoint: str) -> str:
        """The URL of `authorize`, `token`, `revoke` or `introspect`."""
        return f"{self.issuer}/{endpoint}"

    def script(self, *answers: Answer, at: str = "token") -> None:
        """Queue answers for an endpoint, in order."""
        self._scripts[at].extend(answers)

    def unscript(self) -> int:
        """Drop the token endpoint's queued answers; returns their number."""
        forgotten = len(self._scripts["token"])
        self._scripts["token"].clear()
        return forgotten

    def count(self, endpoint: str, **params: str) -> int:
        """How many requests came to an endpoint with these parameters."""
        return sum(call.endpoint == endpoint and params.items() <= call.params.items() for call in self.calls)

    @asynccontextmanager
    async def in_flight(
        self, call: Coroutine[Any, Any, T], *, at: str = "token", answer: Answer | None = None
    ) -> AsyncIterator["asyncio.Task[T]"]:
        """What `call` asks for is done, and the reply comes when the block ends.

        With `answer` nothing is done before the end, and then that.
        """
        gate, before = asyncio.Event(), self.count(at)
        self.script(delay(gate, answer) if answer else hold_answer(gate), at=at)
        task = asyncio.create_task(call)
        await self.until(at, before + 1)
        try:
            yield task
        finally:
            gate.set()
            await task

    async def until(
        self, endpoint: str, times: int = 1, timeout: float = PATIENCE_S
    ) -> None:  # a test's own limit
        """Wait until so many requests have arrived at an endpoint."""
        async with asyncio.timeout(timeout), self._news:
            await self._news.wait_for(lambda: self.count(endpoint) >= times)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        call = self._read(*await read_request(reader))
        async with self._news:
            self.calls.append(call)
            self._news.notify_all()
        reply = await self._reply(call, writer)
        if reply is not None:
            writer.write(reply)
            await writer.drain()

    def _read(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Call:
        parts = urlsplit(target)
        params = dict(parse_qsl(parts.query, keep_blank_values=True))
        if "json" in headers.get("content-type", ""):
            params |= {name: str(value) for name, value in json.loads(body or b"{}").items()}
        else:
            params |= dict(parse_qsl(body.decode("latin-1"), keep_blank_values=True))
        if ".well-known" in parts.path:
            endpoint = "metadata"
        else:
            endpoint = parts.path.removeprefix(self._path).strip("/")
            endpoint = self.aliases.get(endpoint, endpoint)
        return Call(endpoint, method, target, headers, body, params)

    async def _reply(self, call: Call, writer: asyncio.StreamWriter) -> bytes | None:
        script = self._scripts[call.endpoint]
        answer = script.popleft() if script else ok()
        while answer.wait is not None and answer.wait_first:
            await _waited(answer.wait)
            answer = answer.then or ok()
        code, headers, body = answer.status, dict(answer.headers), answer.body
        if answer.echoes:
            said = f"Not {call.secrets}, \x1b[31m\u202e it was\nrevoked"
            body = json.dumps({"error": answer.echoes, "error_description": said}).encode()
        if answer.acts:
            code, acted, data = self._act(call)
            headers = acted | headers
            body = written(data, answer.fields)
        if answer.wait is not None:
            await _waited(answer.wait)
        if not answer.answers:
            return None
        headers = {"Content-Length": str(len(body or b"")), "Connection": "close"} | headers
        lines = [f"HTTP/1.1 {code} Scripted", *(f"{name}: {value}" for name, value in headers.items())]
        reply = "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")
        if answer.drips_s:
            await _dripped(writer, reply, answer.drips_s)
            return b""
        return reply


async def _dripped(writer: asyncio.StreamWriter, reply: bytes, over_s: float) -> None:
    """Raises ConnectionError once the other end has gone away."""
    for number in range(len(reply)):
        writer.write(reply[number : number + 1])
        await writer.drain()
        await asyncio.sleep(over_s / len(reply))


async def _waited(until: "asyncio.Event | float") -> None:
    if isinstance(until, asyncio.Event):
        await until.wait()
    else:
        await asyncio.sleep(until)
