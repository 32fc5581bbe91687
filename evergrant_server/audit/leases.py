"""The lease ledger: many leases, one commit, and no lease that isn't in the log.

The lease path's hot loop. Whatever waits goes into one transaction; while that commits,
the next batch gathers. The transaction itself looks once more at what the lease was
judged by, so a revocation that has committed stops the next lease in every process.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Integer, TextClause, bindparam, text
from sqlalchemy.ext.asyncio import AsyncConnection

from evergrant_server import telemetry_metrics as metrics
from evergrant_server.audit.chain import extend
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.clock import Clock
from evergrant_server.core.connection import State
from evergrant_server.core.errors import Code, Failure
from evergrant_server.core.ids import AppId, ConnectionId, Tenant
from evergrant_server.core.messages import Asked
from evergrant_server.store import Store

_LARGEST_BATCH = 500
_RETRY_AFTER = 1.0  # seconds
# A token that is valid is served while the subject is asked to consent again, too.
_LEASABLE = frozenset({State.ACTIVE.value, State.NEEDS_REAUTH.value})

_ABOUT_CONNECTIONS = (
    "SELECT id, tenant, revision, generation, state FROM connection WHERE id IN :ids ORDER BY id"
)
_ABOUT_APPS = "SELECT id, tenant, revision, disabled FROM app WHERE id IN :ids ORDER BY id"
# On PostgreSQL a change of these rows waits for this transaction: it commits before or after
# the lease is in the log, never in between.
_HELD = " FOR SHARE"
_RAISE_USAGE = text(
    "INSERT INTO usage (tenant, connection_id, leased_generation, revision)"
    " VALUES (:tenant, :connection_id, :generation, 1)"
    " ON CONFLICT (tenant, connection_id) DO UPDATE"
    " SET leased_generation = excluded.leased_generation, revision = usage.revision + 1"
    " WHERE usage.leased_generation < excluded.leased_generation"
).bindparams(bindparam("generation", type_=Integer))


class Stale(Exception):
    """The connection or the app changed since the claim was judged: load both and judge again."""


@dataclass(frozen=True, slots=True)
class LeaseClaim:
    """A lease that was judged and not handed out yet, with the revisions it was judged by."""

    tenant: Tenant
    connection_id: ConnectionId
    connection_revision: int
    app_id: AppId
    app_revision: int
    generation: int
    asked: Asked
    scopes: tuple[str, ...]
    at: datetime


class _Waiting(NamedTuple):
    claim: LeaseClaim
    done: "asyncio.Future[None]"


class LeaseLedger:
    """Records leases in this process's own lane. One per process; belongs to one event loop."""

    def __init__(self, store: Store, lane: str, clock: Clock) -> None:
        self._store = store
        self._lane = lane
        self._clock = clock
        self._waiting: list[_Waiting] = []
        self._came = asyncio.Event()
        self._stopping = False
        self._task: asyncio.Task[None] | None = None
        held = "" if store.sqlite else _HELD
        self._about_connections = _expanding(_ABOUT_CONNECTIONS + held)
        self._about_apps = _expanding(_ABOUT_APPS + held)

    async def start(self) -> None:
        """Begin to commit. Starting twice is an error."""
        if self._task is not None:
            raise RuntimeError("the ledger runs already")
        self._stopping = False
        self._task = asyncio.create_task(self._run(), name=f"lease-ledger:{self._lane}")

    async def stop(self) -> None:
        """Commit what waits, then end; later claims are refused."""
        self._stopping = True
        self._came.set()
        if self._task is not None:
            await self._task
            self._task = None

    async def record(self, claim: LeaseClaim) -> None:
        """Return once the lease is committed to the log. Only then may it leave.

        Raises Stale when connection or app changed since the claim was judged, Failure
        AUDIT_UNAVAILABLE when the log can't be written.
        """
        if self._task is None or self._task.done() or self._stopping:
            raise _unavailable("the lease ledger isn't running")
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(claim, done))
        self._came.set()
        await done

    async def _run(self) -> None:
        try:
            await self._run_until_stopped()
        finally:
            self._fail(self._waiting, _unavailable("the lease ledger ended"))

    async def _run_until_stopped(self) -> None:
        while True:
            await self._came.wait()
            batch, self._waiting = self._waiting[:_LARGEST_BATCH], self._waiting[_LARGEST_BATCH:]
            if batch:
                await self._settle(batch)
            elif self._stopping:
                return
            else:
                self._came.clear()

    async def _settle(self, batch: Sequence[_Waiting]) -> None:
        """Commit a batch and tell each caller; nobody is left waiting, whatever happens."""
        problem = _unavailable("the ledger was stopped while it committed")
        try:
            good = await self._commit([it.claim for it in batch])
            metrics.audit_committed(len(good))
            for place, (_, done) in enumerate(batch):
                if done.done():
                    continue  # its caller has gone; the record stays, and says more than was handed out
                if place in good:
                    done.set_result(None)
                else:
                    done.set_exception(Stale())
        except Failure as failure:
            problem = _unavailable(failure.detail)
        except Exception as error:
            problem = _unavailable(type(error).__name__)
        finally:
            self._fail(batch, problem)

    @staticmethod
    def _fail(batch: Sequence[_Waiting], problem: Failure) -> None:
        for _, done in batch:
            if not done.done():
                done.set_exception(problem)

    async def _commit(self, claims: Sequence[LeaseClaim]) -> frozenset[int]:
        """Write what still holds, in one transaction; returns the places of those claims."""
        async with self._store.write() as tx:
            good = await self._still_good(tx.connection, claims)
            kept = [claims[place] for place in sorted(good)]
            by_tenant: dict[Tenant, list[AuditEntry]] = {}
            for claim in kept:
                by_tenant.setdefault(claim.tenant, []).append(_entry(claim))
            for tenant in sorted(by_tenant):  # always in the same order: two ledgers never wait crosswise
                await extend(tx.connection, tenant, self._lane, by_tenant[tenant])
            if kept:
                await tx.connection.execute(_RAISE_USAGE, _newest_generations(kept))
        return good

    async def _still_good(self, connection: AsyncConnection, claims: Sequence[LeaseClaim]) -> frozenset[int]:
        connections = await _about(connection, self._about_connections, {it.connection_id for it in claims})
        apps = await _about(connection, self._about_apps, {it.app_id for it in claims})
        return frozenset(
            place
            for place, claim in enumerate(claims)
            if _connection_holds(claim, connections.get(claim.connection_id))
            and apps.get(claim.app_id) == (claim.app_id, claim.tenant, claim.app_revision, False)
        )


