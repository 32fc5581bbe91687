"""Which definition answers: a tenant's own version before the catalogue's."""

from evergrant_server.core.access import Integration
from evergrant_server.core.consent import Consent
from evergrant_server.core.ids import Tenant
from evergrant_server.store import Tx
from providers.authorization import endpoints_for
from providers.registry import Registry
from providers.spec import ProviderSpec


async def spec_named(tx: Tx, registry: Registry, tenant: Tenant, provider: str) -> ProviderSpec:
    """What answers for every connection of a provider. Raises Failure PROVIDER_UNKNOWN."""
    return registry.spec(provider, await tx.definitions.serving(tenant, provider))


async def spec_of(tx: Tx, registry: Registry, integration: Integration) -> ProviderSpec:
    """As `spec_named`, for an integration."""
    return await spec_named(tx, registry, integration.tenant, integration.provider)


async def spec_for(tx: Tx, registry: Registry, integration: Integration, consent: Consent) -> ProviderSpec:
    """What answers for a consent: the version that its browser left with, while that still serves.

    Raises Failure PROVIDER_UNKNOWN.
    """
    versions = await tx.definitions.serving(integration.tenant, integration.provider)
    answering = [spec for spec, _ in registry.chosen(integration.provider, versions, consent.connection_id)]
    if consent.token_endpoint is None:
        return answering[0]
    left_with = (
        it for it in answering if endpoints_for(it, integration).token_endpoint == consent.token_endpoint
    )
    return next(left_with, answering[0])
