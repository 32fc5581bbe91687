"""One call of a tool: who makes it, and what its result looks like."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from mcp.server.context import ServerRequestContext
from mcp.types import CallToolRequestParams, CallToolResult, TextContent
from starlette.requests import Request

from evergrant_server.access.callers import Caller
from evergrant_server.api.http.call import ApiCall
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.problems import invalid_request, problem_document
from evergrant_server.store import Transaction

if TYPE_CHECKING:
    from evergrant_server.gateway.parts import GatewayParts
    from evergrant_server.gateway.proxy.endpoint import ProxyEndpoint
    from evergrant_server.gateway.tools.elicitation import Completions

_CALLER = "evergrant.mcp.caller"  # in a request's scope
_OF_HTTP = ("type", "status")  # members of a problem document that mean nothing here


@dataclass(frozen=True)
class McpCaller:
    """Who sent a request."""

    caller: Caller

    @property
    def subject(self) -> str | None:
        """The only subject it acts for; None: an app by itself, for those of its permits."""
        if self.caller.delegated is not None:
            return self.caller.delegated.own.subject
        authorization = self.caller.authorization
        return None if authorization is None else authorization.subject

    @property
    def is_app(self) -> bool:
        """An app with a credential of its own."""
        return self.caller.delegated is None and self.caller.authorization is None

    @property
    def principal(self) -> str:
        """What a session and a request state belong to."""
        caller = self.caller
        delegation = None if caller.delegated is None else caller.delegated.own.id
        return json.dumps([caller.tenant, caller.app.id, caller.credential.id, self.subject, delegation])


def put_caller(request: Request, caller: McpCaller) -> None:
    request.scope[_CALLER] = caller


def caller_of(request: Request) -> McpCaller:
    return request.scope[_CALLER]


@dataclass(frozen=True)
class ToolCall:
    """What a tool works with. `call` is the request as the API's routes see it."""

    parts: "GatewayParts"
    proxy: "ProxyEndpoint"
    completions: "Completions"
    context: ServerRequestContext[Any, Request]
    params: CallToolRequestParams

    @property
    def request(self) -> Request:
        assert self.context.request is not None  # HTTP is the only way here
        return self.context.request

    @property
    def by(self) -> McpCaller:
        return caller_of(self.request)

    @property
    def call(self) -> ApiCall:
        return ApiCall.of(self.parts.api, self.request, self.by.caller)

    @property
    def public_url(self) -> str:
        return self.parts.api.settings.public_url

    def subject(self, named: str | None) -> str:
        """The subject that is meant. Raises Failure NOT_PERMITTED for another one than the caller's own."""
        mine = self.by.subject
        if mine is None and named is None:
            raise invalid_request("subject", "Say whose account is meant.")
        if mine is not None and named not in (None, mine):
            raise Failure(ErrorCode.NOT_PERMITTED, "You act for one subject alone: leave subject out.")
        return mine or named or ""

    async def connection(self, tx: Transaction, connection_id: str) -> Connection:
        """A connection that the caller may see. Raises Failure NOT_FOUND."""
        connection = await self.call.visible_connection(tx, connection_id)
        if self.by.subject not in (None, connection.subject):
            raise Failure(ErrorCode.NOT_FOUND)
        return connection


def result(members: Mapping[str, Any], *, failed: bool = False) -> CallToolResult:
    """The members, as structured content and, for clients that read none, as text."""
    shown = {name: value for name, value in members.items() if value is not None}
    text = json.dumps(shown, ensure_ascii=False, default=datetime.isoformat)
    return CallToolResult(
        content=[TextContent(text=text)], structured_content=json.loads(text), is_error=failed
    )


def failed(failure: Failure, public_url: str, **members: Any) -> CallToolResult:
    """A failure that the model can act on. It names fields, and repeats no values."""
    document = problem_document(failure, public_url)
    problem = {name: value for name, value in document.items() if name not in _OF_HTTP}
    return result({**problem, **members}, failed=True)
