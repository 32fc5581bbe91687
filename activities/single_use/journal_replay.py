"""Journal replay: concludes the replies of the journal that the store doesn't have, after a crash or a stop.

Any worker of a host replays its own entries whose commit failed, those of owners that are gone,
and those that a living owner, stopped or cut off from the store, leaves behind. What can't be
read is set aside, logged, and tried again: its definition may have been repaired.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from activities.single_use.attempt import REPLY_PURPOSES, JournaledReply, SingleUseAttempt
from activities.single_use.intent import CriticalSections, drop_unsent_intent
from evergrant_server import audit
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.clock import Clock, seconds_since_boot
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.single_use.attempt import Attempt, AttemptKind, AttemptOutcome
from evergrant_server.crypto import KeyPurpose
from evergrant_server.journal import Journal, JournalEntry
from evergrant_server.journal.entry import SET_ASIDE_SUFFIX
from evergrant_server.journal.journal import attempt_id_of
from evergrant_server.journal.reservation import RESERVATION_SUFFIX, read_unsent_header, rename_complete
from evergrant_server.store import Store
from evergrant_server.store.keys import NO_CONNECTION
from evergrant_server.telemetry import metrics
from evergrant_server.telemetry.logs import LogEvent, log_event, stack_frames

log = logging.getLogger("evergrant.journal")

_SWEEP_INTERVAL = timedelta(seconds=1)
_RETRY_SET_ASIDE_S = 30.0
_CONCLUDED = (AttemptOutcome.INSTALLED, AttemptOutcome.INSTALLED_LATE, AttemptOutcome.REFUSED)
_OVERDUE_S = 2.0  # a commit takes milliseconds; Temporal notices a stopped worker after five seconds


Replay = Callable[[SingleUseAttempt, JournaledReply], Coroutine[Any, Any, object]]


class JournalReplayer:
    """Concludes journal entries with the same judge and commit as a reply that has just arrived."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        journal: Journal,
        sections: CriticalSections,
        replays: Mapping[AttemptKind, Replay],
    ) -> None:
        self._store = store
        self._clock = clock
        self._journal = journal
        self._sections = sections
        self._replays = replays
        self._logged: set[tuple[Path, str]] = set()
        self._last_retry = seconds_since_boot()

    async def run(self, interval: timedelta = _SWEEP_INTERVAL) -> None:
        """Sweep until cancelled."""
        while True:
            try:
                await self.sweep()
            except Exception as unexpected:  # one bad entry must not end the sweeping of the others
                self._log_once(self._journal.folder, ErrorCode.INTERNAL, type(unexpected).__name__)
            await asyncio.sleep(interval.total_seconds())

    async def sweep(self) -> int:
        """Replay what no living worker concludes; returns how many replies were concluded."""
        done = 0
        for path in self._journal.own_paths():
            if not self._sections.in_flight(attempt_id_of(path)):  # its own section is about to drop it
                done += await self._replay_path(path)
        with self._journal.abandoned_paths() as paths:
            for path in paths:
                done += await self._replay_path(path)
        with self._journal.overdue_paths(_OVERDUE_S) as paths:
            for path in paths:
                done += await self._replay_path(path)
        if seconds_since_boot() - self._last_retry >= _RETRY_SET_ASIDE_S:
            done += await self.retry_set_aside()
        waiting, set_aside = self._journal.count_waiting()
        metrics.JOURNAL_WAITING.set(waiting)
        metrics.JOURNAL_SET_ASIDE.set(set_aside)
        return done

    async def retry_set_aside(self) -> int:
        """Replay what was set aside, where a definition can read it by now."""
        self._last_retry, done = seconds_since_boot(), 0
        for path in self._journal.set_aside_batch():  # two workers at once: the commit decides
            done += await self._replay_path(path)
        return done

    async def _replay_path(self, path: Path) -> bool:
        if path.suffix == RESERVATION_SUFFIX:
            try:
                complete = await self._journal.in_thread(rename_complete, path)
            except OSError:
                return False  # the next sweep tries again
            if complete is None:
                await self._close_unsent(path)
                return False
            path = complete
        try:
            entry = await self._journal.in_thread(JournalEntry.read, path)
            outcome = await self._replay(entry)
        except FileNotFoundError:
            return False  # its own section was faster
        except Failure as failure:
            self._handle_failure(path, failure)
            return False
        except Exception as unexpected:
            place = f"{type(unexpected).__name__} at {stack_frames(unexpected)[-1]}"
            self._log_once(path, ErrorCode.INTERNAL, place)
            return False
        await self._journal.in_thread(entry.drop)
        metrics.count(metrics.JOURNAL_REPLAYED, outcome)
        log_event(log, logging.WARNING, LogEvent.JOURNAL_REPLAYED, outcome, object=entry.header.attempt_id)
        return True

    async def _close_unsent(self, path: Path) -> None:
        """Close the attempt of an owner that died before it sent: the credential was not used."""
        try:
            header = await self._journal.in_thread(read_unsent_header, path)
            if header is not None:
                async with self._store.write() as tx:
                    if header.kind is AttemptKind.REGISTRATION:
                        await drop_unsent_intent(tx, header)
                    attempt = await tx.attempts.get(header.tenant, header.attempt_id)
                    if attempt is not None and attempt.outcome is None:
                        await tx.attempts.close(attempt, AttemptOutcome.NOT_SENT, self._clock.now())
            await self._journal.in_thread(path.unlink, missing_ok=True)
        except (Failure, OSError):
            return  # the next sweep tries again

    async def _replay(self, entry: JournalEntry) -> str:
        header = entry.header
        if header.kind is AttemptKind.REGISTRATION:
            return await self._replay_registration(entry)
        async with self._store.read() as tx:
            connection = await tx.connections.get(header.tenant, header.connection_id)
            attempt = await tx.attempts.get(header.tenant, header.attempt_id)
            named = header.tenant, header.connection_id
            erased = await audit.newest_record(tx, *named, AuditAction.CONNECTION_ERASED)
            if connection is not None and connection.state is LifecycleState.REVOKED:
                return "revoked"  # its keys were destroyed: the entry can't be opened
            if connection is None and erased is not None:  # it isn't only missing from a restored backup
                return "erased"  # likewise
            if connection is not None and attempt is None and connection.generation > header.from_generation:
                return "superseded"  # the store is a backup of before, and the subject has consented again
            if connection is None or attempt is None:
                raise Failure(ErrorCode.STORE_BEHIND, "the store doesn't know the attempt of this reply")
            if entry.is_set_aside and connection.generation != attempt.from_generation:
                return "superseded"  # the subject has consented again, or tokens were imported
            try:
                packed = await tx.sealer.open_bytes(
                    KeyPurpose.REFRESH, header.connection_id, header.associated_data, entry.sealed
                )
            except Failure as failure:
                if failure.code is ErrorCode.KEY_UNAVAILABLE and attempt.outcome in _CONCLUDED:
                    return "concluded"  # its worker died before it dropped the entry; its key was replaced
                raise
        keys = await self._store.unwrap_keys(header.tenant, header.connection_id, REPLY_PURPOSES)
        return await self._conclude(SingleUseAttempt(attempt, keys, entry=entry), packed)

    async def _replay_registration(self, entry: JournalEntry) -> str:
        """Replay the reply to a registration, which has neither a connection nor a row of its own."""
        header, now = entry.header, self._clock.now()
        async with self._store.read() as tx:
            packed = await tx.sealer.open_bytes(
                KeyPurpose.INTAKE, NO_CONNECTION, header.associated_data, entry.sealed
            )
        keys = await self._store.unwrap_keys(header.tenant, NO_CONNECTION, (KeyPurpose.INTAKE,))
        attempt = Attempt(
            **header.model_dump(exclude={"format", "attempt_id", "began_at"}),
            id=header.attempt_id,
            journal_id=self._journal.id,
            opened_at=now,
            send_by=now,
        )
        return await self._conclude(SingleUseAttempt(attempt, keys, entry=entry), packed)

    async def _conclude(self, attempt: SingleUseAttempt, packed: bytes) -> str:
        replay = self._replays[attempt.row.kind](attempt, JournaledReply.unpack(packed))
        await self._sections.run(attempt.row.id, asyncio.create_task(replay))
        return "replayed"

    def _handle_failure(self, path: Path, failure: Failure) -> None:
        """Set aside what can never be read; everything else is tried again."""
        if failure.code is ErrorCode.REFRESH_PENDING:
            return  # another worker's use is in flight: not worth a log line
        if failure.code is ErrorCode.SEAL_BROKEN and path.suffix != SET_ASIDE_SUFFIX:
            path = self._journal.set_aside(path)
            metrics.count(metrics.JOURNAL_REPLAYED, failure.code)
        self._log_once(path, failure.code, failure.detail)

    def _log_once(self, path: Path, code: ErrorCode, detail: str) -> None:
        """Once for each entry and code, not once a sweep."""
        if (path, code) not in self._logged:
            self._logged.add((path, code))
            log_event(log, logging.ERROR, LogEvent.JOURNAL_STUCK, detail, code=code, object=path.stem)
