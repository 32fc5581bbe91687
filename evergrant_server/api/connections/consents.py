"""Consents: requested of the subject, requested again, or replaced by first tokens without a subject."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from evergrant_server.api.connections.flows import require_flow_allowed
from evergrant_server.api.connections.models import ConnectionBody
from evergrant_server.api.http.authentication import Caller
from evergrant_server.api.http.call import ApiCall
from evergrant_server.api.http.context import ApiContext
from evergrant_server.api.http.problems import invalid_request
from evergrant_server.api.http.transactions import signal_connection
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.consent import (
    LINK_BYTES,
    Consent,
    ConsentKind,
    ConsentStatus,
    hash_link,
)
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.connections.grant import ImportedTokens
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConsentId, new_id
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.connection import ConsentGranted
from evergrant_server.core.messages.names import SignalName
from evergrant_server.core.secret import Secret
from evergrant_server.store import Transaction

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
    connection: Connection,
    scopes: tuple[str, ...],
    return_to: str | None,
    slot_scopes: Mapping[str, tuple[str, ...]],
) -> tuple[Consent, str]:
    """Add a consent and return it with its connect URL.

    Of the device flow a worker requests the code and polls for the token (RFC 8628).
    """
    require_return_to(call.caller, return_to)
    require_flow_allowed(connection.flow, call.api)
    link, now = secrets.token_urlsafe(LINK_BYTES), call.now
    pending = connection.state is LifecycleState.PENDING_CONSENT
    device = connection.flow is Flow.DEVICE_CODE
    consent = Consent(
        tenant=connection.tenant,
        id=ConsentId(new_id("cns")),
        connection_id=connection.id,
        integration_id=connection.integration_id,
        kind=ConsentKind.DEVICE if device else ConsentKind.CODE,
        status=ConsentStatus.CODE_RECEIVED if device else ConsentStatus.OPEN,
        scopes=scopes,
        slot_scopes=dict(slot_scopes),
        return_to=return_to,
        link_hash=hash_link(link),
        created_at=now,
        # links of a pending connection expire with it
        expires_at=connection.consent_deadline if pending else now + call.api.settings.consent_ttl,
        by=call.context.by,
        trace_id=call.context.trace_id,
    )
    await tx.consents.add(consent, Secret(link))
    if device:
        await signal_granted(tx, connection, consent, call.context, now)
    return consent, connect_url(call.api, link)


async def request_client_grant(
    tx: Transaction,
    connection: Connection,
    scopes: tuple[str, ...],
    context: RequestContext,
    now: datetime,
    supplied: ImportedTokens | None = None,
) -> Consent:
    """Have a worker request the first tokens, without a subject and a connect link.

    `supplied` is the subject token of an exchange, or the static credential to install.
    """
    kind = ConsentKind.IMPORT if connection.flow.is_static else ConsentKind.CLIENT_GRANT
    consent = Consent.without_subject(
        connection, kind, scopes, context, at=now, expires_at=now + CLIENT_GRANT_DEADLINE
    )
    if supplied is None:
        await tx.consents.add(consent, None)
    else:
        await tx.consents.add(consent, None, supplied)
    await signal_granted(tx, connection, consent, context, now)
    return consent


async def open_consent(tx: Transaction, connection: Connection, now: datetime) -> Consent | None:
    """The unexpired consent that the connection waits for, if any."""
    if connection.flow is not Flow.DEVICE_CODE:
        return await tx.consents.open_consent(connection.tenant, connection.id, now)
    waiting = await tx.consents.received_consent(connection.tenant, connection.id)
    return waiting if waiting is not None and waiting.expires_at > now else None


def is_reusable(consent: Consent, wanted: ConnectionBody, *, for_lease: bool) -> bool:
    """Whether an open link can be returned again: same scopes, slots and `return_to`.

    A link that a browser has opened works in that browser only. `POST /v1/connections` then creates
    a new link; a lease, which apps poll, returns the same.
    """
    if wanted.scopes is not None and not set(wanted.scopes) <= set(consent.scopes):
        return False
    if for_lease:
        return True
    if wanted.slot_scopes is not None and wanted.slot_scopes != consent.slot_scopes:
        return False
    begun = consent.status is not ConsentStatus.OPEN and consent.kind is not ConsentKind.DEVICE
    return not begun and consent.return_to == wanted.return_to


async def consenting_connection(tx: Transaction, connection: Connection) -> Connection:
    """The connection whose consents fill this one: itself, but for a further token slot.

    Raises Failure INVALID_REQUEST when that connection has ended.
    """
    if connection.consented_with is None:
        return connection
    first = await tx.connections.get(connection.tenant, connection.consented_with)
    if first is None or first.state is LifecycleState.REVOKING or first.state.is_final:
        label = first.label if first is not None else "default"
        detail = (
            f"It shares the consent of the connection with the label {label}, which has ended: connect that."
        )
        raise Failure(ErrorCode.INVALID_REQUEST, detail, field="label", connection_id=connection.id)
    return first


def require_return_to(caller: Caller, url: str | None) -> None:
    """Raise Failure INVALID_REQUEST unless the app's list has exactly this URL (RFC 9700 section 4.11)."""
    if url is not None and url not in caller.app.return_to:
        raise invalid_request("return_to", "return_to is not in the app's list.")


def connect_url(api: ApiContext, link: str) -> str:
    return f"{api.settings.public_url}/connect/{link}"


async def signal_granted(
    tx: Transaction, connection: Connection, consent: Consent, context: RequestContext, now: datetime
) -> None:
    """Signal the workflow to continue."""
    granted = ConsentGranted(consent_id=consent.id, context=context)
    await signal_connection(tx, connection, SignalName.CONSENT_GRANTED, granted, now)
