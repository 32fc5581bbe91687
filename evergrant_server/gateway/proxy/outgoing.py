"""What a call asks for: a path of a provider's API, or (`gateway.mcp`) a message to an MCP server."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from evergrant_server.core.agents.calls import AgentCall, Header, covered_headers
from evergrant_server.core.ids import AppId
from evergrant_server.gateway.proxy.caller_body import CallerBody
from evergrant_server.gateway.proxy.headers import RawHeaders
from evergrant_server.gateway.proxy.provider_api import ProviderApi, ProviderApis
from evergrant_server.gateway.proxy.target import ApiTarget, CallerPath, target_of_call
from evergrant_server.policy import ProxiedRequest
from evergrant_server.store import LeaseRow


class Outgoing(Protocol):
    """One request of a caller, as it is judged, recorded and sent."""

    @property
    def line(self) -> str:
        """What the audit log says of it: no query, which may hold secrets, and no arguments."""
        ...

    @property
    def method(self) -> str: ...

    @property
    def query(self) -> bytes: ...

    def judged(self, own_overrides: Iterable[str]) -> ProxiedRequest:
        """The request as permits judge it; the names are those by which its API takes another method."""
        ...

    async def target(self, apis: ProviderApis, row: LeaseRow) -> tuple[ProviderApi, ApiTarget]:
        """Where it goes. Raises Failure for a request that can't be sent with this connection."""
        ...

    def headers(self) -> RawHeaders:
        """The caller's headers, before the credential is put in. `target` comes first."""
        ...

    def call_to_approve(
        self, agent: AppId, row: LeaseRow, target: ApiTarget, passed: RawHeaders
    ) -> AgentCall | None:
        """What a person has to approve where a permit demands it; None: nothing. `passed`: the caller's
        headers that go on."""
        ...

    def answer_headers(self, headers: RawHeaders) -> RawHeaders:
        """The server's headers, before those that never reach a caller are left out."""
        ...


@dataclass(frozen=True)
class PathRequest:
    """A request to the provider's API: the path behind its base URL, as the caller sent it."""

    path: CallerPath
    caller_headers: RawHeaders
    body: CallerBody

    @property
    def line(self) -> str:
        return self.path.line

    @property
    def method(self) -> str:
        return self.path.method

    @property
    def query(self) -> bytes:
        return self.path.query

    def judged(self, own_overrides: Iterable[str]) -> ProxiedRequest:
        return self.path.judged(self.caller_headers, self.body.kept(), own_overrides)

    async def target(self, apis: ProviderApis, row: LeaseRow) -> tuple[ProviderApi, ApiTarget]:
        api = await apis.of(row)
        return api, target_of_call(api.base_url, self.path, hidden_slashes=api.takes.encoded_slashes)

    def headers(self) -> RawHeaders:
        return self.caller_headers

    def call_to_approve(
        self, agent: AppId, row: LeaseRow, target: ApiTarget, passed: RawHeaders
    ) -> AgentCall:
        return http_call(agent, row, self.method, target, passed, self.body)

    def answer_headers(self, headers: RawHeaders) -> RawHeaders:
        return headers


def http_call(
    agent: AppId, row: LeaseRow, method: str, target: ApiTarget, passed: RawHeaders, body: CallerBody
) -> AgentCall:
    """A call by method, URL, headers and body. Raises Failure CALL_APPROVAL_REQUIRED for a body that is too
    long."""
    return AgentCall(
        agent=agent,
        subject=row.subject,
        connection=row.connection_id,
        method=method,
        url=target.url,
        headers=covered_headers(as_text(passed)),
        body_sha256=body.digest(),
    )


def as_text(headers: RawHeaders) -> list[Header]:
    """Each byte is one character, so that no two headers become the same."""
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]
