"""Waits for refreshes: one answer to the workflow per connection and process, shared by all callers.

A caller waits for the workflow's answer and for the store's row; the first of them wins
(docs/architecture.md, rule 2). The store is polled with one query a tick for all connections: otherwise each
caller would have to ask on its own, 2,000 of them 26,000 times a second while Temporal is away.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple

from evergrant_server.access.context import TemporalPort
from evergrant_server.bounded_concurrency import FairTurns
from evergrant_server.core.bounded import Bounded
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.errors import ErrorCode, Failure, Repairer
from evergrant_server.core.ids import ConnectionId, Tenant
from evergrant_server.core.lifecycle.schedule import UNSENT_CODES
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.connection import EnsureFresh, EnsureFreshResult, RefreshReason
from evergrant_server.store import ConnectionPosition, LeaseRow, LeaseRows
from evergrant_server.telemetry import saturation
from evergrant_server.telemetry.logs import LogEvent, log_event

log = logging.getLogger("evergrant.api")

_MOST_UPDATES = 128  # open at Temporal; one tenant has half of them, so that one that hangs delays no other
_MOST_AHEAD = 32  # without a caller: thousands that become due at once leave Temporal to callers
_MIN_PAUSE_S = 1.0  # between two refreshes ahead of expiry, after one failed
_MAX_PAUSED = 10_000
_LONGEST_WHY = 1000  # characters: who writes in Temporal's namespace chooses them
_NOT_BEGUN = "A refresh is needed, and no worker has begun it in time."
_ASK_DOCTOR = (
    "Have Evergrant's operator run: python -m evergrant_server doctor. It says whether Temporal and a worker "
    "run and answer. Then try again."
)
POLL_INTERVAL_S = 0.075
_LONGEST_PAUSE_S = 1.0  # of one connection; Temporal's answer is what comes first as a rule
_GROWTH = 1.5
_LIMITS_SHARED = 3  # of a caller: while a provider hangs, callers that come again join what was asked already
_MOST_AT_ONCE = 500  # connections in one query


class RefreshKey(NamedTuple):
    """What callers share a refresh by: the connection, the generation that they have seen, the reason, the
    scopes of a narrower token, and whether an admin asks, who may have repaired what failed."""

    tenant: Tenant
    connection_id: ConnectionId
    seen: int
    reason: RefreshReason
    scopes: tuple[str, ...] = ()
    repaired: bool = False


@dataclass(frozen=True)
class RefreshWaitResult:
    """The newest row that was read, and the failure if it isn't newer."""

    row: LeaseRow | None
    failure: Failure | None = None
    timed_out: bool = False


class _RefreshSkipped(Failure):
    """Refresh skipped: one has just completed, or it is throttled."""


