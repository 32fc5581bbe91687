"""New and changed integrations: checks of the body, and the resulting rows.

The endpoints that secrets are sent to never change while connections are live.
"""

from datetime import datetime, timedelta

from evergrant_server.api.http.outbox_messages import connection_signal_message
from evergrant_server.api.integrations.checks import require_nonempty
from evergrant_server.api.integrations.models import IntegrationBody, RotateSecretBody
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import IntegrationId, Tenant, new_id
from evergrant_server.core.integrations import Integration, IntegrationState, RegistrationMethod
from evergrant_server.core.messages.base import RequestContext, SignalName
from evergrant_server.core.messages.connection import ProviderChanged
from evergrant_server.store import Transaction
from providers.definition.schema import ProviderSpec
from providers.definition.schema_request import MUTUAL_TLS, ClientAuth

_PAGE_ROWS = 200
_AUTH_WITHOUT_SECRET = (ClientAuth.NONE, ClientAuth.PRIVATE_KEY_JWT, *MUTUAL_TLS)


def new_integration(
    spec: ProviderSpec, body: IntegrationBody, tenant: Tenant, name: str, now: datetime
) -> Integration:
    """A new integration. Raises Failure INVALID_REQUEST without the secret that its provider needs."""
    method = ClientAuth(body.client_auth or spec.client_auth)
    if method is ClientAuth.PRIVATE_KEY_JWT and body.client_key is None:
        raise Failure(ErrorCode.INVALID_REQUEST, "A client key is needed to sign with.", field="client_key")
    if method in MUTUAL_TLS and body.client_certificate is None:
        raise Failure(
            ErrorCode.INVALID_REQUEST,
            "A client certificate is needed to present.",
            field="client_certificate",
        )
    made = spec.client_secret_generator is not None
    if made and body.client_key is None:
        why = "A client key is needed: the secret is signed with it."
        raise Failure(ErrorCode.INVALID_REQUEST, why, field="client_key")
    secret_given = made or body.client_secret is not None or body.registration is not None
    if not secret_given and method not in _AUTH_WITHOUT_SECRET:
        raise Failure(
            ErrorCode.INVALID_REQUEST,
            "A client secret is needed, or client_auth none for a public client.",
            field="client_secret",
        )
    return _with_body(
        spec,
        body,
        Integration(
            tenant=tenant,
            id=IntegrationId(new_id("int")),
            name=name,
            provider=spec.name,
            client_id=body.client_id or "",
            state=IntegrationState.DISCOVERING
            if spec.discovery or body.registration
            else IntegrationState.READY,
            created_at=now,
            changed_at=now,
        ),
        now,
    )


async def changed_integration(
    tx: Transaction, spec: ProviderSpec, body: IntegrationBody, before: Integration, now: datetime
) -> Integration:
    """The integration with the body's members.

    Another provider, issuer or parameter changes where tokens and secrets are sent: then no connection
    may be live, and the body must contain the secret again. Raises Failure INVALID_REQUEST.
    """
    moves = (body.provider, body.issuer, body.params) != (before.provider, before.issuer, before.params)
    if moves and await _live_connection(tx, before) is not None:
        raise Failure(
            ErrorCode.INVALID_REQUEST,
            "Connections are live: provider, issuer and params can't change under them. Use a new name.",
            field="provider",
        )
    if body.registration is not None:
        return _with_registration(spec, body, before, moves, now)
    other_client = moves or body.client_id != before.client_id
    if other_client and body.client_secret is None and await tx.integrations.client_secret(before):
        raise Failure(
            ErrorCode.INVALID_REQUEST,
            "Give the client secret again: the stored one belongs to the previous client.",
            field="client_secret",
        )
    if other_client and body.client_key is None and await tx.integrations.client_key(before):
        raise Failure(
            ErrorCode.INVALID_REQUEST,
            "Give the client key again: the stored one belongs to the previous client.",
            field="client_key",
        )
    has_certificate = before.client_certificate_expires_at is not None
    if has_certificate and other_client and body.client_certificate is None:
        raise Failure(
            ErrorCode.INVALID_REQUEST,
            "Give the client certificate again: the stored one belongs to the previous client.",
            field="client_certificate",
        )
    wanted = ClientAuth(body.client_auth or spec.client_auth) in MUTUAL_TLS
    if wanted and not has_certificate and body.client_certificate is None:
        why = "A client certificate is needed to present."
        raise Failure(ErrorCode.INVALID_REQUEST, why, field="client_certificate")
    discover = spec.discovery and (moves or before.state is not IntegrationState.READY)
    update = {
        "provider": spec.name,
        "client_id": body.client_id,
        "registration": None,
        "state": IntegrationState.DISCOVERING if discover else IntegrationState.READY,
        "problem": None,
        # endpoints that were discovered are pinned until the issuer changes
        "endpoints": before.endpoints if spec.discovery and not discover else None,
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
        "endpoints": None,
    }
    return _with_body(spec, body, before.model_copy(update=update), now)


async def change_client_secret(
    tx: Transaction, before: Integration, body: RotateSecretBody, now: datetime
) -> Integration:
    """Rotate or roll back the client secret. Raises Failure INVALID_REQUEST."""
    if body.roll_back is (body.client_secret is not None):
        raise Failure(
            ErrorCode.INVALID_REQUEST, "Give either a client secret or roll_back.", field="client_secret"
        )
    if before.client_auth == ClientAuth.NONE or await tx.integrations.client_secret(before) is None:
        raise Failure(
            ErrorCode.INVALID_REQUEST, "A public client has no secret to rotate.", field="client_secret"
        )
    after = before.model_copy(update={"changed_at": now})
    if body.client_secret is None:
        return await tx.integrations.restore_previous_secret(after, expected=before.revision)
    require_nonempty(body.client_secret)
    if body.client_secret == await tx.integrations.client_secret(before):
        return before  # a repeated request: the overlap stays
    until = now + timedelta(seconds=body.overlap_s)
    return await tx.integrations.rotate_secret(
        after, body.client_secret, until=until, expected=before.revision
    )


async def retry_failing_connections(
    tx: Transaction, integration: Integration, context: RequestContext, now: datetime
) -> None:
    """Have every failing connection of the integration try again."""
    message = ProviderChanged(version=integration.revision, context=context)
    for connection in await tx.connections.failing(integration.tenant, integration.id):
        await tx.outbox.add(connection_signal_message(connection, SignalName.PROVIDER_CHANGED, message, now))


def _with_body(
    spec: ProviderSpec, body: IntegrationBody, integration: Integration, now: datetime
) -> Integration:
    changed = integration.model_copy(
        update={
            "issuer": body.issuer,
            "params": dict(body.params),
            "client_auth": "none"
            if body.registration is RegistrationMethod.METADATA_DOCUMENT
            else body.client_auth,
            "registration": body.registration,
            "dpop": body.dpop,
            "default_scopes": body.default_scopes,
            "scope_ceiling": body.scope_ceiling,
            "refresh_overrides": body.refresh.overrides,
            "changed_at": now,
        }
    )
    return changed.with_provider_rules(spec.refresh_rules())


async def _live_connection(tx: Transaction, integration: Integration) -> Connection | None:
    """A connection that has not ended, if any."""
    after: str | None = None
    while True:
        batch = await tx.connections.page(
            integration.tenant, integration=integration.name, after=after, limit=_PAGE_ROWS
        )
        for connection in batch:
            if connection.integration_id == integration.id and not connection.state.is_final:
                return connection
        if len(batch) < _PAGE_ROWS:
            return None
        after = batch[-1].id
