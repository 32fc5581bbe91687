"""Definitions and integrations for tests, with only what a test cares about."""

from datetime import UTC, datetime
from typing import Any

from evergrant_server.core.access import Integration
from evergrant_server.core.connections.grant import Grant
from evergrant_server.core.ids import IntegrationId, Tenant
from providers.definition.schema import ProviderSpec

NOW = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)


def spec_like(**fields: Any) -> ProviderSpec:
    """A definition that differs from plain OAuth in these fields."""
    plain = {
        "name": "acme",
        "display_name": "Acme",
        "auth_modes": ["authorization_code"],
        "authorization_endpoint": "https://acme.example/authorize",
        "token_endpoint": "https://acme.example/token",
        "revocation_endpoint": "https://acme.example/revoke",
    }
    return ProviderSpec.model_validate(plain | fields)


def an_integration(provider: str = "acme", **fields: Any) -> Integration:
    plain: dict[str, Any] = {
        "tenant": Tenant("default"),
        "id": IntegrationId("int_1"),
        "name": provider,
        "provider": provider,
        "client_id": "client-1",
        "created_at": NOW,
        "changed_at": NOW,
    }
    return Integration(**(plain | fields))


def a_grant(**fields: Any) -> Grant:
    plain: dict[str, Any] = {
        "generation": 1,
        "scopes": ("read",),
        "obtained_at": NOW,
        "expires_at": None,
        "refreshable": True,
    }
    return Grant(**(plain | fields))
