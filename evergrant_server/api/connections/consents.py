"""Consents: requested of the subject, requested again, or replaced by first tokens without a subject."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from evergrant_server.access.callers import Caller
from evergrant_server.access.context import ApiContext
from evergrant_server.access.transactions import poll_until, signal_connection
from evergrant_server.api.connections.flows import account_of_consent, require_flow_allowed
from evergrant_server.api.connections.links import require_consent_allowed
from evergrant_server.api.connections.models import ConnectionBody, ReauthorizeBody
from evergrant_server.api.http.call import ApiCall
from evergrant_server.core.connections.binding import Binding
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.consent import (
    LINK_BYTES,
    Consent,
    ConsentKind,
    ConsentStatus,
    hash_link,
)
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.connections.grant import FollowUp, ImportedTokens
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConsentId, new_id
from evergrant_server.core.integrations import Integration
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.connection import ConsentGranted, ConsentReturned
from evergrant_server.core.messages.names import SignalName
from evergrant_server.core.secret import Secret
from evergrant_server.crypto import KeyPurpose, Role
from evergrant_server.store import Transaction

EXCHANGE_WAIT_S = 15.0
CLIENT_GRANT_DEADLINE = timedelta(days=7)  # time for an admin to repair the integration


@dataclass(frozen=True)
class ConnectionWithLink:
    """A connection, and its consent and connect link if the subject has to consent."""

    connection: Connection
    created: bool
    consent: Consent | None = None
    connect_url: str | None = None


async def request_consent(
    tx: Transaction,
    call: ApiCall,
    integration: Integration,
    connection: Connection,
    scopes: tuple[str, ...],
    slot_scopes: Mapping[str, tuple[str, ...]],
    wanted: ConnectionBody | ReauthorizeBody,
) -> tuple[Consent, str]:
    """Add a consent to the integration's client and return it with its connect URL.

    Of the device flow a worker requests the code and polls for the token (RFC 8628). Raises Failure
    BINDING_REQUIRED, MADE_BY_ANOTHER_APP.
    """
    replaces_any = await require_consent_allowed(tx, call, connection, slot_scopes)
    require_return_to(call.caller, wanted.return_to)
    require_flow_allowed(connection.flow, call.api)
    derived = not call.api.ring.holds(KeyPurpose.INTAKE)  # the gateway's role
    binding = _binding_of(integration, connection, call.api, by_gateway=derived)
    id = ConsentId(new_id("cns"))
    new_link = Secret(secrets.token_urlsafe(LINK_BYTES))
    link = tx.consents.derived_link(connection.tenant, id) if derived else new_link
    consent = _new_consent(
        call,
        connection,
        wanted,
        link,
        id=id,
        integration_id=integration.id,
        scopes=scopes,
        slot_scopes=dict(slot_scopes),
        binding=binding,
        replaces_any=replaces_any,
    )
    await tx.consents.add(consent, None if derived else link, account=account_of_consent(wanted.account))
    if consent.kind is ConsentKind.DEVICE:
        await signal_granted(tx, connection, consent, call.context, call.now)
    return consent, connect_url(call.api, link.reveal())


def _new_consent(
    call: ApiCall,
    connection: Connection,
    wanted: ConnectionBody | ReauthorizeBody,
    link: Secret,
    **members: Any,
) -> Consent:
    device = connection.flow is Flow.DEVICE_CODE
    return Consent(
        tenant=connection.tenant,
        connection_id=connection.id,
        kind=ConsentKind.DEVICE if device else ConsentKind.CODE,
        status=ConsentStatus.CODE_RECEIVED if device else ConsentStatus.OPEN,
        return_to=wanted.return_to,
        app_id=call.caller.app.id,
        challenge=wanted.challenge,
        link_hash=hash_link(link.reveal()),
        created_at=call.now,
        expires_at=call.now + call.api.settings.consent_ttl,
        by=call.context.by,
        trace_id=call.context.trace_id,
        **members,
    )


async def request_client_grant(
    tx: Transaction,
    call: ApiCall,
    connection: Connection,
    scopes: tuple[str, ...],
    supplied: ImportedTokens | None = None,
) -> Consent:
    """Have a worker request the first tokens, without a subject and a connect link.

    `supplied` is the subject token of an exchange, or the static credential to install. Raises Failure
    MADE_BY_ANOTHER_APP, and BINDING_REQUIRED at a gateway, which signs no consent that needs no subject.
    """
    if call.api.ring.role is Role.GATEWAY:
        why = "Through the gateway a login alone proves a subject: POST /v1/connections begins this one."
        raise Failure(ErrorCode.BINDING_REQUIRED, why, integration=connection.integration)
    context, now = call.context, call.now
    replaces_any = await require_consent_allowed(tx, call, connection)
    kind = ConsentKind.IMPORT if connection.flow.is_static else ConsentKind.CLIENT_GRANT
    made = Consent.without_subject(
        connection,
        kind,
        scopes,
        context,
        at=now,
        expires_at=now + CLIENT_GRANT_DEADLINE,
        app_id=call.caller.app.id,
    )
    consent = made.__replace__(replaces_any=replaces_any)
    if supplied is None:
        await tx.consents.add(consent, None)
    else:
        await tx.consents.add(consent, None, supplied)
    await signal_granted(tx, connection, consent, context, now)
    return consent


def _binding_of(
    integration: Integration, connection: Connection, api: ApiContext, *, by_gateway: bool
) -> Binding:
    """The binding of a new consent; none for a device code whose account the app expects.

    Raises Failure BINDING_REQUIRED for a flow that can't have the integration's, for an unbound consent that
    the operator doesn't allow any more, and at a gateway for any binding but `oidc`.
    """
    flow, binding, why = connection.flow, integration.binding, None
    if binding is not Binding.NONE and flow is Flow.DEVICE_CODE and connection.expected_account:
        binding = Binding.NONE
    elif binding is Binding.NONE:
        why = None if api.settings.allow_unbound_consent else "Unbound consents are off."
    elif flow is Flow.DEVICE_CODE:
        why = "A device code can't be bound (RFC 8628 section 5.4): say which account to expect."
    elif flow is Flow.IMPLICIT and binding is Binding.APP:
        why = "The flow implicit brings its token at once: it needs the binding app_first."
    if why is None and by_gateway and binding is not Binding.OIDC:
        why = "Through the gateway a login alone proves a subject: put the integration with --binding oidc."
    if why is not None:
        raise Failure(ErrorCode.BINDING_REQUIRED, why, integration=integration.name, binding=binding)
    return binding


async def consenting_connection(tx: Transaction, connection: Connection) -> Connection:
    """The connection whose consents fill this one: itself, but for a further token slot.

    Raises Failure INVALID_REQUEST when that connection has ended.
    """
    if connection.consented_with is None:
        return connection
    first = await tx.connections.get_authentic(connection.tenant, connection.consented_with)
    if first is None or first.state is LifecycleState.REVOKING or first.state.is_final:
        label = first.label if first is not None else "default"
        detail = (
            f"It shares the consent of the connection with the label {label}, which has ended: connect that."
        )
        raise Failure(ErrorCode.INVALID_REQUEST, detail, field="label", connection_id=connection.id)
    return first


def require_return_to(caller: Caller, url: str | None) -> None:
    """Raise Failure INVALID_REQUEST unless the app's list has this URL."""
    if url is not None and not caller.app.may_return_to(url):
        raise Failure(
            ErrorCode.INVALID_REQUEST,
            "return_to is not in the app's list.",
            field="return_to",
            repair="An admin sets the list, with a --return-to for each URL: "
            f"evergrant apps put {caller.app.name} --return-to URL",
        )


