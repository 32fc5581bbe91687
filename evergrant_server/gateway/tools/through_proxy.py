"""A tool's request, sent as the proxy sends it: the same decision, limits, audit records and echo filter."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.types import Message, Scope

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.gateway.proxy.endpoint import PREFIX
from evergrant_server.gateway.proxy.headers import values_of
from evergrant_server.gateway.proxy.streaming import ResponseBroken
from evergrant_server.gateway.tools.arguments import MOST_BODY, CallApi
from evergrant_server.gateway.tools.tool_call import ToolCall

MOST_SHOWN = 64 * 1024  # bytes of a response's body
LONGEST_S = 60.0
_SHOWN_HEADERS = (b"content-type", b"location", b"link", b"retry-after", b"etag", b"last-modified")


class _Enough(Exception):
    """The response has more than is shown."""


@dataclass
class _Response:
    """Gathers a response as the proxy sends it."""

    status: int = 0
    headers: list[tuple[bytes, bytes]] = field(default_factory=list[tuple[bytes, bytes]])
    body: bytes = b""
    cut: str | None = None  # why it isn't whole

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], list(message["headers"])
            return
        self.body += message.get("body", b"")
        if len(self.body) > MOST_SHOWN:
            self.body = self.body[:MOST_SHOWN]
            raise _Enough

    def members(self) -> dict[str, Any]:
        """What the model is told of it."""
        headers = {
            name.decode(): b", ".join(values).decode("latin-1")
            for name in _SHOWN_HEADERS
            if (values := values_of(name, self.headers))
        }
        body, note = self._text(), None
        if self.cut is not None:
            note = f"The body was cut after {len(self.body)} bytes: {self.cut}. Ask for less of it."
        elif body is None:
            note = f"The body has {len(self.body)} bytes that are no text, and isn't shown."
        return {"status": self.status, "headers": headers, "body": body, "cut": bool(self.cut), "note": note}

    def _text(self) -> str | None:
        """The body, without a character that the cut has halved; None: it is no text."""
        whole = self.body[:-3] if self.cut else self.body
        try:
            text = whole.decode()
        except UnicodeDecodeError as error:
            if not self.cut or error.start < len(whole) - 3:
                return None
            text = whole[: error.start].decode()
        return None if "\0" in text else text


async def send_through_proxy(tool: ToolCall, given: CallApi) -> dict[str, Any]:
    """The API's response. Raises Failure."""
    request, content = Request(_scope(tool, given)), given.content
    if len(content) > MOST_BODY:
        raise Failure(ErrorCode.BODY_TOO_LARGE, f"A body has at most {MOST_BODY} bytes here.", field="body")
    answer, sent = _Response(), False

    async def receive() -> Message:
        nonlocal sent
        if sent:
            await asyncio.Event().wait()  # the caller doesn't leave: this task is cancelled if it does
        sent = True
        return {"type": "http.request", "body": content, "more_body": False}

    try:
        async with asyncio.timeout(LONGEST_S):
            await tool.proxy.serve(request, (tool.by.caller, False), receive, answer.send)
    except _Enough:
        answer.cut = f"at most {MOST_SHOWN} bytes are shown"
    except TimeoutError:
        answer.cut = f"it took longer than {LONGEST_S:.0f} seconds"
    except ResponseBroken:
        answer.cut = "it broke off, or is no longer permitted"
    if not answer.status:
        raise Failure(ErrorCode.PROVIDER_UNREACHABLE, f"No answer within {LONGEST_S:.0f} seconds.")
    return answer.members()


def _scope(tool: ToolCall, given: CallApi) -> Scope:
    """The request as it would have come to `/v1/proxy`."""
    path, query = given.target
    raw = PREFIX + given.connection_id.encode() + b"/" + path
    length = [(b"content-length", str(len(given.content)).encode())] if given.content else []
    ours = [it for it in tool.request.headers.raw if it[0] in (b"authorization", b"x-forwarded-for")]
    changed = {
        "method": given.method,
        "path": raw.decode(),
        "raw_path": raw,
        "query_string": query,
        "headers": [*given.own_headers, *length, *ours],
    }
    kept = {name: it for name, it in tool.request.scope.items() if name != "state"}
    return {**kept, **changed}