def _expanding(statement: str) -> TextClause:
    return text(statement).bindparams(bindparam("ids", expanding=True))


async def _about(
    connection: AsyncConnection, statement: TextClause, ids: set[ConnectionId] | set[AppId]
) -> Mapping[str, tuple[object, ...]]:
    rows = await connection.execute(statement, {"ids": sorted(ids)})
    return {row[0]: tuple(row) for row in rows}


def _connection_holds(claim: LeaseClaim, row: tuple[object, ...] | None) -> bool:
    judged = (claim.connection_id, claim.tenant, claim.connection_revision, claim.generation)
    return row is not None and row[:4] == judged and row[4] in _LEASABLE


def _entry(claim: LeaseClaim) -> AuditEntry:
    return AuditEntry(
        tenant=claim.tenant,
        at=claim.at,
        action=AuditAction.LEASED,
        object=claim.connection_id,
        asked=claim.asked,
        detail={"app": claim.app_id, "generation": claim.generation, "scopes": list(claim.scopes)},
    )


def _newest_generations(claims: Sequence[LeaseClaim]) -> list[dict[str, str | int]]:
    newest: dict[tuple[str, str], int] = {}
    for claim in claims:
        place = (claim.tenant, claim.connection_id)
        newest[place] = max(newest.get(place, 0), claim.generation)
    return [
        {"tenant": tenant, "connection_id": connection_id, "generation": generation}
        for (tenant, connection_id), generation in sorted(newest.items())
    ]


def _unavailable(why: str) -> Failure:
    return Failure(
        Code.AUDIT_UNAVAILABLE, f"The lease could not be recorded: {why}", retry_after=_RETRY_AFTER
    )


__all__ = ["LeaseClaim", "LeaseLedger", "Stale"]
