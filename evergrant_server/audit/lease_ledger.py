"""The lease ledger: many leases, one commit, and no lease that isn't in the log.

The hot loop of leases. A batch of waiting leases goes into one transaction (`LeaseQueue` says which); while
it commits, the next batch gathers. The transaction itself looks once more at what the lease was
judged by, so a revocation that has committed stops the next lease in every process.
"""

import asyncio
import os
from collections.abc import Sequence
from datetime import datetime, timedelta
from time import monotonic
from typing import NamedTuple

from evergrant_server.audit.appending import begin_tree
from evergrant_server.audit.lease_queue import (
    LARGEST_BATCH,
    LastUses,
    LeaseQueue,
    TreeMissing,
    WaitingLease,
    Written,
)
from evergrant_server.audit.lease_record import LeaseClaim, LeaseFacts
from evergrant_server.audit.lease_writer_postgresql import PostgresLeaseWriter
from evergrant_server.audit.lease_writer_sqlite import SqliteLeaseWriter
from evergrant_server.core.bounded import Bounded
from evergrant_server.core.clock import Clock
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import KeyId, PermitId, Tenant, new_id
from evergrant_server.crypto import Role
from evergrant_server.regions.serving_region import Region
from evergrant_server.store import Store
from evergrant_server.store.database.kept_sqlite import KeptSqlite
from evergrant_server.telemetry import metrics

_RETRY_AFTER = 1.0  # seconds
_RETURN_S = 0.0002  # until the callers of a batch have mostly asked again
_BUSY_S = 0.005  # until leases are tried again when all of a batch wait for a change
_USE_INTERVAL = timedelta(minutes=1)  # between two writes of the last use of one key or permit
_LEASE_INTERVAL = timedelta(hours=1)  # the same of an app's leases of one connection
_MOST_USES = 10_000


def new_lease_shard(role: Role = Role.API) -> str:
    """The audit shard of one process's leases, so that copies of it don't wait for each other.

    All other records go to a shard that several processes have (see `appending.main_shard`).
    """
    return f"{role}-{os.getpid()}-{new_id('out')[-6:]}"


class StaleClaim(Exception):
    """Connection or app changed since the claim was judged, or its key or permit ended: judge again."""


class RecordedLease(NamedTuple):
    """A lease that is committed to the log. Its facts can be kept for further leases of its pair, while
    nothing of its claim has changed; `place` is `<shard>/<number>` of its record."""

    facts: LeaseFacts
    place: str


