"""Sends audit records to the receivers of streams, at least once: signed, through the egress guard.

A task of its own in each worker, beside Temporal: a batch needs no history, and a lease waits for none of it.
`audit.streams.cursors` says what waits, `core.audit_streams` when a stream goes on after a failure. A stream
belongs to the worker that has claimed it; its cursors move in the transaction after the receiver's answer.
"""

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from functools import cached_property
from typing import NamedTuple

import httpx2

from evergrant_server.audit.streams import EncodedBatch, cursors, encode
from evergrant_server.bounded_concurrency import FairTurns
from evergrant_server.core.audit import INSTALLATION
from evergrant_server.core.audit_streams.state import StreamState
from evergrant_server.core.audit_streams.stream import (
    INSTALLATION_STREAM,
    StreamBegin,
    StreamFormat,
    StreamProblem,
)
from evergrant_server.core.clock import Clock
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import EventId, new_id
from evergrant_server.core.secret import Secret
from evergrant_server.core.webhook_signatures import signed_headers
from evergrant_server.egress import Egress
from evergrant_server.store import Store, Transaction
from evergrant_server.store.audit_streams import StreamAccess
from evergrant_server.store.database.engine import Pool
from evergrant_server.telemetry import metrics
from evergrant_server.telemetry.alarms import report_broken_authority
from evergrant_server.telemetry.logs import LogEvent, log_event
from providers.responses.raw_reply import retry_after

log = logging.getLogger("evergrant.audit_streams")

ANSWER_TIMEOUT_S = 15.0  # for the whole exchange; less than a claim
AT_ONCE = 20  # streams that a worker sends side by side; one tenant's take half of these
_MOST_BATCHES = 50  # of one turn: then the other streams are looked at
_INTERVAL_S = 1.0  # between two looks
_IDLE_INTERVAL_S = 5.0  # where there is no stream
_SHARE = 20  # a look takes at most this part of the time
_REPORT_INTERVAL_S = 15.0


class StreamReceiver(NamedTuple):
    """Where a stream goes, and as what."""

    format: StreamFormat
    access: StreamAccess


class InstallationReceiver(NamedTuple):
    """The receiver that the operator's settings name: it gets the records of every tenant."""

    receiver: StreamReceiver
    begin: StreamBegin
    egress: Egress  # which may connect to its host, too


class _Outcome(NamedTuple):
    problem: StreamProblem | None  # None: taken
    status: int | None = None
    retry_after: float | None = None
    rejected: int = 0  # records that the receiver says it has dropped


