"""`/v1/providers`: the catalogue, the same for everybody who is authenticated."""

from typing import Any

from fastapi import APIRouter

from evergrant_server.api.guards import Asking, With
from evergrant_server.api.views import Page
from providers.spec import ProviderSpec

router = APIRouter(tags=["providers"])


@router.get("/v1/providers")
async def listed(parts: With, caller: Asking) -> Page[dict[str, Any]]:
    """Every provider by name."""
    return Page(items=[_short(spec) for spec in parts.registry.all()])


@router.get("/v1/providers/{provider}")
async def shown(provider: str, parts: With, caller: Asking) -> dict[str, Any]:
    """A provider's definition: only what it says, without the defaults."""
    spec = parts.registry.get(provider)
    return {**_short(spec), "definition": spec.model_dump(mode="json", exclude_defaults=True)}


def _short(spec: ProviderSpec) -> dict[str, Any]:
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
        "revocation": spec.revokes,
    }