class LeaseLedger:
    """Records leases in this process's own shard. One per process; belongs to one event loop."""

    def __init__(self, store: Store, shard: str, clock: Clock, region: Region | None = None) -> None:
        """`region`: where another region has a standby of the database."""
        self._store = store
        self._shard = shard
        self._clock = clock
        self._region = region
        self._confirming = set[asyncio.Task[None]]()  # leases that are here, and wait for the other region
        self._queue = LeaseQueue()
        self._uses: dict[tuple[str, ...], datetime] = {}
        self._leases: dict[tuple[str, ...], datetime] = {}  # written with the next batch that is due
        self._last_uses = Bounded[tuple[str, ...], datetime](_MOST_USES)
        self._batch_sizes = metrics.AUDIT_BATCH.cell()
        self._recent_callers = 0  # of the last batch, and those that came while it was committed
        self._came = asyncio.Event()
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to commit. Starting twice is an error."""
        if self._task is not None:
            raise RuntimeError("the ledger runs already")
        self._stopping = False
        region = None if self._region is None else self._region.name
        self._writer = _writer_of(self._store, self._shard, self._clock, region)
        self._write = self._writer.write
        self._task = asyncio.create_task(self._run(), name=f"lease-ledger:{self._shard}")

    async def stop(self) -> None:
        """Commit what waits, then end; later claims are refused."""
        self._stopping = True
        self._came.set()
        if self._task is not None:
            await self._task
            self._task = None
            await asyncio.gather(*self._confirming)
            await self._writer.close()

    async def record(self, claim: LeaseClaim) -> RecordedLease:
        """Return once the lease is committed to the log. Only then may it leave.

        Raises StaleClaim when connection or app changed since the claim was judged or its key or permit
        has expired, Failure AUDIT_UNAVAILABLE when the log can't be written, REGION_FENCED when another
        region may serve.
        """
        facts = LeaseFacts(claim)
        return RecordedLease(facts, await self.record_pair(facts, claim.at, claim.context.trace_id))

    async def record_pair(self, facts: LeaseFacts, at: datetime, trace_id: str) -> str:
        """As `record`, of one more lease of a pair; returns the place of its record."""
        if facts.use_due is None or not (facts.use_due - _USE_INTERVAL <= at < facts.use_due):
            self._note_uses(facts)
        if self._task is None or self._task.done() or self._stopping:
            raise _unavailable("the lease ledger isn't running")
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._queue.add(WaitingLease(facts.record(at, trace_id), done))
        self._came.set()
        return f"{self._shard}/{await done}"

    def _note_uses(self, facts: LeaseFacts) -> None:
        claim, noted = facts.claim, self._clock.now()
        for id in (claim.key_id, None if claim.permit is None else claim.permit.id):
            if id is not None:
                self.note_use(claim.tenant, id)
                noted = min(noted, self._last_uses[claim.tenant, id])
        facts.use_due = noted + _USE_INTERVAL

    def note_use(self, tenant: Tenant, id: KeyId | PermitId) -> None:
        """Have the last use of a key or permit written with the next batch, unless that was within the last
        minute."""
        if self._is_due((tenant, id), _USE_INTERVAL):
            self._uses[tenant, id] = self._clock.now()
            self._came.set()

    def _note_lease(self, facts: LeaseFacts, at: datetime) -> None:
        if facts.lease_due is not None and facts.lease_due - _LEASE_INTERVAL <= at < facts.lease_due:
            return
        key = (facts.tenant, facts.app_id, facts.connection_id)
        if self._is_due(key, _LEASE_INTERVAL):
            self._leases[key] = self._clock.now()
        facts.lease_due = self._last_uses[key] + _LEASE_INTERVAL

    def _is_due(self, key: tuple[str, ...], interval: timedelta) -> bool:
        now, last = self._clock.now(), self._last_uses.get(key)
        if last is not None and abs(now - last) < interval:
            return False
        self._last_uses[key] = now
        return True

    async def _run(self) -> None:
        try:
            while self._queue or self._uses or self._leases or not self._stopping:
                await self._came.wait()
                await self._gather()
                batch = self._queue.take()
                uses, self._uses = self._uses, {}
                if batch or uses or (self._leases and self._stopping):
                    leases, self._leases = self._leases, {}
                    taken = len(batch)
                    await self._settle(batch, {**uses, **leases})
                    self._recent_callers = min(taken + len(self._queue), LARGEST_BATCH)
                elif not self._stopping:
                    self._came.clear()
        finally:
            self._fail(self._queue.take_all(), _unavailable("the lease ledger ended"))

    async def _gather(self) -> None:
        """Once one lease is here, wait a moment for as many as the last commit saw: who got a token asks
        again, and a commit costs as much as several leases."""
        until = monotonic() + _RETURN_S
        while 0 < len(self._queue) < self._recent_callers and monotonic() < until:
            await asyncio.sleep(0)

    async def _settle(self, batch: Sequence[WaitingLease], uses: LastUses) -> None:
        """Commit a batch and answer every caller, also when the commit fails."""
        problem = _unavailable("the ledger was stopped while it committed")
        try:
            written = await self._commit(batch, uses)
            if batch:
                self._batch_sizes.record(len(written.leased))
            for place, waiting in enumerate(batch):
                if waiting.done.done():
                    continue  # its caller went; during the commit, the record says more than was handed out
                if place in written.busy:
                    self._queue.add(waiting)
                elif place in written.leased:
                    self._hand_over(waiting, written.leased[place])
                else:
                    waiting.done.set_exception(StaleClaim())
            all_busy = len(written.busy) == len(batch) > 0
            batch = ()
            if all_busy:
                await asyncio.sleep(_BUSY_S)
        except Failure as failure:
            fenced = failure.code is ErrorCode.REGION_FENCED
            problem = failure if fenced else _unavailable(failure.detail)
            if failure.code is ErrorCode.AUTHORITY_BROKEN:  # one tenant's log: it stops no other's leases
                tenant = failure.context["row"].partition("/")[0]
                broken = [waiting for waiting in batch if waiting.record.facts.tenant == tenant]
                self._fail(broken, failure)
                await self._settle([waiting for waiting in batch if waiting not in broken], uses)
        except Exception as error:
            problem = _unavailable(type(error).__name__)
        finally:
            self._fail(batch, problem)

    def _hand_over(self, waiting: WaitingLease, number: int) -> None:
        """Answer a caller whose lease is committed: now, or once the other region has its record too."""
        self._note_lease(waiting.record.facts, waiting.record.at)
        if self._region is None or not self._region.waits_for(waiting.record.facts.tenant):
            waiting.done.set_result(number)
            return
        task = asyncio.create_task(self._hand_over_confirmed(self._region, waiting, number))
        self._confirming.add(task)
        task.add_done_callback(self._confirming.discard)

    @staticmethod
    async def _hand_over_confirmed(region: Region, waiting: WaitingLease, number: int) -> None:
        problem = await region.unconfirmed()
        if waiting.done.done():
            return
        if problem:
            waiting.done.set_exception(_unavailable(f"the other region doesn't have the record: {problem}"))
        else:
            waiting.done.set_result(number)

    async def _commit(self, batch: Sequence[WaitingLease], uses: LastUses) -> Written:
        while True:
            try:
                return await self._write(batch, uses)
            except TreeMissing as missing:
                async with self._store.write() as tx:
                    await begin_tree(tx, missing.tenant, self._shard)

    @staticmethod
    def _fail(batch: Sequence[WaitingLease], problem: Failure) -> None:
        for _, done in batch:
            if not done.done():
                done.set_exception(problem)


def _writer_of(
    store: Store, shard: str, clock: Clock, region: str | None
) -> SqliteLeaseWriter | PostgresLeaseWriter:
    kept = store.kept()
    if isinstance(kept, KeptSqlite):
        return SqliteLeaseWriter(kept, shard, store.ring, clock)
    return PostgresLeaseWriter(kept, shard, store.ring, clock, region)


def _unavailable(why: str) -> Failure:
    return Failure(
        ErrorCode.AUDIT_UNAVAILABLE, f"The lease could not be recorded: {why}", retry_after=_RETRY_AFTER
    )
