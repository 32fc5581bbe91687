"""The protocol for single-use credentials: intent before, journal after, nothing between is cut.

Refresh tokens, authorization codes and whatever else works once are spent here and nowhere
else. The order is the rule (docs/protocol.md): keys held, room on disk, intent, send, journal,
commit, drop.
"""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Generic, TypeVar

from activities.single_use.critical_section import CriticalSections
from activities.single_use.journaled_reply import JournaledReply
from activities.single_use.send_fence import SendFence
from activities.support.clocks import earlier_now, later_now
from evergrant_server.core.clock import Clock, seconds_since_boot
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.grant import MAIN_SLOT, TokenSet
from evergrant_server.core.connections.refresh_rules import RefreshRules
from evergrant_server.core.errors import ErrorCode, Failure, FailureKind
from evergrant_server.core.ids import AttemptId, new_id
from evergrant_server.core.messages.connection import ConnectionCall
from evergrant_server.core.single_use.attempt import (
    LIMITS,
    Attempt,
    AttemptKind,
    AttemptOutcome,
    Takeover,
    TimeLimits,
    answer_may_come,
    decide_attempt,
    is_dated_ahead,
    may_invalidate,
    outcome_of_error,
    redated,
    with_earlier_sends,
)
from evergrant_server.crypto import KeyPurpose
from evergrant_server.egress import BeforeSend
from evergrant_server.journal import AttemptStatus, Journal, JournalEntry, JournalReservation
from evergrant_server.store import NO_CONNECTION, Store, Transaction, UnwrappedKeys
from evergrant_server.telemetry import metrics
from evergrant_server.telemetry.log_names import LogEvent
from evergrant_server.telemetry.logs import log_event, stack_frames
from providers.requests.sender import SendFailed
from providers.responses.error_mapping import UnreadableTokens
from providers.responses.raw_reply import RawReply

log = logging.getLogger("evergrant.protocol")

T = TypeVar("T")

_MAX_SET_ASIDE = 1000  # files of a quarter of a megabyte at the most, told of by doctor and a metric
_MAX_FIRST_SEEN = 10_000
_MAY_ISSUE_FURTHER_SLOTS = (AttemptKind.CODE_EXCHANGE, AttemptKind.LATE_TOKENS)
ANSWER_PURPOSES = (
    KeyPurpose.LEASE,
    KeyPurpose.REFRESH,
)  # what an answer is sealed with, in the journal and in the store


@dataclass(frozen=True)
class SingleUseAttempt:
    """One use under way: its intent is committed, and what its answer needs is in hand."""

    row: Attempt
    keys: UnwrappedKeys
    reservation: JournalReservation | None = None  # None: its answer came from a journal
    began_at: float = 0.0  # elapsed time before the intent, from which `send_by` counts
    entry: JournalEntry | None = None  # its answer, once a journal has it


SendRequest = Callable[[BeforeSend], Awaitable[RawReply]]


@dataclass(frozen=True)
class OutcomeHandler(Generic[T]):
    """What becomes of an answer. The same for one that has just come and for one from a journal.

    `judge` is pure. `commit` gets the tokens; `settle` gets the failure and what it says about
    the credential (None: it may be spent, and the attempt stays open).
    """

    judge: Callable[[RawReply], TokenSet]
    commit: Callable[[SingleUseAttempt, TokenSet], Awaitable[T]]
    fail: Callable[[SingleUseAttempt, Failure, AttemptOutcome | None], Awaitable[T]]
    provisional: bool = False  # by a staged definition, which the journal has to remember
    spends_credential: bool = True  # False: what was asked with may be used again, and brings as much