class RefreshWaiter:
    """The refreshes that this process waits for. Each ends by itself; `stop` cancels the rest."""

    elapsed = staticmethod(time.monotonic)

    def __init__(self, rows: LeaseRows, link: TemporalPort, longest: timedelta) -> None:
        self._rows = rows
        self._link = link
        self._longest = longest.total_seconds()
        self._shared = self._longest * _LIMITS_SHARED
        self._poller = PositionPoller(rows)
        self._turns, self._turns_ahead = FairTurns(_MOST_UPDATES), FairTurns(_MOST_AHEAD)
        # with whether it is ahead: the workflow takes such a refresh for one without a waiting caller
        self._running: dict[tuple[RefreshKey, bool], asyncio.Task[RefreshWaitResult]] = {}
        # until when (monotonic seconds), and the failure
        self._paused = Bounded[RefreshKey, tuple[float, Failure]](_MAX_PAUSED)
        self._pending_failures = Bounded[tuple[Tenant, ConnectionId], tuple[float, Failure]](_MAX_PAUSED)

    def start_refresh(self, key: RefreshKey, context: RequestContext) -> None:
        """Start a refresh without waiting for it, unless one runs or has just failed.

        Without a turn for it nothing is started: a later lease asks again.
        """
        running = (key, False) in self._running or (key, True) in self._running
        has_turn = self._turns_ahead.has_turn(key.tenant, context.by)
        if has_turn and self._paused_failure(key) is None and not running:
            self._share(asyncio.create_task(self._wait(key, context, ahead=True)), key, ahead=True)

    async def wait_for_newer(
        self, key: RefreshKey, context: RequestContext, patience_s: float | None = None
    ) -> RefreshWaitResult:
        """Wait for a generation newer than `key.seen`, a refusal of the workflow, or the time limit, which
        the caller's patience makes shorter."""
        longest = self._longest if patience_s is None else min(self._longest, patience_s)
        ends = asyncio.get_running_loop().time() + longest
        while True:
            task = self._running.get((key, False))
            if task is None:
                task = self._share(asyncio.create_task(self._wait(key, context, ahead=False)), key)
            left = ends - asyncio.get_running_loop().time()
            await asyncio.wait((task,), timeout=max(left, 0))
            if not task.done():
                return RefreshWaitResult(None, await self._pending(key))
            result = task.result()
            # a caller that joined later has time left after the first caller's limit
            if not result.timed_out or asyncio.get_running_loop().time() >= ends - POLL_INTERVAL_S:
                return result

    async def require_refreshed(
        self, key: RefreshKey, context: RequestContext, patience_s: float | None = None
    ) -> None:
        """As `wait_for_newer`, for a command: raises the Failure when nothing newer came."""
        result = await self.wait_for_newer(key, context, patience_s)
        if result.failure is not None and not _is_newer(result.row, key.seen):
            raise result.failure

    async def refresh_refused_token(
        self, key: RefreshKey, context: RequestContext, patience_s: float | None = None
    ) -> None:
        """As `require_refreshed`, since a provider refused the token of `key.seen`; returns also if skipped.

        A provider may answer 401 for a missing permission: then the workflow skips further
        refreshes for a while, and is not asked before that has passed. After a failed refresh it
        is not asked before the failure's `retry_after`; callers get that failure.
        """
        failure = self._paused_failure(key)
        if failure is None:
            result = await self.wait_for_newer(key, context, patience_s)
            failure = None if _is_newer(result.row, key.seen) else result.failure
        if failure is not None and not isinstance(failure, _RefreshSkipped):
            raise failure

    async def stop(self) -> None:
        """Cancel what is left; the workflows continue."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._poller.stop()

    def _paused_failure(self, key: RefreshKey) -> Failure | None:
        """The failure that pauses this key, with the rest of its wait."""
        until, why = self._paused.get(key, (0.0, None))
        left = until - self.elapsed()
        if why is None or left <= 0:
            return None
        return type(why)(why.code, why.detail, retry_after=left, **why.context)

    def _share(
        self, task: asyncio.Task[RefreshWaitResult], key: RefreshKey, *, ahead: bool = False
    ) -> asyncio.Task[RefreshWaitResult]:
        """Have it found by later callers, until it ends."""
        self._running[key, ahead] = task
        task.add_done_callback(lambda done: self._on_done(key, done, ahead=ahead))
        return task

    def _on_done(self, key: RefreshKey, task: asyncio.Task[RefreshWaitResult], *, ahead: bool) -> None:
        self._running.pop((key, ahead), None)
        if task.cancelled() or task.exception() is not None:
            return
        failure = task.result().failure
        if failure is None:
            self._paused.pop(key, None)
            return
        self._paused[key] = self.elapsed() + max(_MIN_PAUSE_S, failure.retry_after or 0), failure

    async def _wait(self, key: RefreshKey, context: RequestContext, *, ahead: bool) -> RefreshWaitResult:
        """Ask the workflow, and poll the store too unless the refresh is ahead of any caller."""
        tenant, connection, seen, *_ = key
        integration = ""
        with contextlib.suppress(Failure):
            row = await self._rows.load(tenant, connection)
            if row is None or _is_over(row, seen):  # done already
                return RefreshWaitResult(row)
            integration = row.integration_id
        answer = asyncio.create_task(self._ask_workflow(key, context, integration, ahead=ahead))
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not ahead:
            over = asyncio.create_task(self._poller.wait_until_over(tenant, connection, seen))
        try:
            await asyncio.wait((answer, over), timeout=self._shared, return_when=asyncio.FIRST_COMPLETED)
            timed_out, failure = not (answer.done() or over.done()), None
            if not over.done():
                failure = await self._pending(key) if timed_out else answer.result()
        finally:
            for task in (answer, over):
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(answer, over, return_exceptions=True)
        try:
            row = await self._rows.load(tenant, connection)
        except Failure as broken:
            return RefreshWaitResult(None, broken)
        return RefreshWaitResult(row, None if _is_newer(row, seen) else failure, timed_out)

    async def _pending(self, key: RefreshKey) -> Failure:
        """What is true after the time limit: the provider hasn't answered, or no worker has asked it, which
        is the operator's to repair. Callers share the answer for a moment."""
        place = key.tenant, key.connection_id
        until, failure = self._pending_failures.get(place, (0.0, None))
        if failure is None or until <= self.elapsed():
            sent = True
            with contextlib.suppress(Failure):
                sent = await self._rows.is_at_provider(*place)
            turn = {} if sent else {"repairer": Repairer.OPERATOR.value, "repair": _ASK_DOCTOR}
            why = "" if sent else _NOT_BEGUN
            failure = Failure(ErrorCode.REFRESH_PENDING, why, retry_after=1.0, **turn)
            self._pending_failures[place] = self.elapsed() + 1.0, failure
        return failure

    async def _ask_workflow(
        self, key: RefreshKey, context: RequestContext, integration: str, *, ahead: bool
    ) -> Failure:
        """The failure that applies if the store has nothing newer after the workflow's answer.

        A provider that hangs keeps the turns of its integration's callers, not those of their app's others.
        """
        tenant, connection, seen, reason, scopes, repaired = key
        asked = {"refresh_reason": reason, "ahead": ahead, "scopes": scopes, "repaired": repaired}
        request = EnsureFresh(seen_generation=seen, context=context, **asked)
        turns, within_s = (self._turns_ahead, 0) if ahead else (self._turns, None)
        part = context.by if ahead else f"{context.by} {integration}"
        try:
            async with turns.turn(tenant, part, within_s):
                result = await self._link.ensure_fresh(tenant, connection, request, timeout=self._shared)
        except Failure as failure:
            return await self._pending(key) if failure.code is ErrorCode.REFRESH_PENDING else failure
        except TimeoutError:
            return await self._pending(key)
        except Exception as error:
            # the port raises Failures alone; a valid token must be served even if it doesn't
            log_event(
                log, logging.ERROR, LogEvent.ENSURE_FRESH_FAILED, type(error).__name__, object=connection
            )
            return Failure(ErrorCode.TEMPORAL_UNAVAILABLE, retry_after=1.0)
        return _failure_of(result, seen)


