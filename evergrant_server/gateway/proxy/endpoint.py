"""The route of the proxy, `ANY /v1/proxy/{connection}/{path}`, and how a call's answer is handed on.

Until it ends, the caller leaves, or the caller may not make it any more.
"""

import asyncio
import re
from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from evergrant_server.access.callers import Caller
from evergrant_server.access.judged_request import JudgedRequest
from evergrant_server.access.judgement import target_of
from evergrant_server.core.access import Action
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId
from evergrant_server.egress import StreamedResponse
from evergrant_server.gateway.callers import current_caller
from evergrant_server.gateway.parts import GatewayParts
from evergrant_server.gateway.proxy.call import ProxyCall, Sent
from evergrant_server.gateway.proxy.caller_body import CallerBody, CallerLeft
from evergrant_server.gateway.proxy.echo import decoded, decoder_of
from evergrant_server.gateway.proxy.headers import RawHeaders, response_headers, values_of
from evergrant_server.gateway.proxy.outgoing import PathRequest
from evergrant_server.gateway.proxy.target import read_caller_path
from evergrant_server.telemetry import metrics

PREFIX = b"/v1/proxy/"
_CONNECTION = re.compile(rb"/v1/proxy/(con_[0-9a-z]{22})(?:/(.*))?\Z", re.DOTALL)
RECHECK_S = 5.0  # between two looks at whether a stream may go on


class ProxyEndpoint:
    """`ANY /v1/proxy/{connection}/{path}`."""

    def __init__(self, parts: GatewayParts) -> None:
        self._parts = parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises Failure before a response has begun, ResponseBroken afterwards."""
        request = Request(scope)
        caller = await self._parts.api.authenticator.authenticate_cached(request)
        await self.serve(request, caller, receive, send)

    async def serve(
        self, request: Request, caller: tuple[Caller, bool], receive: Receive, send: Send
    ) -> None:
        """The request of this caller. The flag: the caller comes from the cache. Raises as above."""
        scope = request.scope
        match = _CONNECTION.match(scope["raw_path"])
        if match is None:
            raise Failure(ErrorCode.NOT_FOUND)
        path = read_caller_path(scope["method"], match[2] or b"", scope["query_string"])
        body = CallerBody(scope, receive)
        with self._parts.open_call(caller[0].app):
            await body.read_beginning()
            connection_id = ConnectionId(match[1].decode())
            outgoing = PathRequest(path, request.headers.raw, body)
            call = ProxyCall(self._parts, request, caller, connection_id, outgoing, body)
            await carry_out(self._parts, request, call, body, receive, send)


class ResponseBroken(Exception):
    """The response ended before its end: the connection to the caller has to be closed, too."""


async def carry_out(
    parts: GatewayParts, request: Request, call: ProxyCall, body: CallerBody, receive: Receive, send: Send
) -> None:
    """Carry the call out. Raises Failure before a response has begun, ResponseBroken afterwards."""
    metrics.note_open_calls(1)
    begun = asyncio.Event()
    refusal: Failure | None = None
    work = asyncio.create_task(_hand_answer_on(call, send, begun))
    leaving = asyncio.create_task(_caller_leaves(body, receive))
    try:
        while True:
            done, _ = await asyncio.wait(
                (work, leaving), timeout=RECHECK_S, return_when=asyncio.FIRST_COMPLETED
            )
            refusal = None if done else await _refusal(parts, request, call)
            if done or refusal is not None:
                break
    finally:
        for task in (work, leaving):
            task.cancel()  # does nothing to one that is done
        await asyncio.gather(work, leaving, return_exceptions=True)
        metrics.note_open_calls(-1)
    if work.cancelled():
        raise ResponseBroken if refusal is None or begun.is_set() else refusal
    work.result()


async def _refusal(parts: GatewayParts, request: Request, call: ProxyCall) -> Failure | None:
    """Why the app may make this call no longer, by what the store says now; None: it may."""
    api = parts.api
    try:
        caller = await current_caller(api, request, call.caller)
        row = await api.lease_rows.load(caller.tenant, call.connection_id)
        judged = JudgedRequest.of(api, request, caller)
        if row is None:
            return Failure(ErrorCode.NOT_FOUND)
        if not row.leasable:
            return Failure(ErrorCode.CONNECTION_REVOKED if row.has_ended else ErrorCode.CONSENT_REQUIRED)
        judged.permitted(Action.PROXY, of=target_of(row), proxied=await call.judged(row))
    except Failure as failure:
        return None if failure.code is ErrorCode.STORE_UNAVAILABLE else failure
    return None


async def _caller_leaves(body: CallerBody, receive: Receive) -> None:
    await body.read.wait()
    while (await receive())["type"] != "http.disconnect":
        pass


async def _hand_answer_on(call: ProxyCall, send: Send, begun: asyncio.Event) -> None:
    try:
        async with call.answered() as (answer, sent):
            decoder = decoder_of(values_of(b"content-encoding", answer.headers))
            head = _head(answer, sent, call.outgoing.answer_headers(answer.headers))
            begun.set()
            await send(head)
            await _hand_on(decoded(answer.chunks, decoder), sent, send)
    except CallerLeft:
        raise ResponseBroken from None
    except Failure:
        if begun.is_set():
            raise ResponseBroken from None
        raise


def _head(answer: StreamedResponse, sent: Sent, answer_headers: RawHeaders) -> dict[str, object]:
    """The response's beginning. A status that HTTP doesn't know becomes 502."""
    clean = sent.filter.clean
    headers = [
        (name, clean(value)) for name, value in response_headers(answer_headers) if clean(name) == name
    ]
    lengths = values_of(b"content-length", answer.headers)
    if lengths and not values_of(b"content-encoding", answer.headers):
        headers.append((b"Content-Length", lengths[0]))
    status = answer.status
    if not 200 <= status <= 599:
        headers.append((b"Evergrant-Upstream-Status", b"%d" % status))
        status = 502
    return {"type": "http.response.start", "status": status, "headers": headers}


async def _hand_on(content: AsyncIterator[bytes], sent: Sent, send: Send) -> None:
    async for chunk in content:
        sent.received += len(chunk)
        if ready := sent.filter.feed(chunk):
            await send({"type": "http.response.body", "body": ready, "more_body": True})
    await send({"type": "http.response.body", "body": sent.filter.end(), "more_body": False})
    sent.ended = "answered"
