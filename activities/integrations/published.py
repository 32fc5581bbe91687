"""Reads what an integration's issuer publishes now; of a protected resource also which issuer that is."""

from dataclasses import dataclass

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import Endpoints, Integration
from evergrant_server.egress import Egress
from evergrant_server.store import Store
from providers.definition.registry import Registry
from providers.definition.schema import ProviderSpec
from providers.definition.templates import definition_endpoints, protected_resource_url
from providers.registration.discovery import discover
from providers.registration.protected_resource import ProtectedResource, discover_resource


class IssuerMoved(Failure):
    """The resource takes tokens of other issuers than the pinned one, whose client and tokens stay there."""

    def __init__(self, resource: ProtectedResource, pinned: str) -> None:
        detail = f"{resource.resource} takes tokens of {resource.issuers[0]}, and not of {pinned}"
        super().__init__(ErrorCode.DISCOVERY_FAILED, detail[:500], issuer=pinned)


@dataclass(frozen=True)
class PublishedEndpoints:
    """What is at the issuer, or in the definition of a provider whose host an integration names."""

    store: Store
    registry: Registry
    egress: Egress

    @property
    def resource_providers(self) -> tuple[str, ...]:
        """The catalogue's providers whose integrations name a protected resource."""
        return tuple(spec.name for spec in self.registry.all() if spec.protected_resource is not None)

    async def read(self, integration: Integration) -> tuple[Endpoints, tuple[str, ...]]:
        """The endpoints, and the definition's quirks of a registration there.

        Raises the Failure of `discover` and `discover_resource`, IssuerMoved, and DISCOVERY_FAILED for an
        issuer where an identity provider can grant no access.
        """
        endpoints, quirks = await self._read(integration)
        if integration.identity_provider is not None and endpoints.takes_id_jags is False:
            why = f"{endpoints.issuer} takes no grants of identity providers (ID-JAG)"
            raise Failure(ErrorCode.DISCOVERY_FAILED, why)
        return endpoints, quirks

    async def _read(self, integration: Integration) -> tuple[Endpoints, tuple[str, ...]]:
        spec = await self._spec(integration)
        if (url := protected_resource_url(spec, integration.params)) is not None:
            return await self._of_resource(url, integration), ()
        if integration.issuer is not None:
            return await discover(self.egress, integration.issuer), ()
        endpoints = definition_endpoints(spec, integration.params)
        return endpoints.__replace__(token_auth_methods=(spec.client_auth.value,)), spec.quirks

    async def _of_resource(self, url: str, integration: Integration) -> Endpoints:
        """The endpoints of the issuer whose tokens the resource takes; the pinned one while it is listed."""
        resource = await discover_resource(self.egress, url)
        pinned = integration.authorization_server
        if pinned is not None and pinned not in resource.issuers:
            raise IssuerMoved(resource, pinned)
        issuer = pinned or resource.issuers[0]
        endpoints = await discover(self.egress, issuer, require_pkce=True)
        scopes = tuple(it for it in resource.scopes if it != "offline_access" or endpoints.offline_access)
        return endpoints.__replace__(resource=resource.resource, resource_scopes=scopes)

    async def _spec(self, integration: Integration) -> ProviderSpec:
        async with self.store.read() as tx:
            versions = await tx.definitions.serving(integration.tenant, integration.provider)
        return self.registry.serving(integration.provider, versions)
