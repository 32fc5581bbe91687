"""Making grants fresh: one call to the workflow per connection and process, however many wait.

The one who waits also watches the store; whichever answers first wins (docs/architecture.md, rule 2).
"""

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass
from datetime import timedelta

from evergrant_server.api.http.temporal_port import TemporalPort
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId, Tenant
from evergrant_server.core.messages.connection import (
    EnsureFresh,
    EnsureFreshResult,
    RefreshReason,
    RequestContext,
)
from evergrant_server.store import LeaseRow, LeaseRows
from evergrant_server.telemetry.log_names import LogEvent
from evergrant_server.telemetry.logs import log_event

log = logging.getLogger("evergrant.api")

POLL_INTERVAL_S = 0.075
_MIN_PAUSE_S = 1.0  # between two refreshes ahead that nobody waits for, after one failed
_MAX_PAUSED = 10_000

_Key = tuple[Tenant, ConnectionId, int, RefreshReason]


@dataclass(frozen=True)
class RefreshWaitResult:
    """The newest row that was seen, and why it is no newer, if it isn't."""

    row: LeaseRow | None
    failure: Failure | None = None
    timed_out: bool = False


class _RefreshSkipped(Failure):
    """Nothing is wrong, and nothing was done: what is asked for was done just now, or would be refused."""


