"""The protocol for single-use credentials: intent before, commit after, nothing between is cut.

Refresh tokens and authorization codes are spent here and nowhere else.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TypeVar

from activities.critical import CriticalSections
from evergrant_server.core.attempt import (
    Attempt,
    AttemptKind,
    Outcome,
    Takeover,
    answer_may_come,
    outcome_of_refusal,
    takeover,
)
from evergrant_server.core.clock import Clock
from evergrant_server.core.connection import Connection
from evergrant_server.core.errors import Code, Failure, Kind
from evergrant_server.core.grant import MAIN, TokenSet
from evergrant_server.core.ids import AttemptId, new_id
from evergrant_server.core.provider import RefreshRules
from evergrant_server.journal.lock import JournalLock
from evergrant_server.store import Store, Tx
from providers.flows import SendFailed
from providers.reply import RawReply

T = TypeVar("T")

SEND_LIMIT = timedelta(seconds=15)  # from the intent's commit to the first byte
_LOOK_AGAIN_S = 3.0

Send = Callable[[Callable[[], None]], Awaitable[RawReply]]
Judge = Callable[[RawReply], TokenSet]
Commit = Callable[[Attempt, TokenSet], Awaitable[T]]
Settle = Callable[[Attempt, Failure, Outcome | None], Awaitable[T]]


class SingleUse:
    """Opens attempts, spends what they are for, and settles them whatever the answer is."""

    def __init__(self, store: Store, clock: Clock, sections: CriticalSections, journal: JournalLock) -> None:
        self._store = store
        self._clock = clock
        self._sections = sections
        self._journal = journal

    async def begin(
        self, kind: AttemptKind, connection: Connection, rules: RefreshRules, *, token_valid: bool
    ) -> tuple[Attempt, Attempt | None]:
        """Commit the intent; says also which attempt already sent this credential, if one did.

        Raises Failure REFRESH_PENDING while an earlier attempt has to be waited for.
        """
        now = self._clock.now()
        attempt = Attempt(
            tenant=connection.tenant,
            id=AttemptId(new_id("att")),
            connection_id=connection.id,
            kind=kind,
            from_generation=connection.generation,
            journal_id=self._journal.id,
            opened_at=now,
            send_by=now + SEND_LIMIT,
        )
        async with self._store.write() as tx:
            earlier = await open_attempt(tx, connection)
            same_token = (
                earlier is not None
                and earlier.kind is kind
                and earlier.from_generation == connection.generation
            )
            if earlier is not None:
                if same_token:
                    self._may_take_over(earlier, rules, token_valid)
                elif self.may_answer(earlier):
                    raise _pending("another credential of this connection is being spent")
                await tx.attempts.close(earlier, Outcome.SUPERSEDED, now)
            await tx.attempts.open(attempt)
        return attempt, earlier if same_token else None

    async def spend(
        self, attempt: Attempt, *, send: Send, judge: Judge, commit: Commit[T], settle: Settle[T]
    ) -> T:
        """Send, judge and commit in a section that nothing cuts.

        `commit` gets the tokens; `settle` gets the failure and what it says about the
        credential (None: it may be spent, and the attempt stays open).
        """
        loop = asyncio.get_running_loop()
        send_by = loop.time() + SEND_LIMIT.total_seconds()  # elapsed time: no clock jump moves it

        def check() -> None:
            if loop.time() > send_by:
                raise _pending("too late to send")

        async def section() -> T:
            try:
                reply = await send(check)
            except SendFailed as failure:
                return await settle(attempt, failure, None if failure.sent else Outcome.NOT_SENT)
            except Failure as failure:  # the definition and the call don't fit: nothing was sent
                return await settle(attempt, _ours(failure), Outcome.NOT_SENT)
            try:
                tokens = judge(reply)
            except Failure as failure:
                refused = failure.kind is Kind.RECONNECT_NEEDED  # also when it came with status 200
                outcome = Outcome.REFUSED if refused else outcome_of_refusal(reply.status, failure.code)
                return await settle(attempt, failure, outcome)
            return await commit(attempt, tokens)

        return await self._sections.run(attempt.id, section())

    def fate(self, attempt: Attempt) -> tuple[bool | None, bool | None]:
        """What is known of an attempt's owner: is it alive, is its answer still awaited?"""
        alive = self._journal.held(attempt.journal_id)
        if attempt.journal_id == self._journal.id:
            return alive, self._sections.in_flight(attempt.id)
        return alive, False if alive is False else None

    def may_answer(self, attempt: Attempt) -> bool:
        """True while its answer may still come and be installed."""
        alive, in_flight = self.fate(attempt)
        return answer_may_come(attempt, self._clock.now(), owner_alive=alive, in_flight=in_flight)

    def _may_take_over(self, attempt: Attempt, rules: RefreshRules, token_valid: bool) -> None:
        alive, in_flight = self.fate(attempt)
        now = self._clock.now()
        verdict = takeover(
            attempt, rules, now, token_valid=token_valid, owner_alive=alive, in_flight=in_flight
        )
        if verdict is Takeover.WAIT:
            raise _pending("an earlier attempt has no known outcome yet")


async def open_attempt(tx: Tx, connection: Connection) -> Attempt | None:
    """What is being spent for this connection, or was when somebody died. One at a time, of any kind."""
    for kind in AttemptKind:
        attempt = await tx.attempts.open_for(connection.tenant, connection.id, MAIN, kind)
        if attempt is not None:
            return attempt
    return None


def _pending(why: str) -> Failure:
    return Failure(Code.REFRESH_PENDING, why, retry_after=_LOOK_AGAIN_S)


def _ours(failure: Failure) -> Failure:
    """What a definition gets wrong is the integration's to repair, not a caller's."""
    if failure.kind is not Kind.BAD_REQUEST:
        return failure
    return Failure(Code.CLIENT_REJECTED, failure.detail)
