"""Campaigns: their rows, and which connections of one are asked, reminded, and have consented.

A campaign's order and its connections are rows of `incidents`.
"""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Select, and_, case, func, literal, or_, select, union_all

from evergrant_server.core.connections.campaigns import Campaign
from evergrant_server.core.connections.consent import ConsentStatus
from evergrant_server.core.connections.incidents import (
    Incident,
    IncidentItem,
    IncidentState,
    ItemOutcome,
    ItemStep,
)
from evergrant_server.core.ids import ConnectionId, IncidentId, IntegrationId, Tenant
from evergrant_server.store.access import LeaseUseRow
from evergrant_server.store.audit_tables import AuditFiledRow
from evergrant_server.store.authority.authenticators import AuthenticatedRepository
from evergrant_server.store.connections.incidents import IncidentConnectionRow, IncidentRow
from evergrant_server.store.connections.tables import FINAL_STATES, ConnectionRow, ConsentRow
from evergrant_server.store.database import columns
from evergrant_server.store.database.columns import table_of
from evergrant_server.store.database.rows import Repository, Values, fetch_all, read_model

MOST_LEASES = 10_000  # of a connection that are counted
_AT_ONCE = 100  # connections of one query that counts


class CampaignRow(columns.IdTable, table=True):
    older: str
    newer: str
    newer_name: str
    wave_size: int
    every_s: float
    remind_s: list[float] = columns.json()
    end: str
    wave: int
    to_ask: int
    wave_at: datetime = columns.timestamp()
    asked: int
    reminded: int
    mac: str | None = None


_ITEM, _CONNECTION, _USE = (table_of(table) for table in (IncidentConnectionRow, ConnectionRow, LeaseUseRow))
_INCIDENT, _CONSENT, _FILED = (table_of(table) for table in (IncidentRow, ConsentRow, AuditFiledRow))
_I, _C, _U, _N, _F = _ITEM.c, _CONNECTION.c, _USE.c, _CONSENT.c, _FILED.c
_SAME = and_(_C.tenant == _I.tenant, _C.id == _I.connection_id)
_ENDING = (*FINAL_STATES, "revoking")


class MeasuredConnection(NamedTuple):
    """A live connection of an integration, and how much it is used."""

    id: ConnectionId
    subject: str
    used_at: datetime | None
    leases: int


class WaveCount(NamedTuple):
    """How far a wave is: connections that were asked in it, those whose subjects have consented, and the
    leases of a month of all of them."""

    wave: int
    connections: int
    consented: int
    leases: int


class Campaigns(AuthenticatedRepository[Campaign, IncidentId]):
    _table, _model = CampaignRow, Campaign

    async def add(self, campaign: Campaign) -> None:
        await self._add(campaign, f"Campaign {campaign.id}")


