"""Further token slots of a consent (Slack's bot and user tokens): each has a connection of its own.

They are written in the transaction that installs the main slot, sealed as imports are; the
workflow of each connection then installs its grant.
"""

from datetime import datetime

from activities.grants.replaced_grants import keep_late_tokens_to_revoke
from activities.support.provider_context import ProviderContext
from activities.support.transactions import append_audit
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.consent import Consent, ConsentKind
from evergrant_server.core.connections.grant import (
    INSTALL_WITHIN,
    ImportedTokens,
    TokenSet,
    granted_scopes,
    known_scopes,
)
from evergrant_server.core.ids import ConnectionId, new_id
from evergrant_server.core.lifecycle.snapshot import start_message
from evergrant_server.core.messages.activities import ConnectionCall
from evergrant_server.core.messages.connection import ConsentGranted, Revoke
from evergrant_server.core.messages.names import SignalName
from evergrant_server.core.outbox import signal_message
from evergrant_server.crypto import KeyRing
from evergrant_server.store import Transaction


async def install_further_slots(
    tx: Transaction,
    ring: KeyRing,
    call: ConnectionCall,
    context: ProviderContext,
    first: Connection,
    tokens: TokenSet,
    asked_at: datetime,
    now: datetime,
    consent: Consent | None,
) -> None:
    """Hand the tokens of every further slot to its connection, which is created unless it exists.

    `first` is the connection that was consented to, with its new grant; `consent`: unless it is a late one of
    a refresh. The tokens of a slot whose connection another app has made are kept, and revoked with `first`.
    Raises Failure STORE_CONFLICT when another transaction has created one of them.
    """
    for slot, slot_tokens in tokens.further.items():
        label = first.label_of_slot(slot)
        granted = granted_scopes(slot_tokens.scopes, first.slot_scopes.get(slot, ()))
        scopes = known_scopes(granted)
        account, metadata = slot_tokens.account or tokens.account, tokens.metadata | slot_tokens.metadata
        imported = slot_tokens.__replace__(scopes=granted, metadata=metadata, account=account)
        existing = await tx.connections.by_names(first.tenant, first.integration, first.subject, label)
        live = existing is not None and not existing.state.is_final
        if existing is not None and live and not await _may_fill(tx, first, existing, consent):
            await keep_late_tokens_to_revoke(tx, call, context, first, slot_tokens, now)
            continue
        if existing is not None and live:
            # its id, permits and audit stay; from now on the consents of `first` bring its grants
            after = existing.__replace__(consented_with=first.id, requested_scopes=scopes)
            connection = await tx.connections.replace_names(after, expected=existing.revision)
        else:
            connection = await _create_connection(tx, ring, call, first, label, scopes, now)
        await _hand_over(tx, call, connection, scopes, imported, asked_at, now)
        if first.state is LifecycleState.REVOKING and not live:  # the new connection is revoked with it
            revoke = Revoke(reason=first.revoke_reason or "", context=call.context)
            target = (connection.tenant, connection.id)
            await tx.outbox.add(signal_message(*target, SignalName.REVOKE, revoke, now))


async def _hand_over(
    tx: Transaction,
    call: ConnectionCall,
    connection: Connection,
    scopes: tuple[str, ...],
    tokens: TokenSet,
    asked_at: datetime,
    now: datetime,
) -> None:
    """Write a consent with these tokens, which the connection's workflow installs."""
    expires_at = asked_at + INSTALL_WITHIN
    consent = Consent.without_subject(
        connection, ConsentKind.IMPORT, scopes, call.context, at=asked_at, expires_at=expires_at
    )
    await tx.consents.add(consent, None, ImportedTokens.from_token_set(tokens, asked_at))
    consented = ConsentGranted(consent_id=consent.id, context=call.context)
    target = (connection.tenant, connection.id)
    await tx.outbox.add(signal_message(*target, SignalName.CONSENT_GRANTED, consented, now))


async def _may_fill(tx: Transaction, first: Connection, filled: Connection, consent: Consent | None) -> bool:
    """Whether the consents of `first` may replace the grant of this connection."""
    if not filled.generation or filled.consented_with == first.id:
        return True
    maker = await tx.consents.maker_of(filled)
    if consent is not None:
        return consent.may_replace_grant(maker)
    return maker == await tx.consents.maker_of(first)


async def _create_connection(
    tx: Transaction,
    ring: KeyRing,
    call: ConnectionCall,
    first: Connection,
    label: str,
    scopes: tuple[str, ...],
    now: datetime,
) -> Connection:
    connection = Connection(
        tenant=first.tenant,
        id=ConnectionId(new_id("con")),
        integration_id=first.integration_id,
        integration=first.integration,
        provider=first.provider,
        subject=first.subject,
        label=label,
        requested_scopes=scopes,
        refresh_policy=first.refresh_policy,
        flow=first.flow,
        consented_with=first.id,
        created_at=now,
        changed_at=now,
        consent_deadline=now + INSTALL_WITHIN,
    )
    await tx.connections.add_new(connection)
    subject_hash = ring.subject_hash(connection.tenant, connection.subject)
    await tx.outbox.add(start_message(connection, subject_hash, call.context, now))
    detail = {
        "integration": connection.integration,
        "label": label,
        "scopes": list(scopes),
        "flow": connection.flow,
        "consented_with": first.id,
    }
    created = call.__replace__(connection_id=connection.id)
    await append_audit(tx, created, AuditAction.CONNECTION_CREATED, now, **detail)
    return connection
