"""One call of an agent: as a request names it, and as an approval's hash and its approver have it."""

import hashlib
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator

from evergrant_server.access.context import integration_spec
from evergrant_server.api.http.call import ApiCall
from evergrant_server.api.http.models import Body, StorableText, checked_printable, request_url
from evergrant_server.core.access import Action
from evergrant_server.core.agents.calls import AgentCall, covered_headers, covered_params
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AppId, is_id
from evergrant_server.policy import Target, may_see
from evergrant_server.problems import invalid_request
from evergrant_server.store import Transaction
from providers.definition.templates import protected_resource_url, server_address

_LONGEST_BODY = 64 * 1024
_MOST_HEADERS = 100
_HEADER_NAME = r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,200}$"  # RFC 9110 section 5.6.2
_HEADER_VALUE = "^[\\t -~\u0080-\u00ff]{0,8000}$"  # section 5.5; a character stands for a byte
_CREDENTIALS = frozenset({"authorization", "proxy-authorization", "cookie"})
_CALLS = frozenset({Action.PROXY, Action.TOKEN})


def _connection_id(value: str) -> str:
    if not is_id(value, "con"):
        raise ValueError("is not the id of a connection")
    return value


def _header_name(value: str) -> str:
    if value.lower() in _CREDENTIALS:
        raise ValueError("is a credential, which is no part of a call: leave it out")
    return value


class CallHeader(Body):
    """A header of a call. Two lines of one name are two headers."""

    name: Annotated[str, Field(pattern=_HEADER_NAME), AfterValidator(_header_name)]
    value: Annotated[str, Field(pattern=_HEADER_VALUE)]


class CallBody(Body):
    """One call with a connection: `method`, `url`, `headers` and `body`; or a `tool` of an MCP server, its
    `arguments`, and `params` for what is beside them in the message's `params`, such as `_meta` and `task`.

    Neutral headers, such as User-Agent, may be left out. Of a body that the approver needn't read, or that is
    no text, `body_sha256` is enough: its SHA-256 in hex. A tool's `url` is its server's: by default the
    connection's.
    """

    connection_id: Annotated[str, AfterValidator(_connection_id)]
    method: Annotated[str, Field(pattern="^[A-Z]{1,20}$")] | None = None
    url: Annotated[str, Field(max_length=8000), AfterValidator(request_url)] | None = None
    headers: Annotated[tuple[CallHeader, ...], Field(max_length=_MOST_HEADERS)] = ()
    body: Annotated[StorableText, Field(max_length=_LONGEST_BODY)] | None = None
    body_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    tool: Annotated[str, Field(min_length=1, max_length=200), AfterValidator(checked_printable)] | None = None
    arguments: dict[str, Any] | None = None
    params: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _is_one_call(self) -> Self:
        is_request = self.method is not None and self.url is not None
        is_tool = self.tool is not None
        of_request, of_tool = (self.method, self.body, self.body_sha256), (self.arguments, self.params)
        of_the_other = of_request if is_tool else of_tool
        if not (is_request or is_tool) or any(member is not None for member in of_the_other):
            raise ValueError("needs method and url, or a tool with its arguments")
        if not {"name", "arguments"}.isdisjoint(self.params or ()):
            raise ValueError("params has what is beside name and arguments: these are tool and arguments")
        if self.body is not None and self.body_sha256 is not None:
            raise ValueError("body and body_sha256 say the same: send one of them")
        return self

    def called(self, call: AgentCall) -> dict[str, Any]:
        """What an approver is shown: all that the call's hash is over, with its body where that is known."""
        beside = {
            name: value for name, value in (call.params or {}).items() if name not in ("name", "arguments")
        }
        shown = {
            **self.model_dump(include={"method", "body", "body_sha256", "tool", "arguments"}),
            "url": call.url,
            "headers": [{"name": name, "value": value} for name, value in call.headers] or None,
            "params": beside or None,
        }
        return {name: value for name, value in shown.items() if value is not None}

    def by(self, agent: AppId, connection: Connection, server_url: str | None) -> AgentCall:
        """The call as this agent makes it. `server_url`: of the connection's MCP server."""
        is_tool = self.tool is not None
        digest = hashlib.sha256(self.body.encode()).hexdigest() if self.body else None
        params = {**(self.params or {}), "name": self.tool, "arguments": self.arguments}
        return AgentCall(
            agent=agent,
            subject=connection.subject,
            connection=connection.id,
            method=self.method,
            url=self.url or server_url,
            headers=covered_headers(
                ((header.name, header.value) for header in self.headers), of_tool=is_tool
            ),
            body_sha256=digest or self.body_sha256,
            params=covered_params(params) if is_tool else None,
        )


async def call_of(tx: Transaction, call: ApiCall, body: CallBody) -> AgentCall:
    """The call as the caller would make it, with a connection that a permit for calls covers: which requests
    the permit is about is judged when the call is made."""
    if call.caller.session is not None:
        raise invalid_request("connection_id", "A person makes no calls: the agent asks with its own key.")
    connection = await call.visible_connection(tx, body.connection_id)
    calling = [permit for permit in call.caller.permits if not _CALLS.isdisjoint(permit.actions)]
    if not may_see(calling, Target.of(connection), call.now, call.address):
        raise Failure(ErrorCode.NOT_PERMITTED, "This needs the action proxy or token.")
    server_url = None if body.tool is None else await _server_url(tx, call, connection)
    return body.by(call.caller.app.id, connection, server_url)


async def _server_url(tx: Transaction, call: ApiCall, connection: Connection) -> str | None:
    """The connection's MCP server, as the gateway calls it; None for another provider's connection."""
    integration = await tx.integrations.get(call.tenant, connection.integration_id)
    if integration is None:
        return None
    spec = await integration_spec(tx, call.api.registry, integration)
    url = protected_resource_url(spec, integration.params)
    return None if url is None else server_address(url)
