"""The route of the pass-through: from a message of MCP to the server's answer."""

import json
import re

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from evergrant_server.access.callers import Caller
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId
from evergrant_server.gateway.callers import gateway_caller
from evergrant_server.gateway.http.own_address import require_own_address
from evergrant_server.gateway.mcp.message import read_message
from evergrant_server.gateway.mcp.request import McpRequest
from evergrant_server.gateway.mcp.sessions import SessionIds
from evergrant_server.gateway.mcp.step_up import with_link
from evergrant_server.gateway.parts import GatewayParts
from evergrant_server.gateway.proxy.call import ProxyCall
from evergrant_server.gateway.proxy.caller_body import CallerBody
from evergrant_server.gateway.proxy.streaming import carry_out

PREFIX = b"/mcp/"
MESSAGE = "evergrant.mcp_message"  # in the ASGI scope: what an error is the answer to
_CONNECTION = re.compile(rb"/mcp/(con_[0-9a-z]{22})\Z")
_METHODS = frozenset({"POST", "GET", "DELETE"})


class McpEndpoint:
    """`ANY /mcp/{connection}`."""

    def __init__(self, parts: GatewayParts) -> None:
        self._parts = parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises Failure before a response has begun, ResponseBroken afterwards."""
        request = Request(scope)
        require_own_address(request, self._parts.api.settings.gateway_public_url)
        found = _CONNECTION.match(scope["raw_path"])
        if found is None:
            raise Failure(ErrorCode.NOT_FOUND)
        resource = self._parts.api.settings.gateway_public_url + found[0].decode()
        caller = await gateway_caller(self._parts.api, request, resource)
        if scope["method"] not in _METHODS:
            raise Failure(ErrorCode.METHOD_NOT_ALLOWED)
        connection_id = ConnectionId(found[1].decode())
        body = CallerBody(scope, receive)
        with self._parts.open_call(caller[0].app):
            await body.read_beginning()
            outgoing = self._outgoing(request, caller[0], connection_id, body)
            call = ProxyCall(self._parts, request, caller, connection_id, outgoing, body)
            try:
                await carry_out(self._parts, request, call, body, receive, send)
            except Failure as failure:
                raise await with_link(self._parts, request, caller[0], connection_id, failure) from None

    def _outgoing(
        self, request: Request, caller: Caller, connection_id: ConnectionId, body: CallerBody
    ) -> McpRequest:
        """Raises Failure INVALID_REQUEST for a message that can't be judged, where a permit looks at it."""
        method, headers = request.method, request.headers.raw
        message = read_message(method, headers, body.kept())
        request.scope[MESSAGE] = message
        if message.unclear is not None and any(it.looks_at_messages for it in caller.judging_permits):
            raise Failure(ErrorCode.INVALID_REQUEST, message.unclear, field="body")
        sessions = SessionIds(self._parts.api.ring, caller.tenant, connection_id, _principal(caller))
        return McpRequest(method, request.scope["query_string"], headers, body, message, sessions)


def _principal(caller: Caller) -> str:
    """Whose session it is: an app's, one of its clients' or the subject's it acts for, one as an agent."""
    parts: list[str] = [caller.app.id]
    if caller.authorization is not None:
        parts += [caller.authorization.client_id, caller.authorization.subject]
    if caller.delegated is not None:
        parts += [caller.delegated.chain[0].id]
    return json.dumps(parts)