def connect_url(api: ApiContext, link: str) -> str:
    return f"{api.settings.public_url}/connect/{link}"


async def signal_granted(
    tx: Transaction, connection: Connection, consent: Consent, context: RequestContext, now: datetime
) -> None:
    """Signal the workflow to continue."""
    granted = ConsentGranted(consent_id=consent.id, context=context)
    await signal_connection(tx, connection, SignalName.CONSENT_GRANTED, granted, now)


async def signal_returned(
    tx: Transaction, connection: Connection, consent: Consent, context: RequestContext, now: datetime
) -> None:
    """Signal the workflow to undo what the app doesn't confirm in time."""
    assert consent.confirm_by is not None
    returned = ConsentReturned(consent_id=consent.id, until=consent.confirm_by, context=context)
    await signal_connection(tx, connection, SignalName.CONSENT_RETURNED, returned, now)


async def wait_for_exchange(
    api: ApiContext, consent: Consent, patience_s: float | None = None
) -> tuple[Consent, Connection | None]:
    """Wait for a worker to end the consent and look up the accounts: up to EXCHANGE_WAIT_S, or for as long
    as the caller does."""
    api.relay.notify()

    async def look() -> tuple[Consent, Connection | None]:
        async with api.store.read() as tx:
            newest = await tx.consents.get(consent.tenant, consent.id)
            connection = await tx.connections.get(consent.tenant, consent.connection_id)
        return newest or consent, connection

    def has_ended(seen: tuple[Consent, Connection | None]) -> bool:
        exchanging = seen[0].status is ConsentStatus.CODE_RECEIVED
        return not exchanging and (seen[1] is None or seen[1].follow_up is not FollowUp.LOOKING_UP)

    longest = EXCHANGE_WAIT_S if patience_s is None else min(EXCHANGE_WAIT_S, patience_s)
    return await poll_until(look, has_ended, longest)
