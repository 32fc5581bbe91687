"""Late tokens: a reply that arrived after its connection was given up. Kept sealed until it is verified."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from activities.support.provider_context import ProviderContext
from activities.support.transactions import append_audit
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.consent import Consent
from evergrant_server.core.connections.grant import TokenSet, granted_scopes
from evergrant_server.core.lifecycle.timers import STATES_WITHOUT_GRANT
from evergrant_server.core.messages.activities import ConnectionCall
from evergrant_server.core.messages.connection import LateTokensReceived, Rotate
from evergrant_server.core.messages.names import SignalName
from evergrant_server.core.outbox import signal_message
from evergrant_server.core.single_use.attempt import Attempt, LateTokens
from evergrant_server.store import Transaction


async def keep_late_tokens(
    tx: Transaction, call: ConnectionCall, attempt: Attempt, tokens: TokenSet, at: datetime
) -> None:
    """Store the tokens sealed and signal the workflow, in the transaction that finds them late."""
    late = LateTokens(
        tenant=attempt.tenant,
        attempt_id=attempt.id,
        connection_id=attempt.connection_id,
        from_generation=attempt.from_generation,
        requested_at=attempt.first_opened_at,
        received_at=at,
    )
    if not await tx.late_tokens.add(late, tokens):
        return  # a replay: they are stored already
    await append_audit(
        tx,
        call,
        AuditAction.LATE_TOKENS_RECEIVED,
        at,
        attempt=attempt.id,
        from_generation=attempt.from_generation,
        sends=attempt.sends,
        sent_by=attempt.send_by.isoformat(),
    )
    await signal_late_tokens(tx, call, attempt, at)


async def signal_late_tokens(tx: Transaction, call: ConnectionCall, attempt: Attempt, at: datetime) -> None:
    """Have the workflow verify them, or read the store if they are installed already."""
    received = LateTokensReceived(attempt_id=attempt.id, context=call.context)
    message = signal_message(
        attempt.tenant, attempt.connection_id, SignalName.LATE_TOKENS_RECEIVED, received, at
    )
    await tx.outbox.add(message)


async def signal_rotate(tx: Transaction, request: ConnectionCall, row: Attempt, now: datetime) -> None:
    """Have the workflow refresh now: a second use of the token may have invalidated its successor.

    The first signal tells a workflow that doesn't know the successor yet.
    """
    reason = "a second use of the previous token may have invalidated this grant"
    for seen in (row.from_generation, row.from_generation + 1):
        rotate = Rotate(reason=reason, context=request.context, seen_generation=seen)
        message = signal_message(request.tenant, request.connection_id, SignalName.ROTATE, rotate, now)
        await tx.outbox.add(message)


def awaits_verification(connection: Connection, late: LateTokens) -> bool:
    """True while the tokens may still bring the connection back."""
    return connection.state in STATES_WITHOUT_GRANT and connection.generation == late.from_generation


@dataclass(frozen=True)
class LateReply:
    """The tokens of a late reply, and the consent that it answered."""

    asked_at: datetime
    tokens: TokenSet
    consent: Consent | None  # whose code or device code was spent; None: a refresh token was

    def scopes(self, context: ProviderContext) -> tuple[str, ...]:
        """The granted scopes: a refresh may not ask for more (RFC 6749 section 6)."""
        requested = context.grant.scopes if context.grant is not None else context.connection.requested_scopes
        return granted_scopes(self.tokens.scopes, requested if self.consent is None else self.consent.scopes)

    def metadata(self, before: Mapping[str, Any]) -> Mapping[str, Any]:
        """A consent replaces the metadata of the grant before; a refresh adds to it."""
        return self.tokens.metadata if self.consent else {**before, **self.tokens.metadata}

    def merged_with(self, tokens: TokenSet, since: datetime) -> TokenSet:
        """The tokens of the verifying refresh, with what only the late reply said."""
        late = self.tokens
        refresh_expires_in = tokens.refresh_expires_in
        if refresh_expires_in is None and late.refresh_expires_in is not None:
            refresh_expires_in = late.refresh_expires_in - (since - self.asked_at).total_seconds()
        # no refresh token in the reply: keep the one that was just used (RFC 6749 section 6)
        return tokens.__replace__(
            refresh_token=tokens.refresh_token or late.refresh_token,
            refresh_expires_in=refresh_expires_in,
            id_token=tokens.id_token or late.id_token,
            account=late.account or tokens.account,
            scopes=tokens.scopes or late.scopes,
            metadata=late.metadata | tokens.metadata,
            further=late.further,
        )
