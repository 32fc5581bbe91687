"""Which definition answers: a tenant's own version before the catalogue's."""

from evergrant_server.core.access import Integration
from evergrant_server.core.connections.consent import Consent
from evergrant_server.core.ids import Tenant
from evergrant_server.store import Transaction
from providers.definition.registry import Registry
from providers.definition.schema import ProviderSpec
from providers.definition.templates import integration_endpoints


async def spec_by_name(tx: Transaction, registry: Registry, tenant: Tenant, provider: str) -> ProviderSpec:
    """What answers for every connection of a provider. Raises Failure PROVIDER_UNKNOWN."""
    return registry.serving(provider, await tx.definitions.serving(tenant, provider))


async def integration_spec(tx: Transaction, registry: Registry, integration: Integration) -> ProviderSpec:
    """As `spec_named`, for an integration."""
    return await spec_by_name(tx, registry, integration.tenant, integration.provider)


async def consent_spec(
    tx: Transaction, registry: Registry, integration: Integration, consent: Consent
) -> ProviderSpec:
    """What answers for a consent: the version that its browser left with, while that still serves.

    Raises Failure PROVIDER_UNKNOWN.
    """
    versions = await tx.definitions.serving(integration.tenant, integration.provider)
    answering = [
        spec for spec, _ in registry.candidates(integration.provider, versions, consent.connection_id)
    ]
    if consent.token_endpoint is None:
        return answering[0]
    left_with = (
        it
        for it in answering
        if integration_endpoints(it, integration).token_endpoint == consent.token_endpoint
    )
    return next(left_with, answering[0])