class SingleUseProtocol:
    """Opens attempts, spends what they are for, and settles them whatever the answer is."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        sections: CriticalSections,
        journal: Journal,
        limits: TimeLimits = LIMITS,
    ) -> None:
        self._store = store
        self._clock = clock
        self._sections = sections
        self._journal = journal
        self.limits = limits
        self._first_seen: dict[AttemptId, float] = {}  # dated ahead of us: when it was first seen, elapsed

    async def open(
        self,
        kind: AttemptKind,
        connection: Connection,
        rules: RefreshRules,
        *,
        token_valid: bool,
        credential: str = "",
    ) -> SingleUseAttempt:
        """Hold the keys, reserve room, then commit the intent. Nothing was sent when it raises.

        Raises Failure REFRESH_PENDING while an earlier attempt has to be waited for,
        OUTCOME_UNKNOWN when the credential was sent as often as it may be, REPLY_UNREADABLE while
        its answer is kept for a definition that can read it, and
        KEY_UNAVAILABLE, JOURNAL_UNAVAILABLE or STORE_UNAVAILABLE.
        """
        keys = await self._store.unwrap_keys(connection.tenant, connection.id, ANSWER_PURPOSES)
        if kind in _MAY_ISSUE_FURTHER_SLOTS:  # further chains that come with it wait in the intake lane
            keys = keys.merged_with(
                await self._store.unwrap_keys(connection.tenant, NO_CONNECTION, (KeyPurpose.INTAKE,))
            )
        began, now = seconds_since_boot(), self._clock.now()
        attempt = Attempt(
            tenant=connection.tenant,
            id=AttemptId(new_id("att")),
            connection_id=connection.id,
            kind=kind,
            credential=credential,
            from_generation=connection.generation,
            journal_id=self._journal.id,
            opened_at=now,
            send_by=later_now(self._clock) + self.limits.send,
        )
        room = await self._journal.in_thread(self._journal.reserve, attempt)
        try:
            async with self._store.write() as tx:
                attempt = await self._commit_intent(tx, attempt, connection.state, rules, token_valid)
        except BaseException as error:
            room.abandon(error)
            raise
        return SingleUseAttempt(attempt, keys, room, began)

    async def spend(
        self, use: SingleUseAttempt, order: ConnectionCall, *, send: SendRequest, ending: OutcomeHandler[T]
    ) -> T:
        """Send, journal, judge and commit in a section that nothing cuts."""
        assert use.reservation is not None
        room, limits = use.reservation, self.limits
        send_by = use.began_at + limits.send.total_seconds()
        sending = SendFence(room, self._clock, send_by, limits.poll_interval.total_seconds())

        async def section() -> T:
            try:
                return await self._send_and_conclude(use, order, sending, send, ending)
            finally:
                await self._journal.in_thread(room.release)
                await sending.record_double_send(self._store, use.row, order)

        return await self._sections.run(use.row.id, section())

    async def conclude(self, use: SingleUseAttempt, reply: RawReply, ending: OutcomeHandler[T]) -> T:
        """Judge an answer and have the store hold what it says; then its entry goes. Whatever raises,
        the answer isn't lost.

        Raises Failure REPLY_UNREADABLE for one that was set aside and still can't be read.
        """
        try:
            tokens = ending.judge(reply)
        except Failure as failure:
            return await self._conclude_failure(use, reply, ending, failure)
        except Exception as unexpected:
            self._log_unexpected(use, unexpected)
            raise Failure(ErrorCode.INTERNAL, "the answer can't be judged; the journal keeps it") from None
        concluded = await ending.commit(use, tokens)
        await self._drop_entry(use.entry)
        return concluded

    async def _conclude_failure(
        self, use: SingleUseAttempt, reply: RawReply, ending: OutcomeHandler[T], failure: Failure
    ) -> T:
        """A no, or a yes that nobody can read: that may hold the only good token, so it is set aside,
        and while it is there what it was asked with isn't sent again."""
        entry, unread = use.entry, failure.code is ErrorCode.REPLY_UNREADABLE and 200 <= reply.status < 300
        if unread and entry is not None and entry.is_set_aside:
            raise failure
        aside = (
            unread
            and ending.spends_credential
            and entry is not None
            and self._journal.count_waiting()[1] < _MAX_SET_ASIDE
        )
        refused = failure.kind is FailureKind.RECONNECT_NEEDED  # also when it came with status 200
        outcome = AttemptOutcome.REFUSED if refused else outcome_of_error(reply.status, failure.code)
        if aside and isinstance(failure, UnreadableTokens):
            outcome = AttemptOutcome.UNREAD
        settled = await ending.fail(use, failure, outcome)
        if aside and entry is not None:
            await self._journal.in_thread(self._journal.set_aside, entry.path)
            what = (log, logging.ERROR, LogEvent.JOURNAL_STUCK, failure.detail)
            log_event(*what, code=failure.code, object=use.row.id)
        else:
            await self._drop_entry(entry)
        return settled

    async def _drop_entry(self, entry: JournalEntry | None) -> None:
        if entry is not None:
            await self._journal.in_thread(entry.drop)

    def status_of(self, attempt: Attempt) -> AttemptStatus:
        """What is known of an attempt: is its owner alive, is it under way, is its answer here?"""
        seen = self._journal.status_of(attempt)
        if attempt.journal_id != self._journal.id:
            # a worker that was stopped past every deadline is fenced off rather than waited for
            deadline = (self.limits.send + self.limits.answer).total_seconds()
            over = seen.age_s is not None and seen.age_s >= deadline
            return replace(seen, in_flight=False) if seen.in_flight and over else seen
        return replace(seen, in_flight=seen.in_flight or self._sections.in_flight(attempt.id))

    def may_be_answered(self, attempt: Attempt) -> bool:
        """True while its answer may still come and be installed."""
        fate = self.status_of(attempt)
        return answer_may_come(
            self._without_clock_skew(attempt),
            earlier_now(self._clock),
            owner_alive=fate.owner_alive,
            in_flight=fate.in_flight,
            answered=fate.answered,
            limits=self.limits,
        )

    async def record_late_install(self, tx: Transaction, use: SingleUseAttempt, rules: RefreshRules) -> bool:
        """Have it written that an answer is installed after somebody else had taken over.

        Raises Failure REFRESH_PENDING while a neighbour's use of the same credential may still be
        answered: the provider may end by it what this answer brought, and says so then. What no journal
        keeps can't wait, and what another host does isn't seen from here. True when another use was
        refused or not answered: the provider may have ended by that one what this answer brought.
        """
        mine, now = use.row, earlier_now(self._clock)
        await tx.connections.get_for_update(mine.tenant, mine.connection_id)  # no intent comes in between
        other = await tx.attempts.open_of_any_kind(mine.tenant, mine.connection_id, mine.chain)
        if (
            other is not None
            and use.entry is not None
            and may_invalidate(other, mine, rules, now)
            and self.status_of(other).owner_alive is not None
            and self.may_be_answered(other)
        ):
            raise self._pending("a neighbour has sent it again, and waits for the answer")
        crossed = any(
            may_invalidate(it, mine, rules, now) for it in await tx.attempts.other_possibly_harmful_uses(mine)
        )
        taken_over = await tx.attempts.get(mine.tenant, mine.id)
        if crossed and taken_over is not None and taken_over.outcome is AttemptOutcome.SUPERSEDED:
            await tx.attempts.mark_installed_late(taken_over)
        return crossed

    def has_late_entry(self, taken_over: list[Attempt]) -> bool:
        """True while the answer to one of them lies on this host: it is replayed once the use that took over
        is over. Counted from the newest takeover: who was stopped, was for longer than anybody waits."""
        newest = max((it.closed_at or it.opened_at for it in taken_over), default=None)
        if newest is None:
            return False
        since = {"send_by": newest + self.limits.send}
        return any(
            self.status_of(it).answered and self.may_be_answered(it.model_copy(update=since))
            for it in taken_over
        )

    def _without_clock_skew(self, attempt: Attempt) -> Attempt:
        """Another host's clock, or ours before it was set right, was ahead: nobody waits until ours gets
        there, but as long as an answer may take from when we first saw it."""
        now = earlier_now(self._clock)
        if not is_dated_ahead(attempt, now, self.limits):
            return attempt
        if len(self._first_seen) >= _MAX_FIRST_SEEN and attempt.id not in self._first_seen:
            self._first_seen.clear()
        since = self._first_seen.setdefault(attempt.id, seconds_since_boot())
        return redated(attempt, now - timedelta(seconds=seconds_since_boot() - since), self.limits)

    async def _commit_intent(
        self, tx: Transaction, attempt: Attempt, state: LifecycleState, rules: RefreshRules, token_valid: bool
    ) -> Attempt:
        mine = (attempt.tenant, attempt.connection_id)
        _require_unchanged(attempt, state, await tx.connections.get(*mine))
        earlier = await tx.attempts.open_of_any_kind(*mine, attempt.chain)
        fate = self.status_of(earlier) if earlier is not None else AttemptStatus(None, None, False)
        if earlier is not None and fate.unsent:  # its owner died first: that was no use
            await tx.attempts.close(earlier, AttemptOutcome.NOT_SENT, attempt.opened_at)
            earlier = None
        unknown = await tx.attempts.newest_of_unknown_outcome(attempt)
        if unknown is not None and may_invalidate(
            with_earlier_sends(attempt, unknown), unknown, rules, attempt.opened_at
        ):
            at = attempt.from_generation
            taken_over = await tx.attempts.superseded(*mine, at)
            if self.has_late_entry(
                [it for it in taken_over if it.spends(attempt.kind, at, attempt.credential)]
            ):
                raise self._pending("an answer that came late waits in a journal")
        verdict = decide_attempt(
            attempt,
            rules,
            earlier_now(self._clock),
            opened=None if earlier is None else self._without_clock_skew(earlier),
            unknown=unknown,
            unread=await tx.attempts.unread_of_credential(attempt),
            token_valid=token_valid,
            owner_alive=fate.owner_alive,
            in_flight=fate.in_flight,
            answered=fate.answered,
            limits=self.limits,
        )
        if verdict is Takeover.WAIT:
            raise self._pending("an earlier attempt has no known outcome yet")
        if verdict is Takeover.AWAIT_DEFINITION:
            raise Failure(ErrorCode.REPLY_UNREADABLE, "its answer is kept until its definition can read it")
        if verdict is Takeover.GIVE_UP:
            raise Failure(ErrorCode.OUTCOME_UNKNOWN, "it was sent as often as it may be, and no answer came")
        attempt = with_earlier_sends(attempt, unknown)
        if earlier is not None:
            self._fence_previous(earlier, attempt, rules, fate)
            await tx.attempts.close(earlier, AttemptOutcome.SUPERSEDED, attempt.opened_at)
        await tx.attempts.open(attempt)
        # and again: from here on nobody else opens one or installs, and who was installing has
        _require_unchanged(attempt, state, await tx.connections.get_for_share(*mine))
        return attempt

    def _fence_previous(
        self, earlier: Attempt, attempt: Attempt, rules: RefreshRules, fate: AttemptStatus
    ) -> None:
        """Fence its owner off where that can be done, and say where it can't."""
        if not self._journal.fence(earlier):
            raise self._pending("its owner was stopped in the instant of sending")
        if attempt.sends > 1 and fate.owner_alive is None and rules.resend_is_safe_for is None:
            metrics.count_double_send("possible")

    async def _send_and_conclude(
        self,
        use: SingleUseAttempt,
        order: ConnectionCall,
        sending: SendFence,
        send: SendRequest,
        ending: OutcomeHandler[T],
    ) -> T:
        try:
            reply = await send(sending.check)
        except SendFailed as failure:
            return await ending.fail(use, failure, None if failure.sent else AttemptOutcome.NOT_SENT)
        except Failure as failure:  # the definition and the call don't fit: nothing was sent
            return await ending.fail(use, _as_client_misconfigured(failure), AttemptOutcome.NOT_SENT)
        except Exception as unexpected:  # whether a byte left isn't known
            self._log_unexpected(use, unexpected)
            return await ending.fail(use, Failure(ErrorCode.INTERNAL), None)
        answer = JournaledReply.for_request(order, reply, self._clock.now(), provisional=ending.provisional)
        kept = replace(use, entry=await self._write_entry(use, answer))
        return await self.conclude(kept, reply, ending)

    async def _write_entry(self, use: SingleUseAttempt, answer: JournaledReply) -> JournalEntry | None:
        """Before anything else is done with it. A disk that broke meanwhile stops no commit."""
        assert use.reservation is not None
        try:
            return await self._journal.in_thread(
                use.reservation.write_entry, use.keys.current(KeyPurpose.REFRESH), answer.pack()
            )
        except OSError as error:
            why = error.strerror or type(error).__name__
            log_event(log, logging.ERROR, LogEvent.JOURNAL_FAILED, why, object=use.row.id)
            return None

    def _pending(self, why: str) -> Failure:
        return Failure(ErrorCode.REFRESH_PENDING, why, retry_after=self.limits.poll_interval.total_seconds())

    @staticmethod
    def _log_unexpected(use: SingleUseAttempt, error: Exception) -> None:
        """Its text may quote anything: only the type and the place are kept."""
        what = f"{type(error).__name__} at {stack_frames(error)[-1]}"
        log_event(log, logging.ERROR, LogEvent.PROTOCOL_FAILED, what, object=use.row.id)


def _require_unchanged(attempt: Attempt, state: LifecycleState, now: Connection | None) -> None:
    """Raises Failure STORE_CONFLICT when an attempt that ended since the credential was read has
    spent it: it left no open row, but a newer generation, or a connection in another state."""
    if now is None or now.generation != attempt.from_generation or now.state is not state:
        raise Failure(ErrorCode.STORE_CONFLICT, f"{attempt.connection_id} was changed meanwhile")


async def open_attempt(tx: Transaction, connection: Connection) -> Attempt | None:
    """What is being spent for this connection, or was when somebody died. One at a time, of any kind."""
    return await tx.attempts.open_of_any_kind(connection.tenant, connection.id, MAIN_SLOT)


def _as_client_misconfigured(failure: Failure) -> Failure:
    """What a definition gets wrong is the integration's to repair, not a caller's."""
    if failure.kind is not FailureKind.BAD_REQUEST:
        return failure
    return Failure(ErrorCode.CLIENT_REJECTED, failure.detail)