def _is_over(row: LeaseRow | None, seen: int) -> bool:
    """True when there is nothing to wait for: a newer generation, or a state without refresh."""
    return row is None or row.state is not LifecycleState.ACTIVE or row.generation > seen


def _is_newer(row: LeaseRow | None, seen: int) -> bool:
    return row is not None and row.state is LifecycleState.ACTIVE and row.generation > seen


def _failure_of(result: EnsureFreshResult, seen: int) -> Failure:
    """The failure that the workflow's answer stands for."""
    if result.declined:
        return _RefreshSkipped(ErrorCode.REFRESH_PENDING, retry_after=result.retry_after)
    if result.problem is None and result.generation > seen:
        return Failure(ErrorCode.STORE_BEHIND)  # the store is written first, so it was restored from a backup
    if result.problem is None:  # nothing refreshes this grant
        return _RefreshSkipped(ErrorCode.REFRESH_PENDING, retry_after=result.retry_after or 1.0)
    why = (result.why or "")[:_LONGEST_WHY] if result.problem in UNSENT_CODES else ""
    return Failure(result.problem, why, retry_after=result.retry_after)


@dataclass(eq=False)
class _Watched:
    """A connection that is polled at `next_at` (the loop's time) and then less and less often."""

    tenant: Tenant
    connection_id: ConnectionId
    seen: int
    next_at: float
    over: asyncio.Future[None]
    pause_s: float = POLL_INTERVAL_S

    def judge(self, position: ConnectionPosition | None, now: float) -> None:
        """End the wait where nothing newer will come: a newer generation, or a state without refresh."""
        active = position is not None and position.state == LifecycleState.ACTIVE
        waits = position is not None and active and position.generation <= self.seen
        if not waits and not self.over.done():
            self.over.set_result(None)
        self.pause_s = min(self.pause_s * _GROWTH, _LONGEST_PAUSE_S)
        self.next_at = now + self.pause_s


class PositionPoller:
    """One query at a time, on a connection to the database of its own. Polls while anything is watched."""

    def __init__(self, rows: LeaseRows) -> None:
        self._rows = rows
        self._watched: set[_Watched] = set()
        self._task: asyncio.Task[None] | None = None

    async def wait_until_over(self, tenant: Tenant, connection_id: ConnectionId, seen: int) -> None:
        """Return once the connection has a newer generation than `seen`, or a state without refresh."""
        loop = asyncio.get_running_loop()
        watched = _Watched(tenant, connection_id, seen, loop.time() + POLL_INTERVAL_S, loop.create_future())
        self._watched.add(watched)
        saturation.REFRESHES_WAITING.set(len(self._watched))
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._poll())
        try:
            await watched.over
        finally:
            self._watched.discard(watched)
            saturation.REFRESHES_WAITING.set(len(self._watched))

    async def stop(self) -> None:
        """End the polling; what still waits is not answered."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _poll(self) -> None:
        loop = asyncio.get_running_loop()
        while self._watched:
            await asyncio.sleep(POLL_INTERVAL_S)
            due = [watched for watched in self._watched if watched.next_at <= loop.time()]
            for start in range(0, len(due), _MOST_AT_ONCE):
                await self._poll_batch(due[start : start + _MOST_AT_ONCE])

    async def _poll_batch(self, batch: Sequence[_Watched]) -> None:
        with suppress(Failure):  # the store is away: the next tick asks again
            positions = await self._rows.positions(sorted({watched.connection_id for watched in batch}))
            now = asyncio.get_running_loop().time()
            for watched in batch:
                watched.judge(positions.get((watched.tenant, watched.connection_id)), now)
