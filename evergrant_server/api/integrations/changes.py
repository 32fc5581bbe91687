"""New and changed integrations: checks of the body against the definition, and the resulting rows.

The endpoints that secrets are sent to never change while connections are live.
"""

from datetime import datetime, timedelta

from evergrant_server.api.http.context import ApiContext
from evergrant_server.api.http.problems import invalid_request
from evergrant_server.api.integrations.logins import login_rule
from evergrant_server.api.integrations.models import IntegrationBody, RotateSecretBody
from evergrant_server.core.connections.binding import Binding
from evergrant_server.core.connections.credentials import ClientCertificate, ClientKey
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import IntegrationId, Tenant, new_id
from evergrant_server.core.integrations import Integration, IntegrationState, RegistrationMethod
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.outbox import retry_integration_message
from evergrant_server.core.secret import Secret
from evergrant_server.policy import scopes_above
from evergrant_server.store import Transaction
from providers.client_auth import import_signing_key, parse_client_certificate
from providers.definition.schema import ProviderSpec
from providers.definition.schema_request import MUTUAL_TLS, ClientAuth
from providers.definition.templates import definition_endpoints

UNBOUND_SETTING = "EVERGRANT_ALLOW_UNBOUND_CONSENT"
_AUTH_WITHOUT_SECRET = (ClientAuth.NONE, ClientAuth.PRIVATE_KEY_JWT, *MUTUAL_TLS)
_NO_CERTIFICATE = "A client certificate is needed to present."


def new_integration(
    spec: ProviderSpec, body: IntegrationBody, tenant: Tenant, name: str, now: datetime
) -> Integration:
    """A new integration. Raises Failure INVALID_REQUEST without the secret that its provider needs."""
    method = ClientAuth(body.client_auth or spec.client_auth)
    signs_secret = spec.client_secret_generator is not None
    if method is ClientAuth.PRIVATE_KEY_JWT and body.client_key is None:
        raise invalid_request("client_key", "A client key is needed to sign with.")
    if method in MUTUAL_TLS and body.client_certificate is None:
        raise invalid_request("client_certificate", _NO_CERTIFICATE)
    if signs_secret and body.client_key is None:
        raise invalid_request("client_key", "A client key is needed: the secret is signed with it.")
    secret_given = signs_secret or body.client_secret is not None or body.registration is not None
    if not secret_given and method not in _AUTH_WITHOUT_SECRET:
        why = "A client secret is needed, or client_auth none for a public client."
        raise invalid_request("client_secret", why)
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
    return _with_body(spec, body, blank, now)


async def changed_integration(
    tx: Transaction, spec: ProviderSpec, body: IntegrationBody, before: Integration, now: datetime
) -> Integration:
    """The integration with the body's members.

    Another provider, issuer or parameter changes where tokens and secrets are sent: then no connection
    may be live, and the body must contain the secret again. Raises Failure INVALID_REQUEST.
    """
    moves = (body.provider, body.issuer, body.params) != (before.provider, before.issuer, before.params)
    if moves and await tx.connections.any_live(before.tenant, before.id):
        why = "Connections are live: provider, issuer and params can't change under them. Use a new name."
        raise invalid_request("provider", why)
    if body.registration is not None:
        return _with_registration(spec, body, before, moves, now)
    has_certificate = before.client_certificate_expires_at is not None
    if moves or body.client_id != before.client_id:
        stored = {
            "client_secret": await tx.integrations.client_secret(before),
            "client_key": await tx.integrations.client_key(before),
            "client_certificate": has_certificate,
        }
        for field, held in stored.items():
            if held and getattr(body, field) is None:
                what = field.replace("_", " ")
                why = f"Give the {what} again: the stored one belongs to the previous client."
                raise invalid_request(field, why)
    wanted = ClientAuth(body.client_auth or spec.client_auth) in MUTUAL_TLS
    if wanted and not has_certificate and body.client_certificate is None:
        raise invalid_request("client_certificate", _NO_CERTIFICATE)
    discover = spec.discovery and (moves or before.state is not IntegrationState.READY)
    update = {
        "provider": spec.name,
        "client_id": body.client_id,
        "registration": None,
        "state": IntegrationState.DISCOVERING if discover else IntegrationState.READY,
        "problem": None,
        # endpoints that were discovered are pinned until the issuer changes
        "endpoints": before.endpoints if spec.discovery and not moves else None,
    }
    return _with_body(spec, body, before.model_copy(update=update), now)


def _with_registration(
    spec: ProviderSpec, body: IntegrationBody, before: Integration, moves: bool, now: datetime
) -> Integration:
    """The integration with a registration: the existing one, unless it was at another issuer."""
    kept = before.registration is body.registration and not moves and before.state is IntegrationState.READY
    if kept:
        return _with_body(spec, body, before, now).model_copy(update={"client_auth": before.client_auth})
    update = {
        "provider": spec.name,
        "client_id": "",
        "state": IntegrationState.DISCOVERING,
        "problem": None,
        "endpoints": None if moves else before.endpoints,
    }
    return _with_body(spec, body, before.model_copy(update=update), now)


