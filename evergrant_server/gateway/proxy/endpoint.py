"""The route of the proxy: `ANY /v1/proxy/{connection}/{path}`."""

import re

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from evergrant_server.access.callers import Caller
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId
from evergrant_server.gateway.parts import GatewayParts
from evergrant_server.gateway.proxy.call import ProxyCall
from evergrant_server.gateway.proxy.caller_body import CallerBody
from evergrant_server.gateway.proxy.outgoing import PathRequest
from evergrant_server.gateway.proxy.streaming import carry_out
from evergrant_server.gateway.proxy.target import read_caller_path

PREFIX = b"/v1/proxy/"
_CONNECTION = re.compile(rb"/v1/proxy/(con_[0-9a-z]{22})(?:/(.*))?\Z", re.DOTALL)


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
        found = _CONNECTION.match(scope["raw_path"])
        if found is None:
            raise Failure(ErrorCode.NOT_FOUND)
        path = read_caller_path(scope["method"], found[2] or b"", scope["query_string"])
        body = CallerBody(scope, receive)
        with self._parts.open_call(caller[0].app):
            await body.read_beginning()
            connection_id = ConnectionId(found[1].decode())
            outgoing = PathRequest(path, request.headers.raw, body)
            call = ProxyCall(self._parts, request, caller, connection_id, outgoing, body)
            await carry_out(self._parts, request, call, body, receive, send)
