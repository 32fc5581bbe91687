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

from activities.answers import Answer
from activities.clocks import earlier_hour, later_hour
from activities.critical import CriticalSections
from activities.sending import Sending
from evergrant_server import telemetry_metrics as metrics
from evergrant_server.core.attempt import (
    LIMITS,
    Attempt,
    AttemptKind,
    Limits,
    Outcome,
    Takeover,
    answer_may_come,
    counted,
    dated_ahead,
    decide,
    may_end,
    outcome_of_refusal,
    seen_since,
)
from evergrant_server.core.clock import Clock, elapsed
from evergrant_server.core.connection import Connection, State
from evergrant_server.core.errors import Code, Failure, Kind
from evergrant_server.core.grant import MAIN, TokenSet
from evergrant_server.core.ids import AttemptId, new_id
from evergrant_server.core.messages import Call
from evergrant_server.core.provider import RefreshRules
from evergrant_server.crypto import Lane
from evergrant_server.egress import BeforeSend
from evergrant_server.journal import Entry, Fate, Journal, Room
from evergrant_server.store import NOBODY, HeldKeys, Store, Tx
from evergrant_server.telemetry import frames, say
from evergrant_server.telemetry_names import Event
from providers.flows import SendFailed
from providers.reply import RawReply
from providers.verdicts import UnreadTokens

log = logging.getLogger("evergrant.protocol")

T = TypeVar("T")

_MOST_SET_ASIDE = 1000  # files of a quarter of a megabyte at the most, told of by doctor and a metric
_MOST_AHEAD = 10_000
_BRING_CHAINS = (AttemptKind.CODE_EXCHANGE, AttemptKind.LATE_ANSWER)
LANES = (Lane.LEASE, Lane.REFRESH)  # what an answer is sealed with, in the journal and in the store


@dataclass(frozen=True)
class Use:
    """One use under way: its intent is committed, and what its answer needs is in hand."""

    attempt: Attempt
    keys: HeldKeys
    room: Room | None = None  # None: its answer came from a journal
    began: float = 0.0  # elapsed time before the intent, from which `send_by` counts
    entry: Entry | None = None  # its answer, once a journal has it


Send = Callable[[BeforeSend], Awaitable[RawReply]]


@dataclass(frozen=True)
class Ending(Generic[T]):
    """What becomes of an answer. The same for one that has just come and for one from a journal.

    `judge` is pure. `commit` gets the tokens; `settle` gets the failure and what it says about
    the credential (None: it may be spent, and the attempt stays open).
    """

    judge: Callable[[RawReply], TokenSet]
    commit: Callable[[Use, TokenSet], Awaitable[T]]
    settle: Callable[[Use, Failure, Outcome | None], Awaitable[T]]
    provisional: bool = False  # by a staged definition, which the journal has to remember
    spends: bool = True  # False: what was asked with may be used again, and brings as much


