"""Orders to erase, legal holds, and the condition by which pruning keeps what is held."""

from collections.abc import Iterable
from datetime import datetime

from sqlalchemy import ColumnElement, SQLColumnExpression, delete, exists, select
from sqlalchemy.orm import aliased
from sqlmodel import Field, col

from evergrant_server.core.connections.erasure import Erasure, LegalHold, TargetKind, targets_of
from evergrant_server.core.ids import ConnectionId, ErasureId, LegalHoldId, Tenant
from evergrant_server.store.authority.authenticators import AuthenticatedRepository
from evergrant_server.store.connections.tables import ConnectionRow
from evergrant_server.store.database import columns
from evergrant_server.store.database.rows import columns_equal, take_turns

_HOLDS = "legal holds"  # of every tenant: pruning looks at all of them


class ErasureRow(columns.IdTable, table=True):
    __table_args__ = (
        columns.partial_index("ix_erasure_unfinished", "created_at", where="finished_at IS NULL"),
    )
    kind: str
    target: str
    target_hash: str
    reason: str
    by: str
    state: str
    created_at: datetime = columns.timestamp()
    waits_until: datetime = columns.timestamp()
    connections: int
    unconfirmed: int
    keys: int
    rows: int
    records: int
    waiting: int
    shard: str
    after: str
    hold_id: str | None = None
    finished_at: datetime | None = columns.timestamp()
    mac: str | None = None


class LegalHoldRow(columns.IdTable, table=True):
    __table_args__ = (columns.partial_index("ix_legal_hold_active", "tenant", where="ended_at IS NULL"),)
    kind: str
    target: str
    target_hash: str
    reason: str
    by: str
    created_at: datetime = columns.timestamp()
    until: datetime | None = columns.timestamp()
    ended_at: datetime | None = columns.timestamp()
    ended_by: str | None = None
    end_reason: str | None = None
    mac: str | None = None


class AuditPruningRow(columns.TenantTable, table=True):
    """Up to which record the bodies of a shard have been pruned."""

    shard: str = Field(primary_key=True)
    seq: int = Field(sa_type=columns.BIG_INTEGER)  # pyright: ignore[reportArgumentType]  # an instance carries the variant


class Erasures(AuthenticatedRepository[Erasure, ErasureId]):
    _table, _model = ErasureRow, Erasure

    async def add(self, erasure: Erasure) -> None:
        """Raises Failure ALREADY_EXISTS."""
        await self._add(erasure, f"Erasure {erasure.id}")

    async def page(
        self, tenant: Tenant, after: str | None, limit: int, target_hash: str | None = None
    ) -> list[Erasure]:
        """Erasures sorted by id, of one target or of all. Not checked."""
        mine = self._where(tenant=tenant, **({} if target_hash is None else {"target_hash": target_hash}))
        return await self._page(mine, "id", after, limit)

    async def open_of(self, tenant: Tenant, kind: TargetKind, target_hash: str) -> Erasure | None:
        """The erasure of this target that hasn't ended. Another transaction asks once this one has ended."""
        await take_turns(self._connection, f"erasure:{tenant}:{kind}:{target_hash}")
        mine = self._where(tenant=tenant, kind=kind.value, target_hash=target_hash, finished_at=None)
        return await self._first(mine.order_by(col(ErasureRow.created_at)))

    async def unfinished(self, before: datetime, limit: int) -> list[Erasure]:
        """Those of every tenant from before then that haven't ended. Not checked."""
        row = ErasureRow
        late = self._where(col(row.finished_at).is_(None), col(row.created_at) < before)
        return await self._all_unchecked(late.order_by(col(row.created_at)).limit(limit))

    async def forget_subjects(self, erasure: Erasure) -> None:
        """Erase the name of the erasure's subject, or of every subject of its tenant, from other erasures and
        from holds."""
        mine = {"tenant": erasure.tenant, "kind": TargetKind.SUBJECT.value}
        if erasure.kind is TargetKind.SUBJECT:
            mine["target_hash"] = erasure.target_hash
        for erased in await self._all_unchecked(self._where(**mine)):
            if erased.target and erased.id != erasure.id:
                await self.replace(erased.__replace__(target=""), expected=erased.revision)
        holds = LegalHolds(self._connection, self._ring)
        for hold in await holds.naming_subjects(**mine):
            await holds.replace(hold.__replace__(target=""), expected=hold.revision)