class RefreshWaiter:
    """The refreshes this process waits for. Every one ends by itself; `stop` cuts what is left."""

    elapsed = staticmethod(time.monotonic)

    def __init__(self, rows: LeaseRows, link: TemporalPort, longest: timedelta) -> None:
        self._rows = rows
        self._link = link
        self._longest = longest.total_seconds()
        self._running: dict[_Key, asyncio.Task[RefreshWaitResult]] = {}
        # until when, in elapsed seconds (no clock jump moves them), and what was said
        self._paused: dict[_Key, tuple[float, Failure]] = {}

    def start_refresh(
        self, tenant: Tenant, connection: ConnectionId, seen: int, asked: RequestContext
    ) -> None:
        """Start a refresh that nobody waits for, unless one runs or just failed."""
        key = (tenant, connection, seen, RefreshReason.DUE)
        if self._paused_failure(key) is None:
            self._shared_task(key, asked)

    async def wait_for_newer(
        self,
        tenant: Tenant,
        connection: ConnectionId,
        seen: int,
        asked: RequestContext,
        wish: RefreshReason = RefreshReason.COMMAND,
    ) -> RefreshWaitResult:
        """Wait until the store has something newer than `seen`, the workflow says no, or time is up."""
        ends = asyncio.get_running_loop().time() + self._longest
        while True:
            task = self._shared_task((tenant, connection, seen, wish), asked)
            left = ends - asyncio.get_running_loop().time()
            await asyncio.wait((task,), timeout=max(left, 0))
            if not task.done():
                return RefreshWaitResult(None, Failure(ErrorCode.REFRESH_PENDING, retry_after=1.0))
            outcome = task.result()
            # one who joined late has time left after the first one's limit
            if not outcome.timed_out or asyncio.get_running_loop().time() >= ends - POLL_INTERVAL_S:
                return outcome

    async def require_refreshed(
        self, tenant: Tenant, connection: ConnectionId, seen: int, asked: RequestContext
    ) -> None:
        """As `newer`, for a command: raises the Failure when nothing newer came."""
        outcome = await self.wait_for_newer(tenant, connection, seen, asked)
        if outcome.failure is not None and not _is_newer(outcome.row, seen):
            raise outcome.failure

    async def refresh_refused_token(
        self, tenant: Tenant, connection: ConnectionId, seen: int, asked: RequestContext
    ) -> None:
        """As `refreshed`, because the token of `seen` was refused; returns also when that helps nobody.

        A provider that says 401 for want of a permission gets one refresh, and then more rarely:
        the workflow declines, and until it would not it isn't asked. Nor is it while a refresh
        that failed isn't worth another try: then everybody hears why.
        """
        failure = self._paused_failure((tenant, connection, seen, RefreshReason.UNAUTHORIZED))
        if failure is None:
            outcome = await self.wait_for_newer(tenant, connection, seen, asked, RefreshReason.UNAUTHORIZED)
            failure = None if _is_newer(outcome.row, seen) else outcome.failure
        if failure is not None and not isinstance(failure, _RefreshSkipped):
            raise failure

    async def stop(self) -> None:
        """End what nobody will wait for any more; the workflows go on without us."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _paused_failure(self, key: _Key) -> Failure | None:
        """Why it isn't tried again yet, with what is left of the wait."""
        until, why = self._paused.get(key, (0.0, None))
        left = until - self.elapsed()
        return None if why is None or left <= 0 else type(why)(why.code, why.detail, retry_after=left)

    def _shared_task(self, key: _Key, asked: RequestContext) -> asyncio.Task[RefreshWaitResult]:
        task = self._running.get(key)
        if task is None:
            task = asyncio.create_task(self._wait(key, asked))
            self._running[key] = task
            task.add_done_callback(lambda done: self._on_done(key, done))
        return task

    def _on_done(self, key: _Key, task: asyncio.Task[RefreshWaitResult]) -> None:
        self._running.pop(key, None)
        if task.cancelled() or task.exception() is not None:
            return
        failure = task.result().failure
        if failure is None:
            self._paused.pop(key, None)
            return
        if len(self._paused) >= _MAX_PAUSED:
            self._paused.clear()
        self._paused[key] = self.elapsed() + max(_MIN_PAUSE_S, failure.retry_after or 0), failure

    async def _wait(self, key: _Key, asked: RequestContext) -> RefreshWaitResult:
        """Ask the workflow and watch the store at once."""
        tenant, connection, seen, _ = key
        with contextlib.suppress(Failure):
            row = await self._rows.load(tenant, connection)
            if _is_over(row, seen):  # one who comes late finds it done
                return RefreshWaitResult(row)
        update = asyncio.create_task(self._ask_workflow(key, asked))
        watch = asyncio.create_task(self._watch_store(key))
        try:
            await asyncio.wait((update, watch), timeout=self._longest, return_when=asyncio.FIRST_COMPLETED)
            if watch.done() and watch.exception() is None:
                return RefreshWaitResult(watch.result())
            timed_out = not update.done()
            failure = Failure(ErrorCode.REFRESH_PENDING, retry_after=1.0) if timed_out else update.result()
        finally:
            for task in (update, watch):
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(update, watch, return_exceptions=True)
        try:
            row = await self._rows.load(tenant, connection)
        except Failure as broken:
            return RefreshWaitResult(None, broken)
        return RefreshWaitResult(row, None if _is_newer(row, seen) else failure, timed_out)

    async def _ask_workflow(self, key: _Key, asked: RequestContext) -> Failure:
        """What the workflow says; the answer is judged by the store, which has the token."""
        tenant, connection, seen, wish = key
        ask = EnsureFresh(seen_generation=seen, context=asked, refresh_reason=wish)
        try:
            said = await self._link.ensure_fresh(tenant, connection, ask, timeout=self._longest)
        except Failure as failure:
            return failure
        except Exception as error:
            # the port promises Failures; a token that is valid must be served whatever breaks here
            log_event(
                log, logging.ERROR, LogEvent.ENSURE_FRESH_FAILED, type(error).__name__, object=connection
            )
            return Failure(ErrorCode.TEMPORAL_UNAVAILABLE, retry_after=1.0)
        return _failure_of(said, seen)

    async def _watch_store(self, key: _Key) -> LeaseRow | None:
        """Return as soon as the store has a newer generation, or a state that ends the waiting."""
        tenant, connection, seen, _ = key
        while True:
            await asyncio.sleep(POLL_INTERVAL_S)
            row = await self._rows.load(tenant, connection)
            if _is_over(row, seen):
                return row


def _is_over(row: LeaseRow | None, seen: int) -> bool:
    """Nothing is left to wait for: newer, or in a state that no refresh ends."""
    return row is None or row.state is not LifecycleState.ACTIVE or row.generation > seen


def _is_newer(row: LeaseRow | None, seen: int) -> bool:
    return row is not None and row.state is LifecycleState.ACTIVE and row.generation > seen


def _failure_of(said: EnsureFreshResult, seen: int) -> Failure:
    """Why there is nothing newer, if the store has nothing newer after this."""
    if said.declined:
        return _RefreshSkipped(ErrorCode.REFRESH_PENDING, retry_after=said.retry_after)
    if said.problem is None and said.generation > seen:
        return Failure(ErrorCode.STORE_BEHIND)  # the store is written first: it can't be behind by itself
    if said.problem is None:  # nothing refreshes this grant
        return _RefreshSkipped(ErrorCode.REFRESH_PENDING, retry_after=said.retry_after or 1.0)
    return Failure(said.problem, retry_after=said.retry_after)
