"""What was detected, what each app usually does, how far records were looked at, and callers' networks."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Index, delete, func, select, tuple_, update
from sqlmodel import Field, col

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AppId, DetectionId, Tenant
from evergrant_server.core.questions.detection import AppActivity, Detection, DetectionKind
from evergrant_server.store.access import LeaseUseRow
from evergrant_server.store.database import columns
from evergrant_server.store.database.columns import table_of
from evergrant_server.store.database.rows import (
    ModelRepository,
    Repository,
    column_values,
    columns_equal,
    compare_and_set,
    fetch_all,
    find_one,
    insert,
    read_model,
)


class DetectionRow(columns.IdTable, table=True):
    __table_args__ = (
        Index("ix_detection_object", "tenant", "object", "kind", "at"),
        Index("ix_detection_at", "tenant", "at"),
        Index("ix_detection_connection", "tenant", "connection_id"),
    )
    kind: str
    object: str
    connection_id: str | None = None
    app_id: str | None = None
    at: datetime = columns.timestamp()
    facts: dict[str, Any] = columns.json()


class AppActivityRow(columns.TenantTable, table=True):
    __table_args__ = (columns.app_foreign_key(),)
    app_id: str = Field(primary_key=True)
    used_at: datetime | None = columns.timestamp()
    day: str
    most: int
    refused: int
    unconfirmed: int
    before: list[int] = columns.json()


class DetectionPlaceRow(columns.TenantTable, table=True):
    """The number of the next record of a shard that detection looks at."""

    shard: str = Field(primary_key=True)
    seq: int = Field(sa_type=columns.BIG_INTEGER)  # pyright: ignore[reportArgumentType]  # an instance carries the variant


class CallerNetworkRow(columns.TenantTable, table=True):
    """A network from which an app has called the API."""

    __table_args__ = (columns.app_foreign_key(), Index("ix_caller_network_first", "first_at"))
    app_id: str = Field(primary_key=True)
    network: str = Field(primary_key=True)
    first_at: datetime = columns.timestamp()
    used_at: datetime = columns.timestamp()


class CallerNetwork(NamedTuple):
    """A network of an app; `known_since`: since when the app has had any."""

    tenant: Tenant
    app_id: AppId
    network: str
    first_at: datetime
    known_since: datetime


class Detections(ModelRepository[Detection, DetectionId]):
    _table, _model = DetectionRow, Detection

    async def add(self, detection: Detection) -> None:
        await self._add(detection, f"Detection {detection.id}")

    async def page(
        self,
        tenant: Tenant,
        after: tuple[datetime, str] | None,
        limit: int,
        *,
        kind: DetectionKind | None = None,
        since: datetime | None = None,
    ) -> list[Detection]:
        """What was detected, the newest first."""
        row = DetectionRow
        query = self._where(tenant=tenant, **({} if kind is None else {"kind": kind.value}))
        if since is not None:
            query = query.where(col(row.at) >= since)
        if after is not None:
            at, id = after
            query = query.where((col(row.at) < at) | ((col(row.at) == at) & (col(row.id) > id)))
        return await self._all(query.order_by(col(row.at).desc(), col(row.id)).limit(limit))

    async def has_since(self, tenant: Tenant, kind: DetectionKind, object: str, since: datetime) -> bool:
        mine = self._where(col(DetectionRow.at) > since, tenant=tenant, object=object, kind=kind.value)
        return await self._first(mine) is not None

    async def count_since(self, tenant: Tenant, since: datetime) -> dict[str, int]:
        """How many of each kind."""
        row = table_of(DetectionRow).c
        mine = select(row.kind, func.count()).where(row.tenant == tenant, row.at >= since).group_by(row.kind)
        return {kind: int(number) for kind, number in await self._connection.execute(mine)}

    async def prune(self, before: datetime, limit: int = 500) -> int:
        row = table_of(DetectionRow).c
        late = select(row.tenant, row.id).where(row.at < before).limit(limit)
        ids = [tuple(place) for place in await self._connection.execute(late)]
        if not ids:
            return 0
        return await self._run(delete(table_of(DetectionRow)).where(tuple_(row.tenant, row.id).in_(ids)))


class AppActivities(Repository):
    """Each app's row, and the places in the log up to which it is counted."""

    async def get(self, tenant: Tenant, app_id: str) -> AppActivity | None:
        row = await find_one(self._connection, AppActivityRow, tenant=tenant, app_id=app_id)
        return None if row is None else read_model(AppActivity, AppActivityRow, row)

    async def write(self, before: AppActivity | None, after: AppActivity) -> bool:
        """Write the row as it is after `before`. False when there is no such app any more, or another writer
        was first."""
        values = column_values(after, before=list(after.before))
        if before is None:
            return await insert(self._connection, AppActivityRow, values)
        key = {"tenant": after.tenant, "app_id": after.app_id}
        await compare_and_set(self._connection, AppActivityRow, key, values, before.revision)
        return True

    async def connections_used(self, tenant: Tenant, app_id: str, since: datetime) -> int:
        """How many connections the app has leased since then, to the hour."""
        use = table_of(LeaseUseRow).c
        mine = (use.tenant == tenant) & (use.app_id == app_id) & (use.used_at >= since)
        return int((await self._connection.execute(select(func.count()).where(mine))).scalar_one())

    async def places(self) -> dict[tuple[str, str], int]:
        row = table_of(DetectionPlaceRow).c
        rows = await self._connection.execute(select(row.tenant, row.shard, row.seq))
        return {(tenant, shard): int(seq) for tenant, shard, seq in rows}

    async def move_place(self, tenant: Tenant, shard: str, before: int | None, after: int) -> None:
        """Raises Failure STORE_CONFLICT when another worker has moved it."""
        key = {"tenant": tenant, "shard": shard}
        if before is None:
            moved = await insert(self._connection, DetectionPlaceRow, {**key, "seq": after, "revision": 1})
        else:
            mine = columns_equal(DetectionPlaceRow, **key, seq=before)
            moved = await self._run(update(table_of(DetectionPlaceRow)).where(mine).values(seq=after)) == 1
        if not moved:
            raise Failure(ErrorCode.STORE_CONFLICT, f"another worker looks at {tenant}/{shard}")

    # --- networks ------------------------------------------------------------------------

    async def note_networks(self, seen: Iterable[tuple[Tenant, AppId, str]], now: datetime) -> None:
        """Note that the apps have called from these networks."""
        for tenant, app_id, network in sorted(seen):
            key = {"tenant": tenant, "app_id": app_id, "network": network}
            values = {**key, "first_at": now, "used_at": now, "revision": 1}
            if not await insert(self._connection, CallerNetworkRow, values):
                table = table_of(CallerNetworkRow)
                mine = columns_equal(CallerNetworkRow, **key)
                await self._run(update(table).where(mine).values(used_at=now))

    async def new_networks(self, since: datetime, limit: int) -> list[CallerNetwork]:
        """Networks that came since then, with since when their app has had any."""
        row, other = table_of(CallerNetworkRow), table_of(CallerNetworkRow).alias("other")
        known = (
            select(func.min(other.c.first_at))
            .where(other.c.tenant == row.c.tenant, other.c.app_id == row.c.app_id)
            .scalar_subquery()
        )
        query = (
            select(row.c.tenant, row.c.app_id, row.c.network, row.c.first_at, known.label("known_since"))
            .where(row.c.first_at >= since)
            .order_by(row.c.first_at)
            .limit(limit)
        )
        return [CallerNetwork(**found) for found in await fetch_all(self._connection, query)]

    async def prune_networks(self, before: datetime) -> int:
        """Forget networks from which nobody has called since then."""
        row = table_of(CallerNetworkRow)
        return await self._run(delete(row).where(row.c.used_at < before))
