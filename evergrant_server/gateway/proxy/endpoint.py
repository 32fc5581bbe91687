"""The route of the proxy, `ANY /v1/proxy/{connection}/{path}`, and how a call's answer is handed on.

Until it ends, the caller leaves, or the caller may not make it any more.
"""

import asyncio
import re

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from evergrant_server.access.callers import Caller
from evergrant_server.access.judged_request import JudgedRequest
from evergrant_server.access.judgement import state_refusal, target_of
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
_WATCH_AFTER_S = 0.05
_BODILESS = (204, 304)  # a length there is that of another response (RFC 9110 section 8.6)


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
    watch = _Watch(parts, request, call, body, receive)
    try:
        await _hand_answer_on(call, body, send, watch)
    except asyncio.CancelledError:
        if not watch.has_ended:
            raise
        raise ResponseBroken if watch.refusal is None or watch.begun else watch.refusal from None
    finally:
        watch.stop()
        metrics.note_open_calls(-1)


class _Watch:
    """Cancels the task that carries a call out, once the caller has left, or may not make it any more.

    `refusal` says why it may not. `begun`: the response has. It looks after a moment only: most calls are
    over by then.
    """

    def __init__(
        self, parts: GatewayParts, request: Request, call: ProxyCall, body: CallerBody, receive: Receive
    ) -> None:
        self._parts, self._request, self._call, self._body, self._receive = (
            parts,
            request,
            call,
            body,
            receive,
        )
        self.begun = False
        self.has_ended = False
        self.refusal: Failure | None = None
        working = asyncio.current_task()
        assert working is not None
        self._working = working
        self._task: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(_WATCH_AFTER_S, self._start)

    def stop(self) -> None:
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
        if self.has_ended:
            self._working.uncancel()

    def _start(self) -> None:
        self._task = asyncio.create_task(self._look())

    async def _look(self) -> None:
        leaving = asyncio.create_task(self._caller_leaves())
        try:
            while not leaving.done() and self.refusal is None:
                await asyncio.wait((leaving,), timeout=RECHECK_S)
                if not leaving.done():
                    self.refusal = await _refusal(self._parts, self._request, self._call)
        finally:
            leaving.cancel()
        self.has_ended = True
        self._working.cancel()

    async def _caller_leaves(self) -> None:
        await self._body.read.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass


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
            return Failure(state_refusal(row, api.clock.now()) or ErrorCode.CONSENT_REQUIRED)
        judged.permitted(Action.PROXY, of=target_of(row), proxied=await call.judged(row))
    except Failure as failure:
        return None if failure.code is ErrorCode.STORE_UNAVAILABLE else failure
    return None


async def _hand_answer_on(call: ProxyCall, body: CallerBody, send: Send, watch: _Watch) -> None:
    async def hand_on(answer: StreamedResponse, sent: Sent) -> None:
        body.read.set()  # a server may answer before it has read the whole request
        decoder = decoder_of(values_of(b"content-encoding", answer.headers))
        head = _head(answer, sent, call.outgoing.answer_headers(answer.headers))
        watch.begun = True
        await send(head)
        async for chunk in decoded(answer.chunks, decoder):
            sent.received += len(chunk)
            if ready := sent.filter.feed(chunk):
                await send({"type": "http.response.body", "body": ready, "more_body": True})
        await send({"type": "http.response.body", "body": sent.filter.end(), "more_body": False})
        sent.ended = "answered"

    try:
        await call.answer(hand_on)
    except CallerLeft:
        raise ResponseBroken from None
    except Failure:
        if watch.begun:
            raise ResponseBroken from None
        raise


def _head(answer: StreamedResponse, sent: Sent, answer_headers: RawHeaders) -> dict[str, object]:
    """The response's beginning. A status that HTTP doesn't know becomes 502."""
    headers = sent.filter.clean(response_headers(answer_headers))
    headers.append((b"Evergrant-Audit", sent.place.encode()))
    lengths = values_of(b"content-length", answer.headers)
    if lengths and answer.status not in _BODILESS and not values_of(b"content-encoding", answer.headers):
        headers.append((b"Content-Length", lengths[0]))
    status = answer.status
    if not 200 <= status <= 599:
        headers.append((b"Evergrant-Upstream-Status", b"%d" % status))
        status = 502
    return {"type": "http.response.start", "status": status, "headers": headers}
