"""The rows of new and changed integrations, and what a second admin is shown of a change, and approves.

The endpoints that secrets are sent to never change while connections are live.
"""

from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

from evergrant_server.access.approvals import fingerprint
from evergrant_server.access.context import integration_spec
from evergrant_server.api.http.call import ApiCall
from evergrant_server.api.integrations.checks import (
    NO_CERTIFICATE,
    client_certificate_of,
    client_key_of,
    has_client,
    require_credentials,
    require_nonempty,
)
from evergrant_server.api.integrations.models import IntegrationBody, RotateSecretBody
from evergrant_server.core.connections.credentials import ClientKey
from evergrant_server.core.connections.login import LoginRule
from evergrant_server.core.errors import Failure
from evergrant_server.core.ids import IntegrationId, Tenant, new_id
from evergrant_server.core.integrations import (
    NO_CLIENT,
    Endpoints,
    Integration,
    IntegrationState,
    RegistrationMethod,
)
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.outbox import retry_integration_message
from evergrant_server.core.secret import Secret
from evergrant_server.problems import invalid_request
from evergrant_server.store import Transaction
from providers.definition.registry import Registry
from providers.definition.schema import ProviderSpec
from providers.definition.schema_request import MUTUAL_TLS, ClientAuth
from providers.definition.templates import integration_endpoints

_AS_SENT = {  # members of a body that the row has too
    *("issuer", "params", "client_auth", "registration", "dpop", "default_scopes", "scope_ceiling"),
    *("binding", "on_reconnect", "after_grant_over", "identity_provider"),
}
# What a PUT may change without a login of moments ago: no secret, no person and no token goes elsewhere.
_HARMLESS = {
    *("default_scopes", "refresh", "refresh_overrides"),
    *("changed_at", "state", "problem", "endpoints"),  # follow from the rest, and from a worker's reading
}


def new_integration(
    spec: ProviderSpec,
    body: IntegrationBody,
    login: LoginRule | None,
    tenant: Tenant,
    name: str,
    now: datetime,
) -> Integration:
    """A new integration; `login` is pinned. Raises Failure INVALID_REQUEST without the secret that its
    provider needs."""
    if has_client(body):
        require_credentials(spec, body)
    discover = spec.discovery or body.registration
    blank = Integration(
        tenant=tenant,
        id=IntegrationId(new_id("int")),
        name=name,
        provider=spec.name,
        client_id=body.client_id or "",
        state=IntegrationState.DISCOVERING if discover else IntegrationState.READY,
        created_at=now,
        changed_at=now,
    )
    return _with_body(spec, body, blank, login, now)


async def changed_integration(
    tx: Transaction,
    spec: ProviderSpec,
    body: IntegrationBody,
    login: LoginRule | None,
    before: Integration,
    now: datetime,
) -> Integration:
    """The integration with the body's members; `login` is pinned.

    Another provider, issuer or parameter changes where tokens and secrets are sent: then no connection
    may be live, and the body must contain the secret again. Raises Failure INVALID_REQUEST.
    """
    moves = (body.provider, body.issuer, body.params) != (before.provider, before.issuer, before.params)
    await tx.integrations.lock_against_use(before)
    unused = not await tx.connections.any_live(before.tenant, before.id)
    if moves and not unused:
        why = "Connections are live: provider, issuer and params can't change under them. Use a new name."
        raise invalid_request("provider", why)
    again = spec.protected_resource is not None and unused  # whose issuer may be another one by now
    if body.registration is not None:
        after = _with_registration(spec, body, login, before, moves, now)
        return after.__replace__(state=IntegrationState.DISCOVERING) if again else after
    await _require_client(tx, spec, body, before, moves=moves)
    another = again and body.client_id != before.client_id
    discover = spec.discovery and (moves or again or before.state is not IntegrationState.READY)
    return _with_body(
        spec,
        body,
        before.__replace__(
            provider=spec.name,
            client_id=body.client_id or "",
            registration=None,
            state=IntegrationState.DISCOVERING if discover else IntegrationState.READY,
            problem=None,
            endpoints=before.endpoints if spec.discovery and not (moves or another) else None,
        ),
        login,
        now,
    )


async def _require_client(
    tx: Transaction, spec: ProviderSpec, body: IntegrationBody, before: Integration, *, moves: bool
) -> None:
    """Raise Failure INVALID_REQUEST for a client without the credentials that it needs now."""
    if before.lacks_client and has_client(body):
        require_credentials(spec, body)
    if not has_client(body) and not before.lacks_client:
        raise invalid_request("client_id", "Give a client id, or a registration.")
    if moves or (body.client_id or "") != before.client_id:
        await _require_credentials_again(tx, body, before)
    presents = ClientAuth(body.client_auth or spec.client_auth) in MUTUAL_TLS
    if presents and before.client_certificate_expires_at is None and body.client_certificate is None:
        raise invalid_request("client_certificate", NO_CERTIFICATE)


async def _require_credentials_again(tx: Transaction, body: IntegrationBody, before: Integration) -> None:
    """Raise Failure INVALID_REQUEST for a stored credential that the body of another client leaves out."""
    stored = {
        "client_secret": await tx.integrations.client_secret(before),
        "client_key": await tx.integrations.client_key(before),
        "client_certificate": before.client_certificate_expires_at,
    }
    for field, credential in stored.items():
        if credential and getattr(body, field) is None:
            named = field.replace("_", " ")
            why = f"Give the {named} again: the stored one belongs to the previous client."
            raise invalid_request(field, why)


