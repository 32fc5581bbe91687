"""What is recorded besides leases: refusals, the alarm on bulk reads, and the networks that apps call from.

A refusal is recorded at once, its repetitions of a minute as one: a caller that retries in a loop would
otherwise write to the tenant's main chain with every call. An app that leases many connections within an
hour, or requests an export, raises the alarm.
"""

import asyncio
import logging
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from evergrant_server import audit
from evergrant_server.access.judged_request import JudgedRequest
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.bounded import Bounded
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AppId, ConnectionId, Tenant
from evergrant_server.policy.networks import network_of
from evergrant_server.store import Store, Transaction
from evergrant_server.telemetry import metrics
from evergrant_server.telemetry.logs import LogEvent, log_event

log = logging.getLogger("evergrant.api")

WINDOW_S = 60.0
NETWORK_PERIOD = timedelta(days=1)  # between two notes of the same network of an app
_NETWORKS_S = 5.0  # until what was noted is written
_MOST_CALLERS = 10_000
PERIOD = timedelta(hours=1)


class _Kind(NamedTuple):
    """What refusals are counted together by."""

    tenant: Tenant
    app_id: str
    object: str
    code: str


@dataclass
class _Repetitions:
    last: AuditEntry
    count: int = 0


class RefusalLog:
    """The refusals of one process. Best effort: no token left, so no record is required."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._seen: dict[_Kind, _Repetitions] = {}
        self._waiting: defaultdict[Tenant, list[AuditEntry]] = defaultdict(list)
        self._turns: defaultdict[Tenant, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def record(self, entry: AuditEntry) -> None:
        """Record a refusal, or count it if the same app met the same at the same connection already."""
        app_id, code = str(entry.detail["app"]), str(entry.detail["code"])
        # the caller names what isn't found: all of it is one kind
        object = app_id if code == ErrorCode.NOT_FOUND else entry.object
        kind = _Kind(entry.tenant, app_id, object, code)
        seen = self._seen.get(kind)
        if seen is not None:
            seen.last, seen.count = entry, seen.count + 1
            return
        self._seen[kind] = _Repetitions(entry)
        if self._task is None:
            self._task = asyncio.create_task(self._record_repetitions())
        await self._append(entry)

    async def stop(self) -> None:
        """Record what was counted."""
        self._stopping.set()
        if self._task is not None:
            await self._task

    async def _record_repetitions(self) -> None:
        while self._seen:
            with suppress(TimeoutError):
                async with asyncio.timeout(WINDOW_S):
                    await self._stopping.wait()
            seen, self._seen = self._seen, {}
            for repetitions in seen.values():
                if repetitions.count:
                    detail = {**repetitions.last.detail, "repeated": repetitions.count}
                    await self._append(repetitions.last.__replace__(detail=detail))
        self._task = None

    async def _append(self, entry: AuditEntry) -> None:
        """Write it, with all of its tenant's that came while earlier ones were written: hundreds of callers
        whose wait ends at the same time are a few transactions."""
        self._waiting[entry.tenant].append(entry)
        async with self._turns[entry.tenant]:
            entries = self._waiting.pop(entry.tenant, [])
            if not entries:
                return  # one before it has written it
            with suppress(Failure):  # it is refused even if that can't be recorded
                async with self._store.write() as tx:
                    await audit.append_all(tx, entries)


class LeasedConnections:
    """The connections that each app has leased in the current hour, in this process."""

    def __init__(self, alarm_at: int) -> None:
        """`alarm_at` 0 counts nothing."""
        self._alarm_at = alarm_at
        self._since: datetime | None = None
        self._leased: dict[AppId, set[ConnectionId]] = {}

    def reaches_alarm(self, app_id: AppId, connection_id: ConnectionId, now: datetime) -> bool:
        """Count a lease. True for the one that reaches the limit, once an hour for each app."""
        if not self._alarm_at:
            return False
        if self._since is None or abs(now - self._since) >= PERIOD:
            self._since, self._leased = now, {}
        leased = self._leased.setdefault(app_id, set())
        if len(leased) >= self._alarm_at or connection_id in leased:
            return False
        leased.add(connection_id)
        return len(leased) == self._alarm_at


class CallerNetworks:
    """Notes from which networks apps call, once a day for each, behind the answers. Best effort.

    A worker judges what is new (`activities.detection`); nothing is refused here.
    """

    def __init__(self, store: Store, *, enabled: bool) -> None:
        self._store, self._enabled = store, enabled
        self._noted = Bounded[tuple[AppId, str], datetime](_MOST_CALLERS)
        self._new: set[tuple[Tenant, AppId, str]] = set()
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def note(self, call: JudgedRequest) -> None:
        """Have the network of this request written, unless that was within the last day."""
        address = call.known_address if self._enabled and call.caller.session is None else None
        if address is None:
            return
        caller, now = (call.caller.app.id, address), call.now
        noted = self._noted.get(caller)
        if noted is not None and abs(now - noted) < NETWORK_PERIOD:
            return
        self._noted[caller] = now
        network = network_of(address)
        if network is not None:
            self._new.add((call.tenant, call.caller.app.id, network))
            if self._task is None:
                self._task = asyncio.create_task(self._write())

    async def stop(self) -> None:
        """Write what waits."""
        self._stopping.set()
        if self._task is not None:
            await self._task

    async def _write(self) -> None:
        while self._new:
            with suppress(TimeoutError):
                async with asyncio.timeout(_NETWORKS_S):
                    await self._stopping.wait()
            seen, self._new = self._new, set()
            with suppress(Failure):
                async with self._store.write() as tx:
                    await tx.app_activities.note_networks(seen, tx.now)
        self._task = None


async def record_bulk_read(tx: Transaction, call: JudgedRequest, kind: str, **detail: object) -> None:
    """Record a bulk read of the caller, which notifies webhooks, and log and count it."""
    app = call.caller.app
    await call.record(tx, AuditAction.BULK_READ, app.id, app=app.name, kind=kind, **detail)
    log_event(log, logging.WARNING, LogEvent.BULK_READ, f"{kind} by the app {app.name}", object=app.id)
    metrics.count(metrics.BULK_READS, kind)
