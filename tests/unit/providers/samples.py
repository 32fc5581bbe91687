"""Definitions, integrations and replies for tests, with only the fields that a test needs."""

import json
from datetime import UTC, datetime
from typing import Any

from evergrant_server.core.ids import IntegrationId, Tenant
from evergrant_server.core.integrations import Integration
from providers.definition.schema import ProviderSpec
from providers.responses.raw_reply import RawReply
from tests.fakes.failures import fails as fails

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


def reply_of(body: Any, status: int = 200, **headers: str) -> RawReply:
    """A reply with these bytes, or with this JSON. Underscores in header names are hyphens."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return RawReply(status, named, body if isinstance(body, bytes) else json.dumps(body).encode())
