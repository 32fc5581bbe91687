"""Replays what owners left behind: answers that a journal of this host has and the store hasn't.

Any worker of a host replays its own entries whose commit failed, those of every owner that is gone,
and those that a living owner, stopped or cut off from the store, leaves lying; at start-up and from
then on. What can't be read is kept, set aside and told, and looked at again: its definition may
have been repaired.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from pathlib import Path

from activities.answers import Answer
from activities.critical import CriticalSections
from activities.registration import forget_unsent
from activities.single_use import LANES, Use
from evergrant_server import telemetry_metrics as metrics
from evergrant_server.core.attempt import Attempt, AttemptKind, Outcome
from evergrant_server.core.clock import Clock, elapsed
from evergrant_server.core.connection import State
from evergrant_server.core.errors import Code, Failure
from evergrant_server.crypto import Lane
from evergrant_server.journal import Entry, Journal
from evergrant_server.journal.entry import ROOM, SET_ASIDE, unsent
from evergrant_server.journal.journal import attempt_id_of
from evergrant_server.store import Store
from evergrant_server.store.seals import NOBODY
from evergrant_server.telemetry import frames, say
from evergrant_server.telemetry_names import Event

log = logging.getLogger("evergrant.journal")

Conclude = Callable[[Use, Answer], Awaitable[object]]

_OFTEN = timedelta(seconds=1)
_LOOK_AGAIN_S = 30.0
_OVERDUE_S = 2.0  # a commit takes milliseconds; Temporal finds a stopped worker out after five seconds


class Replayer:
    """Takes journals' entries through the same judge and commit as an answer that has just come."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        journal: Journal,
        sections: CriticalSections,
        endings: Mapping[AttemptKind, Conclude],
    ) -> None:
        self._store = store
        self._clock = clock
        self._journal = journal
        self._sections = sections
        self._endings = endings
        self._told: set[tuple[Path, str]] = set()
        self._looked = elapsed()

    async def run(self, interval: timedelta = _OFTEN) -> None:
        """Sweep until cancelled."""
        while True:
            try:
                await self.sweep()
            except Exception as unexpected:  # one bad entry must not end the sweeping of the others
                self._say(self._journal.folder, Code.INTERNAL, type(unexpected).__name__)
            await asyncio.sleep(interval.total_seconds())

    async def sweep(self) -> int:
        """Replay what is free; says how many answers the store has now that it hadn't."""
        done = 0
        for path in self._journal.mine():
            if not self._sections.in_flight(attempt_id_of(path)):  # its own section is about to drop it
                done += await self._one(path)
        with self._journal.abandoned() as left:
            for path in left:
                done += await self._one(path)
        with self._journal.overdue(_OVERDUE_S) as left:
            for path in left:
                done += await self._one(path)
        if elapsed() - self._looked >= _LOOK_AGAIN_S:
            done += await self.look_again()
        metrics.journal_seen(*self._journal.left_behind())
        return done

    async def look_again(self) -> int:
        """Replay what was set aside, where a definition can read it by now."""
        self._looked, done = elapsed(), 0
        for path in self._journal.aside():  # two workers that do this at once find out when they commit
            done += await self._one(path)
        return done

    async def _one(self, path: Path) -> bool:
        if path.suffix == ROOM:
            await self._no_answer(path)
            return False
        try:
            entry = await self._journal.in_thread(Entry.read, path)
            outcome = await self._replay(entry)
        except FileNotFoundError:
            return False  # its own section was faster
        except Failure as failure:
            self._failed(path, failure)
            return False
        except Exception as unexpected:
            self._say(path, Code.INTERNAL, f"{type(unexpected).__name__} at {frames(unexpected)[-1]}")
            return False
        await self._journal.in_thread(entry.drop)
        metrics.journal_replayed(outcome)
        say(log, logging.WARNING, Event.JOURNAL_REPLAYED, outcome, object=entry.header.attempt_id)
        return True

    async def _no_answer(self, path: Path) -> None:
        """An owner died before an answer. What it certainly didn't send counts as no use."""
        try:
            header = await self._journal.in_thread(unsent, path)
            if header is not None:
                async with self._store.write() as tx:
                    if header.kind is AttemptKind.REGISTRATION:
                        await forget_unsent(tx, header)
                    attempt = await tx.attempts.get(header.tenant, header.attempt_id)
                    if attempt is not None and attempt.outcome is None:
                        await tx.attempts.close(attempt, Outcome.NOT_SENT, self._clock.now())
            await self._journal.in_thread(path.unlink, missing_ok=True)
        except (Failure, OSError):
            return  # the next sweep

    async def _replay(self, entry: Entry) -> str:
        header = entry.header
        if header.kind is AttemptKind.REGISTRATION:
            return await self._of_an_integration(entry)
        async with self._store.read() as tx:
            connection = await tx.connections.get(header.tenant, header.connection_id)
            attempt = await tx.attempts.get(header.tenant, header.attempt_id)
            if connection is not None and connection.state is State.REVOKED:
                return "revoked"  # its keys were destroyed: nobody can open this, and nobody should
            if connection is None or attempt is None:
                raise Failure(Code.STORE_BEHIND, "the store doesn't know the attempt of this answer")
            if entry.aside and connection.generation != attempt.from_generation:
                return "superseded"  # the subject has consented again, or tokens were imported
            packed = await tx.keys.open_bytes(Lane.REFRESH, header.connection_id, header.place, entry.sealed)
        answer = Answer.unpacked(packed)
        keys = await self._store.hold_keys(header.tenant, header.connection_id, LANES)
        work = self._endings[attempt.kind](Use(attempt, keys, entry=entry), answer)
        await self._sections.run(attempt.id, _awaited(work))
        return "replayed"

    async def _of_an_integration(self, entry: Entry) -> str:
        """The answer to a registration: it has no connection, and no row of its own."""
        header, now = entry.header, self._clock.now()
        async with self._store.read() as tx:
            packed = await tx.keys.open_bytes(Lane.INTAKE, NOBODY, header.place, entry.sealed)
        keys = await self._store.hold_keys(header.tenant, NOBODY, (Lane.INTAKE,))
        attempt = Attempt(
            **header.model_dump(exclude={"format", "attempt_id", "began"}),
            id=header.attempt_id,
            journal_id=self._journal.id,
            opened_at=now,
            send_by=now,
        )
        work = self._endings[attempt.kind](Use(attempt, keys, entry=entry), Answer.unpacked(packed))
        await self._sections.run(attempt.id, _awaited(work))
        return "replayed"

    def _failed(self, path: Path, failure: Failure) -> None:
        """Unreadable for good: out of the way. Everything else is tried again."""
        if failure.code is Code.REFRESH_PENDING:
            return  # another worker's use is under way: it is no trouble to wait for
        if failure.code is Code.SEAL_BROKEN and path.suffix != SET_ASIDE:
            path = self._journal.set_aside(path)
            metrics.journal_replayed(failure.code)
        self._say(path, failure.code, failure.detail)

    def _say(self, path: Path, code: Code, detail: str) -> None:
        """Once for each trouble, not once a sweep."""
        if (path, code) not in self._told:
            self._told.add((path, code))
            say(log, logging.ERROR, Event.JOURNAL_STUCK, detail, code=code, object=path.stem)


async def _awaited(work: Awaitable[object]) -> object:
    return await work
