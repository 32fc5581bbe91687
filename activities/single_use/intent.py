"""The intent: the committed row that says a credential is about to be sent; and what this process sees of it.

A client registration has no attempt row: its intent is the integration's `registration_sent_at`,
from which its attempt's id is derived.

Temporal raises CancelledError inside an activity at start-to-close and at shutdown, also
between a provider's reply and its commit. What may not be cut there runs in a task of its own,
a critical section: the end of the activity doesn't end it, and shutdown waits for it.
"""

import asyncio
import logging
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, TypeVar

from activities.support.temporal import earlier_now
from evergrant_server.core.access import MovePhase
from evergrant_server.core.clock import Clock, seconds_since_boot
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.grant import MAIN_SLOT
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AttemptId, IntegrationId, Tenant, derived_id
from evergrant_server.core.integrations import RefreshRules
from evergrant_server.core.single_use.attempt import (
    UNSEEN,
    Attempt,
    AttemptOutcome,
    AttemptStatus,
    ResendDecision,
    TimeLimits,
    answer_may_come,
    decide_attempt,
    is_dated_ahead,
    may_invalidate,
    redated,
    with_earlier_sends,
)
from evergrant_server.journal import Journal
from evergrant_server.journal.entry import EntryHeader
from evergrant_server.store import Transaction
from evergrant_server.store.connections.attempts import EarlierUses
from evergrant_server.store.connections.connections import Position
from evergrant_server.telemetry import metrics
from evergrant_server.telemetry.logs import LogEvent, log_event

log = logging.getLogger("evergrant.journal")

T = TypeVar("T")

CLEANUP_TIMEOUT_S = 5.0  # for a cancelled section to release its journal reservation
_MAX_FIRST_SEEN = 10_000


class CriticalSections:
    """The critical sections of this process, by attempt. An activity merely awaits its own."""

    def __init__(self) -> None:
        self._running: dict[AttemptId, asyncio.Task[Any]] = {}

    async def run(self, attempt_id: AttemptId, section: asyncio.Task[T]) -> T:
        """Own a section until its end, and await it; cancelling this call doesn't cancel it."""
        section.set_name(f"critical section {attempt_id}")
        self._running[attempt_id] = section
        section.add_done_callback(lambda done: self._on_done(attempt_id, done))
        return await asyncio.shield(section)

    def in_flight(self, attempt_id: AttemptId) -> bool:
        return attempt_id in self._running

    async def drain(self, limit: timedelta | None = None) -> None:
        """Wait until every section has ended; called once the worker has stopped polling.

        After `limit` the remaining ones are cancelled: an unavailable store could be waited for
        without end, and the journal holds what it doesn't have yet.
        """
        end = None if limit is None else asyncio.get_running_loop().time() + limit.total_seconds()
        while self._running:
            left = None if end is None else end - asyncio.get_running_loop().time()
            if left is not None and left <= 0:
                return await self._cancel_remaining()
            await asyncio.wait(list(self._running.values()), timeout=left)

    async def _cancel_remaining(self) -> None:
        remaining = dict(self._running)
        for attempt_id, task in remaining.items():
            why = "shutdown; the next sweep replays it"
            log_event(log, logging.WARNING, LogEvent.JOURNAL_STUCK, why, object=attempt_id)
            task.cancel()
        await asyncio.wait(list(remaining.values()), timeout=CLEANUP_TIMEOUT_S)

    def _on_done(self, attempt_id: AttemptId, task: asyncio.Task[Any]) -> None:
        self._running.pop(attempt_id, None)
        if not task.cancelled():
            task.exception()  # read it here: the activity that awaited the task may be gone


