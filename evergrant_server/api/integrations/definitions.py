"""`/v1/providers`: the catalogue, with the tenant's own definitions in place of its entries.

Resolves the definition that an integration uses: the tenant's own before the catalogue's.
"""

from typing import Any

from fastapi import APIRouter

from evergrant_server.access.context import spec_by_name
from evergrant_server.api.http.call import Call
from evergrant_server.api.http.models import Page
from evergrant_server.core.connections.consent import Consent
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import Integration, IntegrationState
from evergrant_server.store import Transaction
from providers.definition.registry import Registry
from providers.definition.schema import ProviderSpec
from providers.definition.templates import integration_endpoints

router = APIRouter(tags=["providers"])


@router.get("/v1/providers")
async def list_providers(call: Call) -> Page[dict[str, Any]]:
    """All providers, sorted by name."""
    found = {spec.name: spec for spec in call.api.registry.all()}
    async with call.api.store.read() as tx:
        for name in await tx.definitions.names(call.tenant):
            versions = await tx.definitions.serving(call.tenant, name)
            if name in found or versions:
                found[name] = call.api.registry.serving(name, versions)
    return Page(items=[_summary(found[name]) for name in sorted(found)])


@router.get("/v1/providers/{provider}")
async def get_provider(provider: str, call: Call) -> dict[str, Any]:
    """A provider's definition, without members that have their default."""
    async with call.api.store.read() as tx:
        spec = await spec_by_name(tx, call.api.registry, call.tenant, provider)
    return {**_summary(spec), "definition": spec.model_dump(mode="json", exclude_defaults=True)}


def _summary(spec: ProviderSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "display_name": spec.display_name,
        "categories": list(spec.categories),
        "docs_url": spec.docs_url,
        "version": spec.version,
        "needs_issuer": spec.discovery and spec.protected_resource is None,
        "params": {name: rule.model_dump(mode="json") for name, rule in spec.template_params.items()},
        "default_scopes": list(spec.default_scopes),
        "client_auth": spec.client_auth.value,
        "revocation": spec.has_revocation,
        "down_scoping": spec.down_scoping,
    }


async def consent_spec(
    tx: Transaction, registry: Registry, integration: Integration, consent: Consent
) -> ProviderSpec:
    """The definition that the consent's attempt started with, while it serves, else the newest one.

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


def require_ready(integration: Integration) -> None:
    """Raise Failure DISCOVERY_FAILED unless the integration's endpoints are known, and CLIENT_REJECTED
    while it has no client."""
    if integration.lacks_client:
        raise Failure(ErrorCode.CLIENT_REJECTED, integration.problem or "", integration=integration.name)
    if integration.state is IntegrationState.FAILED:
        raise Failure(ErrorCode.DISCOVERY_FAILED, integration.problem or "", integration=integration.name)
    if integration.state is IntegrationState.DISCOVERING:
        raise Failure(
            ErrorCode.DISCOVERY_FAILED,
            "The issuer's metadata has not been read yet.",
            retry_after=5.0,
            integration=integration.name,
        )