async def change_client_secret(
    tx: Transaction, before: Integration, body: RotateSecretBody, now: datetime
) -> Integration:
    """Rotate or roll back the client secret. Raises Failure INVALID_REQUEST."""
    if body.roll_back is (body.client_secret is not None):
        raise invalid_request("client_secret", "Give either a client secret or roll_back.")
    stored = await tx.integrations.client_secret(before)
    if before.client_auth == ClientAuth.NONE or stored is None:
        raise invalid_request("client_secret", "A public client has no secret to rotate.")
    after = before.model_copy(update={"changed_at": now})
    if body.client_secret is None:
        return await tx.integrations.restore_previous_secret(after, expected=before.revision)
    _require_nonempty(body.client_secret)
    if body.client_secret == stored:
        return before  # a repeated request: the overlap stays
    until = now + timedelta(seconds=body.overlap_s)
    return await tx.integrations.rotate_secret(
        after, body.client_secret, until=until, expected=before.revision
    )


async def retry_failing_connections(
    tx: Transaction, integration: Integration, context: RequestContext, now: datetime
) -> None:
    """Have a worker tell every failing connection of the integration to try again."""
    if (await tx.connections.failing(integration.tenant, integration.id, limit=1)).last is not None:
        await tx.outbox.add(retry_integration_message(integration, context, now))


def _with_body(
    spec: ProviderSpec, body: IntegrationBody, integration: Integration, now: datetime
) -> Integration:
    names = {
        "issuer",
        "params",
        "client_auth",
        "registration",
        "dpop",
        "default_scopes",
        "scope_ceiling",
        "binding",
        "on_reconnect",
    }
    overrides = body.refresh.model_dump(mode="json", exclude_none=True)
    update = body.model_dump(include=names) | {"refresh_overrides": overrides, "changed_at": now}
    update["login"] = login_rule(body)
    if body.registration is RegistrationMethod.METADATA_DOCUMENT:
        update["client_auth"] = "none"
    return integration.model_copy(update=update).with_provider_rules(spec.refresh_rules())


def check_body(spec: ProviderSpec, body: IntegrationBody) -> None:
    """Check the body against the provider's definition. Raises Failure INVALID_REQUEST with the field."""
    spec.require_any_flow()
    if spec.discovery and not body.issuer:
        raise invalid_request("issuer", f"{spec.name} needs an issuer.")
    if body.issuer and not spec.discovery:
        raise invalid_request("issuer", f"{spec.name} has its own issuer.")
    if not spec.discovery:
        definition_endpoints(spec, body.params)
    _check_client(spec, body)
    if body.client_secret is not None:
        _require_nonempty(body.client_secret)
    if scopes_above(body.default_scopes, body.scope_ceiling):
        raise invalid_request("default_scopes", "A default scope is above the ceiling.")


def require_binding_allowed(binding: Binding, api: ApiContext) -> None:
    """Raise Failure INVALID_REQUEST for a binding that the operator doesn't allow."""
    if binding is Binding.NONE and not api.settings.allow_unbound_consent:
        detail = f"The binding none is off: {UNBOUND_SETTING} allows consents of any person who opens a link."
        raise Failure(ErrorCode.INVALID_REQUEST, detail, field="binding", setting=UNBOUND_SETTING)


def client_key_of(body: IntegrationBody) -> ClientKey | None:
    """The client key of the body. Raises Failure INVALID_REQUEST for one that can't sign."""
    if body.client_key is None:
        return None
    key = ClientKey(private=body.client_key.private, id=body.client_key.id)
    try:
        import_signing_key(key)
    except Failure as failure:
        raise invalid_request("client_key", failure.detail) from None
    return key


def client_certificate_of(body: IntegrationBody, now: datetime) -> ClientCertificate | None:
    """The client certificate of the body. Raises Failure INVALID_REQUEST for an unusable one."""
    given = body.client_certificate
    return None if given is None else parse_client_certificate(given.certificate, given.private, now)


def _check_client(spec: ProviderSpec, body: IntegrationBody) -> None:
    """Check that the body has either a client id or a registration, and only members that go with it."""
    if (body.client_id is None) is (body.registration is None):
        raise invalid_request("client_id", "Give a client id, or a registration.")
    if body.registration is None:
        if body.initial_access_token is not None:
            raise invalid_request("initial_access_token", "It needs a registration.")
        return
    per_host = spec.client_registration == "per_host" and body.registration is RegistrationMethod.DYNAMIC
    if not spec.discovery and not per_host:
        why = f"{spec.name} has no issuer whose metadata says where to register."
        raise invalid_request("registration", why)
    if body.client_secret is not None or body.client_auth is not None:
        why = "The registration determines the client authentication."
        raise invalid_request("client_secret" if body.client_secret else "client_auth", why)
    if body.initial_access_token is not None and body.registration is not RegistrationMethod.DYNAMIC:
        raise invalid_request("initial_access_token", "A metadata document needs none.")


def _require_nonempty(secret: Secret) -> None:
    if not secret.reveal().strip():
        raise invalid_request("client_secret", "The client secret is empty.")