class AttemptTracker:
    """Reads journals, the sections of this process and the clocks. Decides nothing (see `core`)."""

    def __init__(
        self, clock: Clock, sections: CriticalSections, journal: Journal, limits: TimeLimits
    ) -> None:
        self._clock = clock
        self._sections = sections
        self._journal = journal
        self.limits = limits
        self._first_seen: dict[AttemptId, float] = {}  # attempts dated ahead of this host: seconds since boot

    def status_of(self, attempt: Attempt) -> AttemptStatus:
        """The status of an attempt, as far as this host can see it."""
        status = self._journal.status_of(attempt)
        if attempt.journal_id == self._journal.id:
            return replace(status, in_flight=status.in_flight or self._sections.in_flight(attempt.id))
        # a worker that was stopped past every deadline is fenced off, not waited for
        deadline = (self.limits.send + self.limits.answer).total_seconds()
        expired = status.age_s is not None and status.age_s >= deadline
        return replace(status, in_flight=False) if status.in_flight and expired else status

    def may_be_answered(self, attempt: Attempt) -> bool:
        """True while a reply may still arrive and be installed."""
        return answer_may_come(
            self.without_clock_skew(attempt), earlier_now(self._clock), self.status_of(attempt), self.limits
        )

    async def require_no_open_attempt(self, tx: Transaction, connection: Connection) -> None:
        """Raises Failure REFRESH_PENDING while an open attempt may still bring tokens: if the connection
        ended now, nothing could use them."""
        attempt = await open_attempt(tx, connection)
        if attempt is not None and self.may_be_answered(attempt):
            raise self.pending("a token is still on its way")

    def has_late_entry(self, superseded: list[Attempt]) -> bool:
        """True while a reply to one of them lies on this host, to be replayed after the attempt that
        took over. The time limit counts from the newest takeover."""
        newest = max((attempt.closed_at or attempt.opened_at for attempt in superseded), default=None)
        if newest is None:
            return False
        return any(
            self.status_of(attempt).answered
            and self.may_be_answered(attempt.__replace__(send_by=newest + self.limits.send))
            for attempt in superseded
        )

    async def record_late_install(
        self, tx: Transaction, late: Attempt, rules: RefreshRules, *, journaled: bool
    ) -> bool:
        """Record that a reply is installed after another attempt took over.

        Returns True when another use was refused or never answered: it may have invalidated these
        tokens. Raises Failure REFRESH_PENDING while a use of this host may still be answered; a
        reply that is not `journaled` can't wait, and uses of other hosts are not visible here.
        """
        now = earlier_now(self._clock)
        await tx.connections.get_for_update(late.tenant, late.connection_id)  # no intent comes in between
        open_use = await tx.attempts.open_of_any_kind(late.tenant, late.connection_id, late.slot)
        if (
            open_use is not None
            and journaled
            and may_invalidate(open_use, late, rules, now)
            and self.status_of(open_use).owner_alive is not None
            and self.may_be_answered(open_use)
        ):
            raise self.pending("another worker of this host has sent it again and waits for the answer")
        uses = await tx.attempts.other_possibly_harmful_uses(late)
        may_be_invalid = any(may_invalidate(use, late, rules, now) for use in uses)
        row = await tx.attempts.get(late.tenant, late.id)
        if may_be_invalid and row is not None and row.outcome is AttemptOutcome.SUPERSEDED:
            await tx.attempts.mark_installed_late(row)
        return may_be_invalid

    def without_clock_skew(self, attempt: Attempt) -> Attempt:
        """An attempt whose deadlines can be compared with this host's clock.

        For one that is dated ahead of it, they count from when this worker first saw it (ADR 0020).
        """
        now = earlier_now(self._clock)
        if not is_dated_ahead(attempt, now, self.limits):
            return attempt
        if len(self._first_seen) >= _MAX_FIRST_SEEN and attempt.id not in self._first_seen:
            self._first_seen.clear()
        since = self._first_seen.setdefault(attempt.id, seconds_since_boot())
        return redated(attempt, now - timedelta(seconds=seconds_since_boot() - since), self.limits)

    def now(self) -> datetime:
        """The earlier of the local and Temporal's time."""
        return earlier_now(self._clock)

    def fence(self, attempt: Attempt) -> None:
        """Keep the owner from sending, where it is on this host. Raises Failure REFRESH_PENDING while it
        sends."""
        if not self._journal.fence(attempt):
            raise self.pending("its owner was stopped in the instant of sending")

    def pending(self, why: str) -> Failure:
        """The failure for what has to be waited for."""
        return Failure(ErrorCode.REFRESH_PENDING, why, retry_after=self.limits.poll_interval.total_seconds())


async def open_attempt(tx: Transaction, connection: Connection) -> Attempt | None:
    """The open attempt of a connection, of any kind. Its worker may have crashed."""
    return await tx.attempts.open_of_any_kind(connection.tenant, connection.id, MAIN_SLOT)


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
    _require_here(position, tracker)
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
        tracker.fence(earlier)
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
    tx: Transaction, attempt: Attempt, unknown: Attempt | None, rules: RefreshRules, tracker: AttemptTracker
) -> None:
    """Raises Failure REFRESH_PENDING while a journal holds a late reply that a further use may invalidate."""
    if unknown is None:
        return
    counted = with_earlier_sends(attempt, unknown)
    if not may_invalidate(counted, unknown, rules, attempt.opened_at):
        return
    generation = attempt.from_generation
    superseded = await tx.attempts.superseded(attempt.tenant, attempt.connection_id, generation)
    same = [earlier for earlier in superseded if earlier.spends(attempt.kind, generation, attempt.credential)]
    if tracker.has_late_entry(same):
        raise tracker.pending("a late reply waits in a journal")


def _require_here(position: Position | None, tracker: AttemptTracker) -> None:
    """Raises Failure REFRESH_PENDING while the tenant is moved to another cell: this one spends nothing."""
    if position is not None and position.phase is not MovePhase.HERE:
        raise tracker.pending("the tenant is being moved to another cell, which goes on in a moment")


def _require_unchanged(attempt: Attempt, state: LifecycleState, now: Position | None) -> None:
    """Raises Failure STORE_CONFLICT when an attempt that ended since the credential was read has spent
    it: it left no open row, but a newer generation or a connection in another state."""
    if now is None or (now.state, now.generation) != (state, attempt.from_generation):
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