class SingleUse:
    """Opens attempts, spends what they are for, and settles them whatever the answer is."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        sections: CriticalSections,
        journal: Journal,
        limits: Limits = LIMITS,
    ) -> None:
        self._store = store
        self._clock = clock
        self._sections = sections
        self._journal = journal
        self.limits = limits
        self._ahead: dict[AttemptId, float] = {}  # dated ahead of us: when it was first seen, elapsed

    async def begin(
        self,
        kind: AttemptKind,
        connection: Connection,
        rules: RefreshRules,
        *,
        token_valid: bool,
        credential: str = "",
    ) -> Use:
        """Hold the keys, reserve room, then commit the intent. Nothing was sent when it raises.

        Raises Failure REFRESH_PENDING while an earlier attempt has to be waited for,
        OUTCOME_UNKNOWN when the credential was sent as often as it may be, REPLY_UNREADABLE while
        its answer is kept for a definition that can read it, and
        KEY_UNAVAILABLE, JOURNAL_UNAVAILABLE or STORE_UNAVAILABLE.
        """
        keys = await self._store.hold_keys(connection.tenant, connection.id, LANES)
        if kind in _BRING_CHAINS:  # further chains that come with it wait in the intake lane
            keys = keys.joined(await self._store.hold_keys(connection.tenant, NOBODY, (Lane.INTAKE,)))
        began, now = elapsed(), self._clock.now()
        attempt = Attempt(
            tenant=connection.tenant,
            id=AttemptId(new_id("att")),
            connection_id=connection.id,
            kind=kind,
            credential=credential,
            from_generation=connection.generation,
            journal_id=self._journal.id,
            opened_at=now,
            send_by=later_hour(self._clock) + self.limits.send,
        )
        room = await self._journal.in_thread(self._journal.reserve, attempt)
        try:
            async with self._store.write() as tx:
                attempt = await self._intend(tx, attempt, connection.state, rules, token_valid)
        except BaseException as error:
            room.unused(error)
            raise
        return Use(attempt, keys, room, began)

    async def spend(self, use: Use, order: Call, *, send: Send, ending: Ending[T]) -> T:
        """Send, journal, judge and commit in a section that nothing cuts."""
        assert use.room is not None
        room, limits = use.room, self.limits
        send_by = use.began + limits.send.total_seconds()
        sending = Sending(room, self._clock, send_by, limits.look_again.total_seconds())

        async def section() -> T:
            try:
                return await self._section(use, order, sending, send, ending)
            finally:
                await self._journal.in_thread(room.release)
                await sending.tell_if_sent_twice(self._store, use.attempt, order)

        return await self._sections.run(use.attempt.id, section())

    async def conclude(self, use: Use, reply: RawReply, ending: Ending[T]) -> T:
        """Judge an answer and have the store hold what it says; then its entry goes. Whatever raises,
        the answer isn't lost.

        Raises Failure REPLY_UNREADABLE for one that was set aside and still can't be read.
        """
        try:
            tokens = ending.judge(reply)
        except Failure as failure:
            return await self._without_tokens(use, reply, ending, failure)
        except Exception as unexpected:
            self._unexpected(use, unexpected)
            raise Failure(Code.INTERNAL, "the answer can't be judged; the journal keeps it") from None
        concluded = await ending.commit(use, tokens)
        await self._drop(use.entry)
        return concluded

    async def _without_tokens(self, use: Use, reply: RawReply, ending: Ending[T], failure: Failure) -> T:
        """A no, or a yes that nobody can read: that may hold the only good token, so it is set aside,
        and while it is there what it was asked with isn't sent again."""
        entry, unread = use.entry, failure.code is Code.REPLY_UNREADABLE and 200 <= reply.status < 300
        if unread and entry is not None and entry.aside:
            raise failure
        aside = (
            unread
            and ending.spends
            and entry is not None
            and self._journal.left_behind()[1] < _MOST_SET_ASIDE
        )
        refused = failure.kind is Kind.RECONNECT_NEEDED  # also when it came with status 200
        outcome = Outcome.REFUSED if refused else outcome_of_refusal(reply.status, failure.code)
        if aside and isinstance(failure, UnreadTokens):
            outcome = Outcome.UNREAD
        settled = await ending.settle(use, failure, outcome)
        if aside and entry is not None:
            await self._journal.in_thread(self._journal.set_aside, entry.path)
            what = (log, logging.ERROR, Event.JOURNAL_STUCK, failure.detail)
            say(*what, code=failure.code, object=use.attempt.id)
        else:
            await self._drop(entry)
        return settled

    async def _drop(self, entry: Entry | None) -> None:
        if entry is not None:
            await self._journal.in_thread(entry.drop)

    def fate(self, attempt: Attempt) -> Fate:
        """What is known of an attempt: is its owner alive, is it under way, is its answer here?"""
        seen = self._journal.fate(attempt)
        if attempt.journal_id != self._journal.id:
            # a worker that was stopped past every deadline is fenced off rather than waited for
            deadline = (self.limits.send + self.limits.answer).total_seconds()
            over = seen.age_s is not None and seen.age_s >= deadline
            return replace(seen, in_flight=False) if seen.in_flight and over else seen
        return replace(seen, in_flight=seen.in_flight or self._sections.in_flight(attempt.id))

    def may_answer(self, attempt: Attempt) -> bool:
        """True while its answer may still come and be installed."""
        fate = self.fate(attempt)
        return answer_may_come(
            self._dated(attempt),
            earlier_hour(self._clock),
            owner_alive=fate.owner_alive,
            in_flight=fate.in_flight,
            answered=fate.answered,
            limits=self.limits,
        )

    async def install_late(self, tx: Tx, use: Use, rules: RefreshRules) -> bool:
        """Have it written that an answer is installed after somebody else had taken over.

        Raises Failure REFRESH_PENDING while a neighbour's use of the same credential may still be
        answered: the provider may end by it what this answer brought, and says so then. What no journal
        keeps can't wait, and what another host does isn't seen from here. True when another use was
        refused or not answered: the provider may have ended by that one what this answer brought.
        """
        mine, now = use.attempt, earlier_hour(self._clock)
        await tx.connections.get_for_update(mine.tenant, mine.connection_id)  # no intent comes in between
        other = await tx.attempts.opened(mine.tenant, mine.connection_id, mine.chain)
        if (
            other is not None
            and use.entry is not None
            and may_end(other, mine, rules, now)
            and self.fate(other).owner_alive is not None
            and self.may_answer(other)
        ):
            raise self._pending("a neighbour has sent it again, and waits for the answer")
        crossed = any(may_end(it, mine, rules, now) for it in await tx.attempts.may_have_ended(mine))
        taken_over = await tx.attempts.get(mine.tenant, mine.id)
        if crossed and taken_over is not None and taken_over.outcome is Outcome.SUPERSEDED:
            await tx.attempts.installed_late(taken_over)
        return crossed

    def kept_late(self, taken_over: list[Attempt]) -> bool:
        """True while the answer to one of them lies on this host: it is replayed once the use that took over
        is over. Counted from the newest takeover: who was stopped, was for longer than anybody waits."""
        newest = max((it.closed_at or it.opened_at for it in taken_over), default=None)
        if newest is None:
            return False
        since = {"send_by": newest + self.limits.send}
        return any(
            self.fate(it).answered and self.may_answer(it.model_copy(update=since)) for it in taken_over
        )

    def _dated(self, attempt: Attempt) -> Attempt:
        """Another host's clock, or ours before it was set right, was ahead: nobody waits until ours gets
        there, but as long as an answer may take from when we first saw it."""
        now = earlier_hour(self._clock)
        if not dated_ahead(attempt, now, self.limits):
            return attempt
        if len(self._ahead) >= _MOST_AHEAD and attempt.id not in self._ahead:
            self._ahead.clear()
        since = self._ahead.setdefault(attempt.id, elapsed())
        return seen_since(attempt, now - timedelta(seconds=elapsed() - since), self.limits)

    async def _intend(
        self, tx: Tx, attempt: Attempt, state: State, rules: RefreshRules, token_valid: bool
    ) -> Attempt:
        mine = (attempt.tenant, attempt.connection_id)
        _refuse_spent(attempt, state, await tx.connections.get(*mine))
        earlier = await tx.attempts.opened(*mine, attempt.chain)
        fate = self.fate(earlier) if earlier is not None else Fate(None, None, False)
        if earlier is not None and fate.unsent:  # its owner died first: that was no use
            await tx.attempts.close(earlier, Outcome.NOT_SENT, attempt.opened_at)
            earlier = None
        unknown = await tx.attempts.last_unknown(attempt)
        if unknown is not None and may_end(counted(attempt, unknown), unknown, rules, attempt.opened_at):
            at = attempt.from_generation
            taken_over = await tx.attempts.superseded(*mine, at)
            if self.kept_late([it for it in taken_over if it.spends(attempt.kind, at, attempt.credential)]):
                raise self._pending("an answer that came late waits in a journal")
        verdict = decide(
            attempt,
            rules,
            earlier_hour(self._clock),
            opened=None if earlier is None else self._dated(earlier),
            unknown=unknown,
            unread=await tx.attempts.unread_use(attempt),
            token_valid=token_valid,
            owner_alive=fate.owner_alive,
            in_flight=fate.in_flight,
            answered=fate.answered,
            limits=self.limits,
        )
        if verdict is Takeover.WAIT:
            raise self._pending("an earlier attempt has no known outcome yet")
        if verdict is Takeover.READ:
            raise Failure(Code.REPLY_UNREADABLE, "its answer is kept until its definition can read it")
        if verdict is Takeover.GIVE_UP:
            raise Failure(Code.OUTCOME_UNKNOWN, "it was sent as often as it may be, and no answer came")
        attempt = counted(attempt, unknown)
        if earlier is not None:
            self._takes_over(earlier, attempt, rules, fate)
            await tx.attempts.close(earlier, Outcome.SUPERSEDED, attempt.opened_at)
        await tx.attempts.open(attempt)
        # and again: from here on nobody else opens one or installs, and who was installing has
        _refuse_spent(attempt, state, await tx.connections.get_for_share(*mine))
        return attempt

    def _takes_over(self, earlier: Attempt, attempt: Attempt, rules: RefreshRules, fate: Fate) -> None:
        """Fence its owner off where that can be done, and say where it can't."""
        if not self._journal.fence(earlier):
            raise self._pending("its owner was stopped in the instant of sending")
        if attempt.sends > 1 and fate.owner_alive is None and rules.resend_is_safe_for is None:
            metrics.sent_twice("possible")

    async def _section(self, use: Use, order: Call, sending: Sending, send: Send, ending: Ending[T]) -> T:
        try:
            reply = await send(sending.check)
        except SendFailed as failure:
            return await ending.settle(use, failure, None if failure.sent else Outcome.NOT_SENT)
        except Failure as failure:  # the definition and the call don't fit: nothing was sent
            return await ending.settle(use, _ours(failure), Outcome.NOT_SENT)
        except Exception as unexpected:  # whether a byte left isn't known
            self._unexpected(use, unexpected)
            return await ending.settle(use, Failure(Code.INTERNAL), None)
        answer = Answer.to(order, reply, self._clock.now(), provisional=ending.provisional)
        kept = replace(use, entry=await self._journalled(use, answer))
        return await self.conclude(kept, reply, ending)

    async def _journalled(self, use: Use, answer: Answer) -> Entry | None:
        """Before anything else is done with it. A disk that broke meanwhile stops no commit."""
        assert use.room is not None
        try:
            return await self._journal.in_thread(
                use.room.keep, use.keys.current(Lane.REFRESH), answer.packed()
            )
        except OSError as error:
            why = error.strerror or type(error).__name__
            say(log, logging.ERROR, Event.JOURNAL_FAILED, why, object=use.attempt.id)
            return None

    def _pending(self, why: str) -> Failure:
        return Failure(Code.REFRESH_PENDING, why, retry_after=self.limits.look_again.total_seconds())

    @staticmethod
    def _unexpected(use: Use, error: Exception) -> None:
        """Its text may quote anything: only the type and the place are kept."""
        what = f"{type(error).__name__} at {frames(error)[-1]}"
        say(log, logging.ERROR, Event.PROTOCOL_FAILED, what, object=use.attempt.id)


def _refuse_spent(attempt: Attempt, state: State, now: Connection | None) -> None:
    """Raises Failure STORE_CONFLICT when an attempt that ended since the credential was read has
    spent it: it left no open row, but a newer generation, or a connection in another state."""
    if now is None or now.generation != attempt.from_generation or now.state is not state:
        raise Failure(Code.STORE_CONFLICT, f"{attempt.connection_id} was changed meanwhile")


async def open_attempt(tx: Tx, connection: Connection) -> Attempt | None:
    """What is being spent for this connection, or was when somebody died. One at a time, of any kind."""
    return await tx.attempts.opened(connection.tenant, connection.id, MAIN)


def _ours(failure: Failure) -> Failure:
    """What a definition gets wrong is the integration's to repair, not a caller's."""
    if failure.kind is not Kind.BAD_REQUEST:
        return failure
    return Failure(Code.CLIENT_REJECTED, failure.detail)
