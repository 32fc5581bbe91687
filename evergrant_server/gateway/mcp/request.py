"""A caller's request to a remote MCP server: what is judged of it, recorded, and sent.

The server's session ids are sealed: what a caller holds is of no use to another caller, nor at the server.
The revisions 2025-03-26 to 2025-11-25 have `Mcp-Session-Id`. Its sealed form names the connection and the
caller that the session belongs to, so no process keeps a table of sessions.
"""

import base64
import binascii
import re
from collections.abc import Iterable
from dataclasses import dataclass

from evergrant_server.core.agents.calls import AgentCall, covered_headers, covered_params
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AppId, ConnectionId, Tenant
from evergrant_server.crypto import AssociatedData, KeyRing, SealingKey, open_sealed, seal
from evergrant_server.gateway.mcp.message import McpMessage
from evergrant_server.gateway.proxy.caller_body import CallerBody
from evergrant_server.gateway.proxy.headers import RawHeaders, plain_name, values_of
from evergrant_server.gateway.proxy.outgoing import as_text, http_call
from evergrant_server.gateway.proxy.provider_api import ProviderApi, ProviderApis
from evergrant_server.gateway.proxy.target import ApiTarget, target_of_server
from evergrant_server.policy import NO_TOOL, ProxiedRequest, method_overrides
from evergrant_server.policy.proxied import MCP_PATH
from evergrant_server.store import LeaseRow

HEADER = b"mcp-session-id"
_MOST_LINE = 200  # characters of method and tool in the audit log
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]")
_OWN = frozenset({HEADER, b"origin"})  # the gateway has read them; the server gets its own session id
_VISIBLE = re.compile(rb"[\x21-\x7e]{1,1024}\Z")  # RFC-visible ASCII, as MCP has it; bounded here
_MOST_SEALED = 4096


def session_key(ring: KeyRing) -> SealingKey:
    """The key of all session ids, which every gateway derives from its key file."""
    return SealingKey("mcp", ring.derive("mcp-session"))


class SessionIds:
    """The ids of one caller's sessions at one connection's server. `principal` names the caller."""

    def __init__(self, key: SealingKey, tenant: Tenant, connection_id: ConnectionId, principal: str) -> None:
        self._key = key
        self._place = AssociatedData(tenant, "mcp-session", connection_id, principal)

    def sealed(self, theirs: bytes) -> bytes:
        """Raises Failure REPLY_UNREADABLE for an id that MCP doesn't allow."""
        if not _VISIBLE.match(theirs):
            raise Failure(ErrorCode.REPLY_UNREADABLE, "The server's session id has characters of no header.")
        return base64.urlsafe_b64encode(seal(self._key, self._place, theirs)).rstrip(b"=")

    def opened(self, ours: bytes) -> bytes:
        """Raises Failure NOT_FOUND for an id that was altered, or is another caller's: begin a session."""
        try:
            if len(ours) > _MOST_SEALED:
                raise ValueError
            sealed = base64.b64decode(ours + b"=" * (-len(ours) % 4), altchars=b"-_", validate=True)
            return open_sealed(self._key, self._place, sealed)
        except (Failure, binascii.Error, ValueError):
            raise Failure(ErrorCode.NOT_FOUND, "No session of yours: initialize again.") from None


@dataclass
class McpRequest:
    """One HTTP request of MCP. Its path is `/` for permits that name paths."""

    http_method: str
    query: bytes
    caller_headers: RawHeaders
    body: CallerBody
    message: McpMessage
    sessions: SessionIds
    _session: bytes | None = None  # the server's

    @property
    def line(self) -> str:
        named = f"{self.http_method} {MCP_PATH} {self.message.method} {self.message.tool or ''}".rstrip()
        return _UNPRINTABLE.sub("?", named)[:_MOST_LINE]

    @property
    def method(self) -> str:
        return self.http_method

    def judged(self, own_overrides: Iterable[str]) -> ProxiedRequest:
        overrides = method_overrides(self.query, self.caller_headers, self.body.kept(), own_overrides)
        return ProxiedRequest(self.http_method, "/", self.message.tool, overrides)

    async def target(self, apis: ProviderApis, row: LeaseRow) -> tuple[ProviderApi, ApiTarget]:
        """Raises Failure API_UNKNOWN for a connection that isn't to an MCP server, NOT_FOUND for a session
        that isn't the caller's."""
        server = await apis.mcp_server_of(row)
        self._session = self._open_session()
        return server, target_of_server(server.base_url, self.query)

    def _open_session(self) -> bytes | None:
        session_ids = values_of(HEADER, self.caller_headers)
        if not session_ids or self.message.is_modern:
            return None
        if len(session_ids) > 1:
            raise Failure(ErrorCode.INVALID_REQUEST, "Two sessions are named.", field="Mcp-Session-Id")
        return self.sessions.opened(session_ids[0])

    def headers(self) -> RawHeaders:
        passed = [(name, value) for name, value in self.caller_headers if plain_name(name) not in _OWN]
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

    def answer_headers(self, headers: RawHeaders) -> RawHeaders:
        """Raises Failure REPLY_UNREADABLE."""
        return [
            (name, self.sessions.sealed(value) if name.lower() == HEADER else value)
            for name, value in headers
        ]
