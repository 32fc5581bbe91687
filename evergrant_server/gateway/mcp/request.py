"""A caller's request to a remote MCP server: what is judged of it, recorded, and sent."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from evergrant_server.core.agents.calls import AgentCall, covered_headers, covered_params
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AppId
from evergrant_server.gateway.mcp.message import McpMessage
from evergrant_server.gateway.mcp.sessions import HEADER, SessionIds
from evergrant_server.gateway.proxy.caller_body import CallerBody
from evergrant_server.gateway.proxy.headers import RawHeaders, plain_name, values_of
from evergrant_server.gateway.proxy.outgoing import as_text, http_call
from evergrant_server.gateway.proxy.provider_api import ProviderApi, ProviderApis
from evergrant_server.gateway.proxy.target import ApiTarget, target_of_server
from evergrant_server.policy import NO_TOOL, ProxiedRequest, method_overrides
from evergrant_server.store import LeaseRow

_MOST_LINE = 200  # characters of method and tool in the audit log
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]")
_OWN = frozenset({HEADER, b"origin"})  # the gateway has read them; the server gets its own session id


@dataclass
class McpRequest:
    """One HTTP request of MCP. Its path is `/` for permits that name paths."""

    http_method: str
    query: bytes
    given: RawHeaders
    body: CallerBody
    message: McpMessage
    sessions: SessionIds
    _session: bytes | None = None  # the server's

    @property
    def line(self) -> str:
        named = f"{self.http_method} /mcp {self.message.method} {self.message.tool or ''}".rstrip()
        return _UNPRINTABLE.sub("?", named)[:_MOST_LINE]

    @property
    def method(self) -> str:
        return self.http_method

    def judged(self, own_overrides: Iterable[str]) -> ProxiedRequest:
        overrides = method_overrides(self.query, self.given, self.body.kept(), own_overrides)
        return ProxiedRequest(self.http_method, "/", self.message.tool, overrides)

    async def target(self, apis: ProviderApis, row: LeaseRow) -> tuple[ProviderApi, ApiTarget]:
        """Raises Failure API_UNKNOWN for a connection that isn't to an MCP server, NOT_FOUND for a session
        that isn't the caller's."""
        server = await apis.mcp_server_of(row)
        self._session = self._open_session()
        return server, target_of_server(server.base_url, self.query)

    def _open_session(self) -> bytes | None:
        given = values_of(HEADER, self.given)
        if not given or self.message.is_modern:
            return None
        if len(given) > 1:
            raise Failure(ErrorCode.INVALID_REQUEST, "Two sessions are named.", field="Mcp-Session-Id")
        return self.sessions.opened(given[0])

    def headers(self) -> RawHeaders:
        passed = [(name, value) for name, value in self.given if plain_name(name) not in _OWN]
        return passed if self._session is None else [*passed, (HEADER, self._session)]

    def call_to_approve(
        self, agent: AppId, row: LeaseRow, target: ApiTarget, passed: RawHeaders
    ) -> AgentCall | None:
        """The tool with its params; another message by its bytes, in any session; the protocol's own pass."""
        if self.message.tool == NO_TOOL:
            return None
        if self.message.tool is None or self.message.params is None:
            passed = [(name, value) for name, value in passed if name.lower() != HEADER]
            return http_call(agent, row, self.http_method, target, passed, self.body)
        return AgentCall(
            agent=agent,
            subject=row.subject,
            connection=row.connection_id,
            url=target.url,
            headers=covered_headers(as_text(passed), of_tool=True),
            params=covered_params(self.message.params),
        )

    def answer_headers(self, given: RawHeaders) -> RawHeaders:
        """Raises Failure REPLY_UNREADABLE."""
        return [
            (name, self.sessions.sealed(value) if name.lower() == HEADER else value) for name, value in given
        ]
