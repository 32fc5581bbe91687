"""What the name of an integration stands for: what a second admin is shown, and approves."""

from contextlib import suppress
from typing import Any

from evergrant_server.access.approvals import fingerprint
from evergrant_server.access.context import integration_spec
from evergrant_server.api.http.call import ApiCall
from evergrant_server.api.integrations.checks import client_key_of
from evergrant_server.api.integrations.models import IntegrationBody
from evergrant_server.core.errors import Failure
from evergrant_server.core.ids import Tenant
from evergrant_server.core.integrations import Endpoints, Integration
from evergrant_server.core.secret import Secret
from evergrant_server.store import Transaction
from providers.definition.registry import Registry
from providers.definition.templates import integration_endpoints

# What a PUT may change without a login of moments ago: no secret, no person and no token goes elsewhere.
_HARMLESS = {
    *("default_scopes", "refresh", "refresh_overrides"),
    *("changed_at", "state", "problem", "endpoints"),  # follow from the rest, and from a worker's reading
}


async def integration_by_name(
    tx: Transaction, registry: Registry, tenant: Tenant, name: str | None
) -> dict[str, Any] | None:
    """The facts of the integration of this name now; None: there is none."""
    there = None if name is None else await tx.integrations.by_name(tenant, name)
    return None if there is None else await integration_facts(tx, registry, there)


async def integration_facts(tx: Transaction, registry: Registry, there: Integration) -> dict[str, Any]:
    """Its id and revision, and where it sends people, codes and secrets."""
    facts = there.model_dump(mode="json", include={"id", "revision", "provider", "issuer", "client_id"})
    return {**facts, "endpoints": await endpoint_urls(tx, registry, there)}


async def endpoint_urls(tx: Transaction, registry: Registry, there: Integration) -> dict[str, str]:
    """The URLs of its endpoints; empty before its issuer's metadata has been read."""
    endpoints: Endpoints | None = None
    with suppress(Failure):
        endpoints = integration_endpoints(await integration_spec(tx, registry, there), there)
    if endpoints is None:
        return {}
    return {name: url for name, url in endpoints.model_dump().items() if isinstance(url, str)}


async def is_dangerous_change(
    tx: Transaction, before: Integration | None, after: Integration, body: IntegrationBody
) -> bool:
    """Whether a PUT does more than change default scopes and refresh rules: what is new under a name is
    as what is changed, since an integration may be deleted first."""
    if before is None or _decisive(before) != _decisive(after):
        return True
    stored = await tx.integrations.client_secret(before)
    if body.client_secret is not None and body.client_secret != stored:
        return True
    key, certificate = client_key_of(body), body.client_certificate
    if key is not None and key != await tx.integrations.client_key(before):
        return True
    return certificate is not None or body.initial_access_token is not None


async def change_facts(
    tx: Transaction, call: ApiCall, before: Integration | None, after: Integration, body: IntegrationBody
) -> dict[str, Any]:
    """What the names of a PUT stand for, where the changed integration sends people and secrets, and
    fingerprints of the secrets in its body."""
    registry, tenant = call.api.registry, call.tenant
    login = None if after.login is None else after.login.integration
    facts: dict[str, Any] = {
        "integration": None if before is None else await integration_facts(tx, registry, before),
        "endpoints": await endpoint_urls(tx, registry, after),
        "login": await integration_by_name(tx, registry, tenant, login),
        "identity_provider": await integration_by_name(tx, registry, tenant, after.identity_provider),
    }
    for name, secret in _secrets(body).items():
        facts[name] = fingerprint(call, secret)
    return facts


def without_secrets(body: IntegrationBody) -> IntegrationBody:
    """The body as an approval may hold it."""
    return body.__replace__(
        client_secret=None, initial_access_token=None, client_key=None, client_certificate=None
    )


def _secrets(body: IntegrationBody) -> dict[str, Secret]:
    """The secrets that the body has, by the names of its members."""
    found = {"client_secret": body.client_secret, "initial_access_token": body.initial_access_token}
    found |= {"client_key": body.client_key and body.client_key.private}
    found |= {"client_certificate": body.client_certificate and body.client_certificate.private}
    return {name: secret for name, secret in found.items() if secret is not None}


def _decisive(integration: Integration) -> dict[str, Any]:
    return integration.model_dump(exclude=_HARMLESS)
