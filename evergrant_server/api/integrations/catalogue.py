"""`/v1/providers`: the catalogue, with the tenant's own definitions in place of its entries."""

from typing import Any

from fastapi import APIRouter

from evergrant_server.api.http.dependencies import ApiDep, CallerDep
from evergrant_server.api.http.responses import Page
from evergrant_server.api.integrations.definitions import spec_by_name
from providers.definition.schema import ProviderSpec

router = APIRouter(tags=["providers"])


@router.get("/v1/providers")
async def list_providers(api: ApiDep, caller: CallerDep) -> Page[dict[str, Any]]:
    """All providers, sorted by name."""
    found = {spec.name: spec for spec in api.registry.all()}
    async with api.store.read() as tx:
        for name in await tx.definitions.names(caller.tenant):
            versions = await tx.definitions.serving(caller.tenant, name)
            if name in found or versions:
                found[name] = api.registry.serving(name, versions)
    return Page(items=[_summary(found[name]) for name in sorted(found)])


@router.get("/v1/providers/{provider}")
async def get_provider(provider: str, api: ApiDep, caller: CallerDep) -> dict[str, Any]:
    """A provider's definition, without members that have their default."""
    async with api.store.read() as tx:
        spec = await spec_by_name(tx, api.registry, caller.tenant, provider)
    return {**_summary(spec), "definition": spec.model_dump(mode="json", exclude_defaults=True)}


def _summary(spec: ProviderSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "display_name": spec.display_name,
        "categories": list(spec.categories),
        "docs_url": spec.docs_url,
        "version": spec.version,
        "needs_issuer": spec.discovery,
        "params": {name: rule.model_dump(mode="json") for name, rule in spec.template_params.items()},
        "default_scopes": list(spec.default_scopes),
        "client_auth": spec.client_auth.value,
        "revocation": spec.has_revocation,
    }
