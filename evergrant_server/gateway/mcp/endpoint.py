"""The route of the pass-through: from a message of MCP to the server's answer, or to an error.

The gateway's own errors are JSON-RPC errors with the problem document in them. One has the link of a consent
where it helps and has no authority: under the binding `oidc` a login proves the subject first, so a model
may pass it on. Other bindings have no link here (`request_consent`).
"""

import json
import re
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from evergrant_server.access.callers import Caller
from evergrant_server.access.judged_request import JudgedRequest
from evergrant_server.access.judgement import target_of
from evergrant_server.access.refusals import WantedConsent, add_link, names_of, with_turn
from evergrant_server.core.access import Action
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId
from evergrant_server.gateway.callers import gateway_caller, require_own_address
from evergrant_server.gateway.mcp.message import McpMessage, read_message
from evergrant_server.gateway.mcp.request import McpRequest, SessionIds, session_key
from evergrant_server.gateway.parts import GatewayParts
from evergrant_server.gateway.proxy.call import ProxyCall
from evergrant_server.gateway.proxy.caller_body import CallerBody
from evergrant_server.gateway.proxy.endpoint import carry_out
from evergrant_server.problems import problem_document, problem_response

PREFIX = b"/mcp/"
MESSAGE = "evergrant.mcp_message"  # in the ASGI scope: what an error is the answer to
_CONNECTION = re.compile(rb"/mcp/(con_[0-9a-z]{22})\Z")
_METHODS = frozenset({"POST", "GET", "DELETE"})
_HELPED = (ErrorCode.SCOPE_NOT_GRANTED, ErrorCode.CONSENT_REQUIRED)
_INVALID_REQUEST, _INTERNAL = -32600, -32603  # JSON-RPC 2.0 section 5.1
_HEADER_MISMATCH = -32020  # MCP's revision 2026-07-28
_URL_ELICITATION = -32042  # of the revisions before it: the client has a person open a URL
_STATUS = {ErrorCode.SCOPE_NOT_GRANTED: 403}  # as an MCP server says it (RFC 6750 section 3.1)
_OF_HTTP = frozenset({400, 401, 404, 405, 429})  # mean something to the client's transport
_ENDING = frozenset({ErrorCode.APP_DISABLED, ErrorCode.AGENT_ENDED, ErrorCode.TENANT_DISABLED})
_PERSON = "You log in, see what it asks for, and decide."


class McpEndpoint:
    """`ANY /mcp/{connection}`."""

    def __init__(self, parts: GatewayParts) -> None:
        self._parts = parts
        self._session_key = session_key(parts.api.ring)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises Failure before a response has begun, ResponseBroken afterwards."""
        request = Request(scope)
        require_own_address(request, self._parts.api.settings.gateway_public_url)
        match = _CONNECTION.match(scope["raw_path"])
        if match is None:
            raise Failure(ErrorCode.NOT_FOUND)
        resource = self._parts.api.settings.gateway_public_url + match[0].decode()
        caller = await gateway_caller(self._parts.api, request, resource)
        if scope["method"] not in _METHODS:
            raise Failure(ErrorCode.METHOD_NOT_ALLOWED)
        connection_id = ConnectionId(match[1].decode())
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
        if message.unclear is not None and any(permit.looks_at_messages for permit in caller.judging_permits):
            raise Failure(ErrorCode.INVALID_REQUEST, message.unclear, field="body")
        sessions = SessionIds(self._session_key, caller.tenant, connection_id, _principal(caller))
        return McpRequest(method, request.scope["query_string"], headers, body, message, sessions)


def _principal(caller: Caller) -> str:
    """Whose session it is: an app's, one of its clients' or the subject's it acts for, one as an agent."""
    parts: list[str] = [caller.app.id]
    if caller.authorization is not None:
        parts += [caller.authorization.client_id, caller.authorization.subject]
    if caller.delegated is not None:
        parts += [caller.delegated.chain[0].id]
    return json.dumps(parts)


async def with_link(
    parts: GatewayParts, request: Request, caller: Caller, connection_id: ConnectionId, failure: Failure
) -> Failure:
    """The failure, with `connect_url` if a consent helps and the app may ask for it."""
    if failure.code not in _HELPED:
        return failure
    call = JudgedRequest.of(parts.api, request, caller)
    try:
        row = await parts.api.lease_rows.load(caller.tenant, connection_id)
        if row is None or not call.allows(Action.CONNECT, target_of(row)):
            return failure
        scopes = tuple(str(failure.context.get("scopes", "")).split()) or None
        step_up = failure.code is ErrorCode.SCOPE_NOT_GRANTED
        offered = await parts.api.offer_consent(call, WantedConsent(names_of(row), scopes, step_up=step_up))
    except Failure as refusal:  # no link for this binding
        another = refusal.code is ErrorCode.MADE_BY_ANOTHER_APP
        return with_turn(failure, refusal) if another else failure
    except ValueError:  # scopes that can't be asked for
        return failure
    add_link(failure, offered)
    return failure


def refusal(failure: Failure, message: McpMessage | None, base_url: str) -> Response:
    """The answer to a message that wasn't sent. A request that has no `id`, or none that could be read, is
    answered too: its HTTP status says that it failed.

    Clients of the older era end their session at most statuses of failure, so a request that was understood
    gets its error with status 200, unless the caller's time is over.
    """
    response = problem_response(failure, base_url)
    response.status_code = _STATUS.get(failure.code, response.status_code)
    legacy = message is not None and message.id is not None and not message.is_modern
    error = _error(failure, message, problem_document(failure, base_url), legacy=legacy)
    answer = {"jsonrpc": "2.0", "id": None if message is None else message.id, "error": error}
    if legacy and response.status_code not in _OF_HTTP and failure.code not in _ENDING:
        response.status_code = 200
    response.body = json.dumps(answer).encode()
    response.headers["Content-Type"] = "application/json"
    response.headers["Content-Length"] = str(len(response.body))
    return response


def _error(
    failure: Failure, message: McpMessage | None, problem: dict[str, Any], *, legacy: bool
) -> dict[str, Any]:
    code = _INTERNAL if problem["status"] >= 500 else _INVALID_REQUEST
    message_text, data, url = failure.detail or problem["title"], problem, problem.get("connect_url")
    if message is not None and message.differs:
        code = _HEADER_MISMATCH
    elif url is not None:
        message_text = f"{problem['title']} Give the person this address: {url}"
        if legacy:
            asked = {"mode": "url", "elicitationId": problem["connection_id"], "url": url}
            code, data = _URL_ELICITATION, {**problem, "elicitations": [{**asked, "message": _PERSON}]}
    return {"code": code, "message": message_text, "data": data}