class AuditStreamSender:
    """Sends what waits for streams. Any number may run. Belongs to one event loop."""

    def __init__(
        self,
        store: Store,
        egress: Egress,
        clock: Clock,
        source: str,
        installation: InstallationReceiver | None = None,
        interval: timedelta = timedelta(seconds=_INTERVAL_S),
    ) -> None:
        """`source`: the installation's public URL, which names it in events."""
        self._of_process = store
        self._egress, self._clock, self._source = egress, clock, source
        self._installation = installation
        self._interval_s = interval.total_seconds()
        self._name = f"streams-{secrets.token_hex(4)}"
        self._turns = FairTurns(AT_ONCE)
        self._one = asyncio.Semaphore(1)  # transaction at a time: the relay has the same few connections
        self._running: dict[str, asyncio.Task[None]] = {}  # by the stream's id
        self._quiet_at: int | None = None  # `Store.commits_seen` when no stream had anything to send
        self._next_look_s = self._interval_s
        self._has_begun = installation is None
        self._reported_at = float("-inf")

    @cached_property
    def _store(self) -> Store:
        return self._of_process.in_pool(Pool.BACKGROUND)

    async def run(self) -> None:
        """Send until cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                began = loop.time()
                interval_s = await self.look()
                await asyncio.sleep(max(interval_s, _SHARE * (loop.time() - began)))
        finally:
            await self.stop()

    async def stop(self) -> None:
        """Cut what is being sent, which is sent again, and let other workers go on with it at once."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if tasks:
            with suppress(Failure):
                async with self._write() as tx:
                    await tx.stream_states.release_all(self._name)

    @property
    def is_idle(self) -> bool:
        """Whether no batch is on its way."""
        return not self._running

    async def look(self) -> float:
        """Begin to send each stream that has something to send; returns the seconds until the next look."""
        try:
            if not self._has_begun:
                await self._begin_installation()
            commits = await self._store.commits_seen()  # before the look: a commit after it changes this
            if commits is None or commits != self._quiet_at:
                self._next_look_s = await self._start_due(commits)
            return self._next_look_s
        except Exception as error:  # the sender must not end: nothing would restart it
            _log_failed(error)
        return self._interval_s

    async def _start_due(self, commits: int | None) -> float:
        now = self._clock.now()
        async with self._read() as tx:
            if not await tx.stream_states.any():
                self._quiet_at = commits
                return max(self._interval_s, _IDLE_INTERVAL_S)
            has_installation = self._installation is not None
            due = await cursors.due_streams(tx, self._name, now, installation=has_installation)
            await self._report(tx)
            is_quiet = not due and not await tx.stream_states.any_that_time_frees(self._name)
        self._quiet_at = commits if is_quiet else None
        for state in due:
            if state.id not in self._running and self._turns.has_turn(state.tenant, state.id):
                task = asyncio.create_task(self._take_turn(state), name=f"audit-stream:{state.id}")
                self._running[state.id] = task
                task.add_done_callback(lambda _, id=state.id: self._running.pop(id, None))
                await asyncio.sleep(0)  # it takes its turn before the next one is looked for
        return self._interval_s

    async def _begin_installation(self) -> None:
        """Write the state of the installation's stream, where it is new."""
        assert self._installation is not None
        state = StreamState(tenant=INSTALLATION, id=INSTALLATION_STREAM)
        async with self._write() as tx:
            if await tx.stream_states.add(state) and self._installation.begin is StreamBegin.NOW:
                await cursors.begin_at_end(tx, state)
        self._has_begun = True

    async def _report(self, tx: Transaction) -> None:
        """Set the metrics of what waits, every few seconds because it costs a query."""
        now_s = asyncio.get_running_loop().time()
        if now_s < self._reported_at + _REPORT_INTERVAL_S:
            return
        self._reported_at, now = now_s, self._clock.now()
        behind = [state for state in await tx.stream_states.behind() if self._sends(state)]
        metrics.STREAM_UNSENT.set(max((state.unsent for state in behind), default=0))
        ages = [(now - state.oldest_at).total_seconds() for state in behind if state.oldest_at is not None]
        metrics.STREAM_AGE.set(max(ages, default=0))

    def _sends(self, state: StreamState) -> bool:
        return self._installation is not None or not state.is_of_installation

    async def _take_turn(self, state: StreamState) -> None:
        """Claim the stream, and send batches until nothing waits, one fails, or others should be looked
        at."""
        try:
            async with self._turns.turn(state.tenant, state.id):
                claimed = await self._claim(state)
                for _ in range(_MOST_BATCHES):
                    if claimed is None:
                        return
                    claimed = await self._send_next(claimed)
                if claimed is not None:
                    await self._replace(claimed.released(), claimed)
        except Failure as failure:
            if failure.code not in (ErrorCode.STORE_CONFLICT, ErrorCode.NOT_FOUND):
                _log_failed(failure, state.id)
            # else it was deleted or changed meanwhile, or another worker has it
        except Exception as error:
            _log_failed(error, state.id)

    async def _claim(self, state: StreamState) -> StreamState | None:
        """The stream, which no other worker sends meanwhile; None where one does, or it is gone."""
        async with self._write() as tx:
            current, now = await tx.stream_states.get(state.tenant, state.id), self._clock.now()
            if current is None or not current.may_be_claimed(self._name, now):
                return None
            return await tx.stream_states.replace(current.claimed(self._name, now), expected=current.revision)

    @asynccontextmanager
    async def _read(self) -> AsyncGenerator[Transaction]:
        async with self._one, self._store.read() as tx:
            yield tx

    @asynccontextmanager
    async def _write(self) -> AsyncGenerator[Transaction]:
        async with self._one, self._store.write() as tx:
            yield tx

    async def _replace(self, after: StreamState, before: StreamState) -> StreamState:
        async with self._write() as tx:
            return await tx.stream_states.replace(after, expected=before.revision)

    async def _send_next(self, state: StreamState) -> StreamState | None:
        """Send the next batch. Returns the stream's new state; None where it doesn't go on now.

        Raises Failure STORE_CONFLICT, NOT_FOUND where it was changed or deleted meanwhile: its cursors don't
        move, and what was sent is sent again.
        """
        async with self._read() as tx:
            batch = await cursors.next_batch(tx, state)
            receiver = await self._receiver(tx, state) if batch is not None else None
        if batch is None:
            await self._replace(state.drained(), state)
            return None
        if receiver is None:  # disabled
            await self._replace(state.released(), state)
            return None
        outcome = _Outcome(None)
        if isinstance(receiver, StreamProblem):
            outcome = _Outcome(receiver)
        elif batch.records:
            # in a thread: it takes tens of milliseconds, which refreshes don't wait for
            encoded = await asyncio.to_thread(encode, receiver.format, batch.records, self._source)
            outcome = await self._post(state, receiver, encoded)
        metrics.count(metrics.STREAM_BATCHES, outcome.problem or "sent")
        now, waiting = self._clock.now(), state.waiting(batch.unsent, batch.oldest_at)
        if outcome.problem is not None:
            failed = waiting.failed(outcome.problem, outcome.status, outcome.retry_after, now)
            _log_failed(outcome.problem, state.id)
            await self._replace(failed, state)
            return None
        after = waiting.advanced(len(batch.records), outcome.status, now)
        async with self._write() as tx:
            after = await tx.stream_states.replace(after, expected=state.revision)
            await cursors.advance(tx, state.id, batch.ends)
        metrics.count_stream_records("sent", len(batch.records) - outcome.rejected)
        metrics.count_stream_records("rejected", outcome.rejected)
        metrics.count_stream_records("missing", batch.missing)
        return after

    async def _receiver(self, tx: Transaction, state: StreamState) -> StreamReceiver | StreamProblem | None:
        """Where the stream goes; None where it is disabled. Raises Failure NOT_FOUND when it was deleted."""
        if state.is_of_installation:
            return None if self._installation is None else self._installation.receiver
        try:
            stream = await tx.audit_streams.get(state.tenant, state.id)
            if stream is None:
                raise Failure(ErrorCode.NOT_FOUND)
            return (
                None
                if stream.disabled
                else StreamReceiver(stream.format, await tx.audit_streams.access(stream))
            )
        except Failure as failure:
            if failure.code not in (
                ErrorCode.AUTHORITY_BROKEN,
                ErrorCode.SEAL_BROKEN,
                ErrorCode.KEY_UNAVAILABLE,
            ):
                raise
            report_broken_authority(failure)  # an admin puts or deletes it: until then nothing is sent
            return StreamProblem.UNUSABLE

    async def _post(self, state: StreamState, receiver: StreamReceiver, batch: EncodedBatch) -> _Outcome:
        """Send a batch once. Of the response its status is kept, and what OTLP says was dropped."""
        access = receiver.access
        headers = _revealed(access.headers) | {"content-type": batch.content_type, "user-agent": "Evergrant"}
        if access.secrets:
            id = EventId(new_id("evt"))
            headers |= signed_headers(access.secrets, id, self._clock.now(), batch.content)
        egress = self._egress
        if state.is_of_installation and self._installation is not None:
            egress = self._installation.egress
        try:
            async with egress.client() as client:
                answer = await client.post(access.url.reveal(), content=batch.content, headers=headers)
        except Failure as failure:
            refused = failure.code is ErrorCode.EGRESS_REFUSED
            return _Outcome(StreamProblem.EGRESS_REFUSED if refused else StreamProblem.UNREADABLE)
        except httpx2.TimeoutException:
            return _Outcome(StreamProblem.TIMED_OUT)
        except httpx2.RequestError:
            return _Outcome(StreamProblem.UNREACHABLE)
        status = answer.status_code
        if 200 <= status < 300:
            return _Outcome(None, status, rejected=_rejected(receiver.format, answer.content))
        problem = StreamProblem.REDIRECTED if 300 <= status < 400 else StreamProblem.REFUSED
        wait = retry_after(dict(answer.headers)) if status in (429, 503) else None
        return _Outcome(problem, status, wait)


def _rejected(format: StreamFormat, reply: bytes) -> int:
    if format is not StreamFormat.OTLP:
        return 0
    from evergrant_server.audit.streams.otlp import rejected_records

    return rejected_records(reply)


def _revealed(headers: Mapping[str, Secret]) -> dict[str, str]:
    return {name.lower(): value.reveal() for name, value in headers.items()}


def _log_failed(why: Exception | StreamProblem, id: str = "") -> None:
    match why:
        case Failure():
            log_event(log, logging.WARNING, LogEvent.AUDIT_STREAM_FAILED, code=why.code, object=id)
        case Exception():  # only the class: the text may quote a secret
            kind = type(why).__name__
            log_event(
                log, logging.ERROR, LogEvent.AUDIT_STREAM_FAILED, kind, code=ErrorCode.INTERNAL, object=id
            )
        case _:
            log_event(log, logging.WARNING, LogEvent.AUDIT_STREAM_FAILED, why.value, object=id)
