"""Where a connection's API is, and how it takes the credential: from the catalogue, never from the caller."""

import re
import time
from contextlib import suppress
from dataclasses import dataclass, field

from evergrant_server.access.context import ApiContext, integration_spec
from evergrant_server.core.api_limits.limits import DocumentedQuota
from evergrant_server.core.bounded import Bounded
from evergrant_server.core.connections.credentials import DPOP_TOKEN_TYPE
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import IntegrationId, Tenant
from evergrant_server.core.integrations import Integration
from evergrant_server.core.secret import Secret
from evergrant_server.store import LeaseRow
from providers.definition.schema import ProviderSpec
from providers.definition.schema_response import ApiRequest
from providers.definition.templates import api_base_url_of, protected_resource_url

KEPT_S = 5.0
_MOST_KEPT = 10_000

_HEADER_SAFE = re.compile(r"[\x21-\x7e]+\Z")


@dataclass(frozen=True)
class ProviderApi:
    """The API of a connection. `client_id` is the integration's: a header of some APIs has it."""

    base_url: str
    takes: ApiRequest
    client_id: str
    limits: tuple[DocumentedQuota, ...] = ()

    @property
    def credential_names(self) -> list[bytes]:
        """The names of the headers that `credential` makes."""
        return [name.encode() for name in (self.takes.auth_header, *self.takes.headers)]

    def credential(self, token: Secret) -> list[tuple[bytes, bytes]]:
        """The headers that authenticate a request. Raises Failure REPLY_UNREADABLE for a token that no header
        can hold."""
        secret = token.reveal()
        if not _HEADER_SAFE.match(secret):
            raise Failure(ErrorCode.REPLY_UNREADABLE, "The token has characters that no header can hold.")
        value = f"{self.takes.auth_scheme} {secret}".strip()
        named = {
            name: template.replace("{client_id}", self.client_id)
            for name, template in self.takes.headers.items()
        }
        headers = {self.takes.auth_header: value, **named}
        return [(name.encode(), content.encode()) for name, content in headers.items()]


@dataclass
class _Known:
    """An integration and its definition, when they were read, and what was made of them."""

    read_at: float
    integration: Integration
    spec: ProviderSpec
    takes: ApiRequest = field(init=False)
    api: ProviderApi | None = None
    server: ProviderApi | None = None

    def __post_init__(self) -> None:
        self.takes = self.spec.api_request or ApiRequest()

    def at(self, url: str) -> ProviderApi:
        return ProviderApi(url, self.takes, self.integration.client_id, self.spec.api_limits)


class ProviderApis:
    """Finds the APIs of connections. What integrations and definitions say is read again after KEPT_S."""

    elapsed = staticmethod(time.monotonic)

    def __init__(self, api: ApiContext) -> None:
        self._api = api
        self._known = Bounded[tuple[Tenant, IntegrationId], _Known](_MOST_KEPT)

    async def of(self, row: LeaseRow) -> ProviderApi:
        """Raises Failure API_UNKNOWN when the definition names no API, or its address isn't known whole;
        SIGNATURE_NEEDED for tokens that are bound to a key."""
        if row.grant is not None and row.grant.token_type == DPOP_TOKEN_TYPE:
            why = "Its tokens are bound to a key (DPoP): lease one, with a proof for each request."
            raise Failure(ErrorCode.SIGNATURE_NEEDED, why, connection_id=row.connection_id)
        known = await self._definition(row)
        metadata = row.grant.metadata if row.grant is not None else {}
        if known.api is not None and not metadata:
            return known.api
        base_url = api_base_url_of(known.spec, known.integration.params, metadata)
        if base_url is None or known.takes.query:
            raise Failure(ErrorCode.API_UNKNOWN, provider=known.spec.name, connection_id=row.connection_id)
        api = known.at(base_url)
        if not metadata:
            known.api = api
        return api

    async def mcp_server_of(self, row: LeaseRow) -> ProviderApi:
        """The MCP server that the connection's tokens are for. Raises Failure API_UNKNOWN for another
        provider's connection."""
        known = await self._definition(row)
        if known.server is None:
            url = protected_resource_url(known.spec, known.integration.params)
            if url is None:
                why = f"{known.spec.name} is no MCP server: call its API at /v1/proxy."
                where = {"provider": known.spec.name, "connection_id": row.connection_id}
                raise Failure(ErrorCode.API_UNKNOWN, why, **where)
            known.server = known.at(url)
        return known.server

    async def method_overrides(self, row: LeaseRow) -> tuple[str, ...]:
        """The names by which the API takes another method than the request's own: none where the definition
        can't be found, which `of` says."""
        with suppress(Failure):
            return (await self._definition(row)).takes.method_overrides
        return ()

    async def _definition(self, row: LeaseRow) -> _Known:
        key, now = (row.tenant, row.integration_id), self.elapsed()
        known = self._known.get(key)
        if known is not None and now - known.read_at < KEPT_S:
            return known
        async with self._api.store.read() as tx:
            integration = await tx.integrations.get(row.tenant, row.integration_id)
            if integration is None:
                raise Failure(ErrorCode.CLIENT_REJECTED, f"the integration {row.integration} was deleted")
            spec = await integration_spec(tx, self._api.registry, integration)
        self._known[key] = _Known(now, integration, spec)
        return self._known[key]
