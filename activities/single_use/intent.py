"""The intent: the committed row that says a credential is about to be sent.

A client registration has no attempt row: its intent is the integration's `registration_sent_at`,
from which its attempt's id is derived.
"""

from datetime import datetime

from activities.single_use.attempt_tracker import AttemptTracker
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AttemptId, IntegrationId, Tenant, derived_id
from evergrant_server.core.integrations import RefreshRules
from evergrant_server.core.single_use.attempt import (
    UNSEEN,
    Attempt,
    AttemptOutcome,
    ResendDecision,
    decide_attempt,
    may_invalidate,
    with_earlier_sends,
)
from evergrant_server.journal.entry import EntryHeader
from evergrant_server.store import Transaction
from evergrant_server.store.connections.attempts import EarlierUses
from evergrant_server.store.connections.connections import Position
from evergrant_server.telemetry import metrics


async def commit_intent(
    tx: Transaction,
    attempt: Attempt,
    state: LifecycleState,
    rules: RefreshRules,
    tracker: AttemptTracker,
    *,
    token_valid: bool,
) -> Attempt:
    """Write `attempt` as the open one, if the protocol allows it (`core.single_use.attempt`).

    `state` is the connection's when the credential was read. Raises as `SingleUseProtocol.open`,
    and Failure STORE_CONFLICT when another attempt has ended since then.
    """
    uses = await tx.attempts.earlier_uses(attempt)
    if uses.opened is not None or uses.unknown is not None:
        attempt = await _after_earlier_uses(tx, attempt, state, rules, tracker, uses, token_valid=token_valid)
    await tx.attempts.open(attempt)
    # from here on no other attempt is opened or installed, and one that was is visible
    position = await tx.connections.position(attempt.tenant, attempt.connection_id, for_share=True)
    _require_unchanged(attempt, state, position)
    return attempt


async def _after_earlier_uses(
    tx: Transaction,
    attempt: Attempt,
    state: LifecycleState,
    rules: RefreshRules,
    tracker: AttemptTracker,
    uses: EarlierUses,
    *,
    token_valid: bool,
) -> Attempt:
    """The attempt with the earlier uses of its credential counted; the open one is fenced off and closed.

    Raises as `commit_intent`, whose look at the connection comes too late for the fence.
    """
    _require_unchanged(attempt, state, await tx.connections.position(attempt.tenant, attempt.connection_id))
    earlier = uses.opened
    status = tracker.status_of(earlier) if earlier is not None else UNSEEN
    if earlier is not None and status.unsent:  # its owner died first: the credential was not used
        await tx.attempts.close(earlier, AttemptOutcome.NOT_SENT, attempt.opened_at)
        uses, earlier = uses.without_open(), None
    if uses.unknown is not None:
        await _require_no_late_entry(tx, attempt, uses.unknown, rules, tracker)
    decision = decide_attempt(
        attempt,
        rules,
        tracker.now(),
        opened=None if earlier is None else tracker.without_clock_skew(earlier),
        unknown=uses.unknown,
        unread=uses.unread,
        token_valid=token_valid,
        seen=status,
        limits=tracker.limits,
    )
    _require_resend(decision, tracker)
    attempt = with_earlier_sends(attempt, uses.unknown)
    if earlier is not None:
        if not tracker.fence(earlier):
            raise tracker.pending("its owner was stopped in the instant of sending")
        if attempt.sends > 1 and status.owner_alive is None and rules.resend_is_safe_for is None:
            metrics.count_double_send("possible")
        await tx.attempts.close(earlier, AttemptOutcome.SUPERSEDED, attempt.opened_at)
    return attempt


def _require_resend(decision: ResendDecision, tracker: AttemptTracker) -> None:
    """Raises the Failure of every decision but RESEND."""
    match decision:
        case ResendDecision.WAIT:
            raise tracker.pending("an earlier attempt has no known outcome yet")
        case ResendDecision.AWAIT_DEFINITION:
            raise Failure(ErrorCode.REPLY_UNREADABLE, "its reply is kept until its definition can read it")
        case ResendDecision.GIVE_UP:
            raise Failure(ErrorCode.OUTCOME_UNKNOWN, "it was sent as often as allowed, and no reply came")
        case ResendDecision.RESEND:
            pass


async def _require_no_late_entry(
    tx: Transaction, attempt: Attempt, unknown: Attempt, rules: RefreshRules, tracker: AttemptTracker
) -> None:
    """Raises Failure REFRESH_PENDING while a journal holds a late reply that a further use may invalidate."""
    counted = with_earlier_sends(attempt, unknown)
    if not may_invalidate(counted, unknown, rules, attempt.opened_at):
        return
    generation = attempt.from_generation
    superseded = await tx.attempts.superseded(attempt.tenant, attempt.connection_id, generation)
    same = [earlier for earlier in superseded if earlier.spends(attempt.kind, generation, attempt.credential)]
    if tracker.has_late_entry(same):
        raise tracker.pending("a late reply waits in a journal")


def _require_unchanged(attempt: Attempt, state: LifecycleState, now: Position | None) -> None:
    """Raises Failure STORE_CONFLICT when an attempt that ended since the credential was read has spent
    it: it left no open row, but a newer generation or a connection in another state."""
    if now != (state, attempt.from_generation):
        raise Failure(ErrorCode.STORE_CONFLICT, f"{attempt.connection_id} was changed meanwhile")


def registration_attempt_id(integration_id: IntegrationId, sent_at: datetime) -> AttemptId:
    """The id of a registration's attempt."""
    return AttemptId(derived_id("att", integration_id, sent_at.isoformat()))


async def end_intent(
    tx: Transaction,
    tenant: Tenant,
    integration_id: IntegrationId,
    sent_at: datetime,
    since: datetime | None = None,
) -> None:
    """Withdraw the intent of a registration, or date it `since`."""
    current = await tx.integrations.get(tenant, integration_id)
    if current is not None and current.registration_sent_at == sent_at:
        after = current.__replace__(registration_sent_at=since)
        await tx.integrations.replace(after, expected=current.revision)


async def drop_unsent_intent(tx: Transaction, header: EntryHeader) -> None:
    """Withdraw the intent of a registration whose worker died before it sent."""
    integration_id = IntegrationId(header.connection_id)
    current = await tx.integrations.get(header.tenant, integration_id)
    sent_at = current.registration_sent_at if current is not None else None
    if sent_at is not None and registration_attempt_id(integration_id, sent_at) == header.attempt_id:
        await end_intent(tx, header.tenant, integration_id, sent_at)