def _with_registration(
    spec: ProviderSpec,
    body: IntegrationBody,
    login: LoginRule | None,
    before: Integration,
    moves: bool,
    now: datetime,
) -> Integration:
    """The integration with a registration: the existing one, unless it was at another issuer."""
    kept = before.registration is body.registration and not moves and before.state is IntegrationState.READY
    if kept:
        return _with_body(spec, body, before, login, now).__replace__(client_auth=before.client_auth)
    return _with_body(
        spec,
        body,
        before.__replace__(
            provider=spec.name,
            client_id="",
            state=IntegrationState.DISCOVERING,
            problem=None,
            endpoints=None if moves else before.endpoints,
        ),
        login,
        now,
    )


async def change_client_secret(
    tx: Transaction, before: Integration, body: RotateSecretBody, now: datetime
) -> Integration:
    """Rotate or roll back the client secret, or the key that signs. Raises Failure INVALID_REQUEST."""
    if [body.roll_back, body.client_secret is not None, body.client_key is not None].count(True) != 1:
        raise invalid_request("client_secret", "Give one of a client secret, a client key and roll_back.")
    new = client_key_of(body) if body.client_secret is None else body.client_secret
    stored: Secret | ClientKey | None = await tx.integrations.client_secret(before)
    if isinstance(new, ClientKey) or (stored is None and new is None):
        stored = await tx.integrations.client_key(before)
    if before.client_auth == ClientAuth.NONE or stored is None:
        what = "key" if isinstance(new, ClientKey) else "secret"
        raise invalid_request(f"client_{what}", f"A client without a {what} has none to rotate.")
    after = before.__replace__(changed_at=now)
    if new is None:
        return await tx.integrations.restore_previous_secret(after, expected=before.revision)
    if isinstance(new, Secret):
        require_nonempty(new)
    if new == stored:
        return before  # a repeated request: the overlap stays
    until = now + timedelta(seconds=body.overlap_s)
    return await tx.integrations.rotate_secret(after, new, until=until, expected=before.revision)


async def retry_failing_connections(
    tx: Transaction, integration: Integration, context: RequestContext, now: datetime
) -> None:
    """Have a worker tell every failing connection of the integration to try again."""
    if (await tx.connections.failing(integration.tenant, integration.id, limit=1)).last is not None:
        await tx.outbox.add(retry_integration_message(integration, context, now))


def _with_body(
    spec: ProviderSpec,
    body: IntegrationBody,
    integration: Integration,
    login: LoginRule | None,
    now: datetime,
) -> Integration:
    overrides = body.refresh.model_dump(mode="json", exclude_none=True)
    update = body.model_dump(include=_AS_SENT) | {"refresh_overrides": overrides, "changed_at": now}
    update["login"] = login
    if body.registration is RegistrationMethod.METADATA_DOCUMENT:
        update["client_auth"] = "none"
    if not has_client(body):
        update["problem"] = NO_CLIENT
        if integration.state is not IntegrationState.DISCOVERING:  # else a worker checks the issuer first
            update["state"] = IntegrationState.FAILED
    return integration.__replace__(**update).with_provider_rules(spec.refresh_rules())


async def integration_by_name(
    tx: Transaction, registry: Registry, tenant: Tenant, name: str | None
) -> dict[str, Any] | None:
    """The facts of the integration of this name now; None: there is none."""
    integration = None if name is None else await tx.integrations.by_name(tenant, name)
    return None if integration is None else await integration_facts(tx, registry, integration)


async def integration_facts(tx: Transaction, registry: Registry, integration: Integration) -> dict[str, Any]:
    """Its id and revision, and where it sends people, codes and secrets."""
    facts = integration.model_dump(mode="json", include={"id", "revision", "provider", "issuer", "client_id"})
    return {**facts, "endpoints": await endpoint_urls(tx, registry, integration)}


async def endpoint_urls(tx: Transaction, registry: Registry, integration: Integration) -> dict[str, str]:
    """The URLs of its endpoints; empty before its issuer's metadata has been read."""
    endpoints: Endpoints | None = None
    with suppress(Failure):
        endpoints = integration_endpoints(await integration_spec(tx, registry, integration), integration)
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
    if body.client_certificate is not None or body.initial_access_token is not None:
        return True
    return any((await changed_secrets(tx, before, body)).values())


async def changed_secrets(
    tx: Transaction, before: Integration, body: IntegrationBody, now: datetime | None = None
) -> dict[str, bool]:
    """Which secrets of the body are others than the stored ones; with `now` also its certificate. An initial
    access token, which is kept until it was used, never is."""
    key, secret = client_key_of(body), body.client_secret
    changed = {
        "client_secret": secret is not None and secret != await tx.integrations.client_secret(before),
        "client_key": key is not None and key != await tx.integrations.client_key(before),
    }
    if now is not None and body.client_certificate is not None:
        stored = (await tx.integrations.sealed_client(before)).certificate()
        changed["client_certificate"] = client_certificate_of(body, now) != stored
    return changed


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
    for name, secret in secrets_of(body).items():
        facts[name] = fingerprint(call, secret)
    return facts


def without_secrets(body: IntegrationBody) -> IntegrationBody:
    """The body as an approval may hold it."""
    return body.__replace__(
        client_secret=None, initial_access_token=None, client_key=None, client_certificate=None
    )


def secrets_of(body: IntegrationBody) -> dict[str, Secret]:
    """The secrets that the body has, by the names of its members."""
    secrets = {"client_secret": body.client_secret, "initial_access_token": body.initial_access_token}
    secrets |= {"client_key": body.client_key and body.client_key.private}
    secrets |= {"client_certificate": body.client_certificate and body.client_certificate.private}
    return {name: secret for name, secret in secrets.items() if secret is not None}


def _decisive(integration: Integration) -> dict[str, Any]:
    return integration.model_dump(exclude=_HARMLESS)
