"""Where a connection's API is, and how it takes the credential: from the catalogue, never from the caller."""

import re
import time
from contextlib import suppress
from dataclasses import dataclass

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

_Kept = tuple[float, Integration, ProviderSpec]  # with when it was read
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


class ProviderApis:
    """Finds the APIs of connections. What integrations and definitions say is read again after KEPT_S."""

    elapsed = staticmethod(time.monotonic)

    def __init__(self, api: ApiContext) -> None:
        self._api = api
        self._known = Bounded[tuple[Tenant, IntegrationId], tuple[float, Integration, ProviderSpec]](
            _MOST_KEPT
        )

    async def of(self, row: LeaseRow) -> ProviderApi:
        """Raises Failure API_UNKNOWN when the definition names no API, or its address isn't known whole;
        SIGNATURE_NEEDED for tokens that are bound to a key."""
        if row.grant is not None and row.grant.token_type == DPOP_TOKEN_TYPE:
            why = "Its tokens are bound to a key (DPoP): lease one, with a proof for each request."
            raise Failure(ErrorCode.SIGNATURE_NEEDED, why, connection_id=row.connection_id)
        integration, spec = await self._definition(row)
        metadata = row.grant.metadata if row.grant is not None else {}
        base_url = api_base_url_of(spec, integration.params, metadata)
        takes = spec.api_request or ApiRequest()
        if base_url is None or takes.query:
            raise Failure(ErrorCode.API_UNKNOWN, provider=spec.name, connection_id=row.connection_id)
        return ProviderApi(base_url, takes, integration.client_id, spec.api_limits)

    async def mcp_server_of(self, row: LeaseRow) -> ProviderApi:
        """The MCP server that the connection's tokens are for. Raises Failure API_UNKNOWN for another
        provider's connection."""
        integration, spec = await self._definition(row)
        url = protected_resource_url(spec, integration.params)
        if url is None:
            why = f"{spec.name} is no MCP server: call its API at /v1/proxy."
            raise Failure(ErrorCode.API_UNKNOWN, why, provider=spec.name, connection_id=row.connection_id)
        return ProviderApi(url, spec.api_request or ApiRequest(), integration.client_id, spec.api_limits)

    async def method_overrides(self, row: LeaseRow) -> tuple[str, ...]:
        """The names by which the API takes another method than the request's own: none where the definition
        can't be found, which `of` says."""
        with suppress(Failure):
            _, spec = await self._definition(row)
            return (spec.api_request or ApiRequest()).method_overrides
        return ()

    async def _definition(self, row: LeaseRow) -> tuple[Integration, ProviderSpec]:
        key, now = (row.tenant, row.integration_id), self.elapsed()
        known = self._known.get(key)
        if known is not None and now - known[0] < KEPT_S:
            return known[1:]
        async with self._api.store.read() as tx:
            integration = await tx.integrations.get(row.tenant, row.integration_id)
            if integration is None:
                raise Failure(ErrorCode.CLIENT_REJECTED, f"the integration {row.integration} was deleted")
            spec = await integration_spec(tx, self._api.registry, integration)
        self._known[key] = now, integration, spec
        return integration, spec