class LegalHolds(AuthenticatedRepository[LegalHold, LegalHoldId]):
    _table, _model = LegalHoldRow, LegalHold

    async def add(self, hold: LegalHold) -> None:
        """Waits for the transactions that have looked for holds. Raises Failure ALREADY_EXISTS."""
        await take_turns(self._connection, _HOLDS)
        await self._add(hold, f"Hold {hold.id}")

    async def page(self, tenant: Tenant, after: str | None, limit: int) -> list[LegalHold]:
        """Holds sorted by id, ended ones too. Not checked."""
        return await self._page(self._where(tenant=tenant), "id", after, limit)

    async def active(self, tenant: Tenant, now: datetime) -> list[LegalHold]:
        """The tenant's holds that last, for who erases: another is put once this transaction has ended.

        Raises Failure AUTHORITY_BROKEN for any hold that was changed by hand, also one that seems to have
        ended: nothing is erased then.
        """
        await self.keep_off()
        return [hold for hold in await self._all(self._where(tenant=tenant)) if hold.is_active(now)]

    async def keep_off(self) -> None:
        """Have whoever puts a hold wait until this transaction has ended: to be called before `is_held`."""
        await take_turns(self._connection, _HOLDS, shared=True)

    async def naming_subjects(self, **equal: str) -> list[LegalHold]:
        """Those of these with a subject's name, none of which lasts: else nothing would be erased."""
        return [hold for hold in await self._all_unchecked(self._where(**equal)) if hold.target]

    async def lapsed(self, now: datetime, limit: int) -> list[LegalHold]:
        """Holds of every tenant whose time is over, and whose end isn't recorded yet."""
        row = LegalHoldRow
        over = self._where(col(row.ended_at).is_(None), col(row.until) <= now).limit(limit)
        return await self._all_unchecked(over)

    async def against(self, tenant: Tenant, kind: TargetKind, target: str, now: datetime) -> LegalHold | None:
        """A hold that forbids to erase this connection, subject or tenant. Raises as `active`.

        A subject's hold is for each of its connections, and a connection's is for its subject and its tenant.
        """
        holds = await self.active(tenant, now)
        if kind is TargetKind.CONNECTION:
            subject = await self._subject_of(tenant, ConnectionId(target))
            wanted = {(TargetKind.CONNECTION, target), (TargetKind.SUBJECT, subject)}
        elif kind is TargetKind.SUBJECT:
            held = targets_of(holds, TargetKind.CONNECTION)
            mine = await self._connections_among(tenant, held, {target})
            wanted = {(TargetKind.SUBJECT, target), *((TargetKind.CONNECTION, id) for id in mine)}
        else:
            wanted = {(hold.kind, hold.target) for hold in holds}
        wanted.add((TargetKind.TENANT, tenant))
        return next((hold for hold in holds if (hold.kind, hold.target) in wanted), None)

    async def held_objects(
        self, tenant: Tenant, holds: Iterable[LegalHold], objects: Iterable[str]
    ) -> set[str]:
        """Those of these ids that are connections under one of the holds."""
        held = targets_of(holds, TargetKind.CONNECTION)
        subjects = targets_of(holds, TargetKind.SUBJECT)
        among = set(objects)
        return (held & among) | await self._connections_among(tenant, among, subjects)

    async def begin_pruning_anew(self, tenant: Tenant) -> None:
        """Have the audit records that a hold has kept looked at again: to be called where one ends."""
        await self._run(delete(AuditPruningRow).where(columns_equal(AuditPruningRow, tenant=tenant)))

    async def _subject_of(self, tenant: Tenant, id: ConnectionId) -> str | None:
        query = select(col(ConnectionRow.subject)).where(columns_equal(ConnectionRow, tenant=tenant, id=id))
        return (await self._connection.execute(query)).scalar_one_or_none()

    async def _connections_among(self, tenant: Tenant, ids: set[str], subjects: set[str]) -> set[str]:
        if not ids or not subjects:
            return set()
        query = select(col(ConnectionRow.id)).where(
            columns_equal(ConnectionRow, tenant=tenant),
            col(ConnectionRow.id).in_(ids),
            col(ConnectionRow.subject).in_(subjects),
        )
        return set((await self._connection.execute(query)).scalars())


def is_held(
    tenant: SQLColumnExpression[str], connection_id: SQLColumnExpression[str] | None, now: datetime
) -> ColumnElement[bool]:
    """True for a row that an active hold keeps: of its tenant, its connection or the subject of that.

    Ask once new holds are kept off.
    """
    hold, connection = aliased(LegalHoldRow), aliased(ConnectionRow)
    kind, target = col(hold.kind), col(hold.target)
    about = kind == TargetKind.TENANT.value
    if connection_id is not None:
        of_subject = (
            exists()
            .where(
                col(connection.tenant) == tenant,
                col(connection.id) == connection_id,
                col(connection.subject) == target,
            )
            .correlate_except(connection)
        )
        about |= (kind == TargetKind.CONNECTION.value) & (target == connection_id)
        about |= (kind == TargetKind.SUBJECT.value) & of_subject
    lasts = col(hold.ended_at).is_(None) & (col(hold.until).is_(None) | (col(hold.until) > now))
    return exists().where(col(hold.tenant) == tenant, lasts, about).correlate_except(hold)