class CampaignItems(Repository):
    """The connections of campaigns."""

    async def least_used(
        self, tenant: Tenant, integration: IntegrationId, since: datetime, limit: int
    ) -> list[MeasuredConnection]:
        """Live connections of a client, those with the fewest leases since then first; `limit` at most, by
        their last use."""
        last = _last_use()
        query = (
            select(_C.id, _C.subject, last.label("used_at"))
            .where(_C.tenant == tenant, _C.integration_id == integration, _C.state.not_in(FINAL_STATES))
            .order_by(last.is_not(None), last, _C.id)
            .limit(limit)
        )
        rows = await fetch_all(self._connection, query)
        counts = await self.leases(tenant, [row["id"] for row in rows], since)
        used = [
            MeasuredConnection(row["id"], row["subject"], row["used_at"], counts[row["id"]]) for row in rows
        ]
        return sorted(used, key=lambda connection: connection.leases)  # stable: then by their last use

    async def leases(
        self, tenant: Tenant, ids: Collection[ConnectionId], since: datetime
    ) -> dict[ConnectionId, int]:
        """How often each was leased since then, as far as that is counted and filed."""
        counts: dict[ConnectionId, int] = {}
        all_ids = list(ids)
        for start in range(0, len(all_ids), _AT_ONCE):
            each = [_leases_of(tenant, id, since) for id in all_ids[start : start + _AT_ONCE]]
            rows = await fetch_all(self._connection, union_all(*each))
            counts |= {ConnectionId(row["id"]): int(row["number"]) for row in rows}
        return counts

    async def live_of_client(
        self, tenant: Tenant, integration: IntegrationId, after: str, limit: int
    ) -> list[ConnectionId]:
        """Live connections whose grants this client has got, by id, after `after`."""
        query = select(_C.id).where(_C.tenant == tenant, _C.integration_id == integration, _C.id > after)
        query = query.where(_C.state.not_in(FINAL_STATES)).order_by(_C.id).limit(limit)
        return [ConnectionId(id) for id in (await self._connection.execute(query)).scalars()]

    async def to_ask(self, incident: Incident, limit: int) -> list[IncidentItem]:
        """Connections that weren't asked yet, the least used first."""
        query = select(_ITEM).where(_at(incident, ItemStep.LISTED))
        by_use = (_I.leases, _I.used_at.is_not(None), _I.used_at, _I.connection_id)
        return await self._items(query.order_by(*by_use).limit(limit))

    async def to_remind(
        self, incident: Incident, moments: Sequence[datetime], limit: int
    ) -> list[IncidentItem]:
        """Connections whose next reminder is due: the one of number n, for who was asked by `moments[n]`."""
        due = [and_(_I.reminders <= number, _I.told_at <= at) for number, at in enumerate(moments)]
        if not due:
            return []
        query = select(_ITEM).where(_at(incident, ItemStep.TOLD), or_(*due))
        return await self._items(query.order_by(_I.connection_id).limit(limit))

    async def unfinished(self, incident: Incident, limit: int) -> list[IncidentItem]:
        """Connections of which it isn't known yet what has become of them."""
        query = select(_ITEM).where(_of(incident), _I.step != ItemStep.ENDED.value)
        return await self._items(query.order_by(_I.connection_id).limit(limit))

    async def settled(
        self, incident: Incident, newer: IntegrationId, limit: int
    ) -> list[tuple[IncidentItem, bool]]:
        """Connections whose subjects have consented to the new client (True), or that have ended or end."""
        over = or_(_C.id.is_(None), _C.state.in_(_ENDING), _C.integration_id == newer)
        query = (
            select(_ITEM, _C.integration_id.label("client"), _C.state)
            .join_from(_ITEM, _CONNECTION, _SAME, isouter=True)
            .where(_of(incident), _I.step != ItemStep.ENDED.value, over)
            .order_by(_I.connection_id)
            .limit(limit)
        )
        rows = await fetch_all(self._connection, query)
        return [(_item(row), row["client"] == newer and row["state"] not in (None, *_ENDING)) for row in rows]

    async def waves(self, incident: Incident) -> list[WaveCount]:
        """How far each wave is that has begun."""
        consented = func.sum(case((_I.outcome == ItemOutcome.CONSENTED.value, 1), else_=0))
        query = select(_I.wave, func.count(), consented, func.sum(_I.leases))
        query = query.where(_of(incident), _I.wave > 0).group_by(_I.wave).order_by(_I.wave)
        return [WaveCount(*map(int, row)) for row in await self._connection.execute(query)]

    async def declined(self, incident: Incident) -> int:
        """How many connections wait for a consent of which the newest try was denied or has failed."""
        tries = and_(
            _N.tenant == _I.tenant, _N.connection_id == _I.connection_id, _N.created_at >= _I.told_at
        )
        ended = (ConsentStatus.DENIED.value, ConsentStatus.FAILED.value)
        query = (
            select(func.count(func.distinct(_I.connection_id)))
            .join_from(_ITEM, _CONSENT, tries)
            .where(_at(incident, ItemStep.TOLD), _N.status.in_(ended))
        )
        return int((await self._connection.execute(query)).scalar_one())

    async def is_asked(self, tenant: Tenant, id: ConnectionId) -> bool:
        """Whether a campaign that goes on has asked the connection's subject."""
        same = and_(_INCIDENT.c.tenant == _I.tenant, _INCIDENT.c.id == _I.incident_id)
        mine = and_(_I.tenant == tenant, _I.connection_id == id, _I.step == ItemStep.TOLD.value)
        query = select(_I.wave).join_from(_ITEM, _INCIDENT, same).where(mine, _I.wave > 0)
        query = query.where(_INCIDENT.c.state == IncidentState.WORKING.value).limit(1)
        return (await self._connection.execute(query)).first() is not None

    async def _items(self, query: Select[Any]) -> list[IncidentItem]:
        return [_item(row) for row in await fetch_all(self._connection, query)]


def _leases_of(tenant: Tenant, id: ConnectionId, since: datetime) -> Select[Any]:
    mine = select(_F.seq).where(_F.tenant == tenant, _F.object == id, _F.at >= since).limit(MOST_LEASES)
    named: list[ColumnElement[Any]] = [literal(id).label("id"), func.count().label("number")]
    return select(*named).select_from(mine.subquery())


def _last_use() -> ColumnElement[Any]:
    mine = select(func.max(_U.used_at)).where(_U.tenant == _C.tenant, _U.connection_id == _C.id)
    return mine.correlate(_CONNECTION).scalar_subquery()


def _item(row: Values) -> IncidentItem:
    return read_model(
        IncidentItem, IncidentConnectionRow, {name: row[name] for name in IncidentItem.model_fields}
    )


def _of(incident: Incident) -> ColumnElement[bool]:
    return and_(_I.tenant == incident.tenant, _I.incident_id == incident.id)


def _at(incident: Incident, step: ItemStep) -> ColumnElement[bool]:
    return and_(_of(incident), _I.step == step.value)
