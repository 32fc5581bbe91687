"""Incidents and their connections: rows that say what was ordered, and how far each connection is.

The order has an authenticator. The rows of its connections have none: a report takes what has become of each
from the audit log, and the order says how many were selected.
"""

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import JSON, ColumnElement, Index, Select, and_, false, func, or_, select
from sqlmodel import Field, col

from evergrant_server.core.connections.incidents import (
    ConnectionsOrder,
    Incident,
    IncidentItem,
    IncidentKind,
    ItemStep,
)
from evergrant_server.core.ids import AppId, ConnectionId, IncidentId, Tenant
from evergrant_server.core.people.leavers import Match
from evergrant_server.store.access import LeaseUseRow
from evergrant_server.store.authority.authenticators import AuthenticatedRepository
from evergrant_server.store.connections.tables import FINAL_STATES, ConnectionRow
from evergrant_server.store.database import columns
from evergrant_server.store.database.columns import table_of
from evergrant_server.store.database.rows import (
    Repository,
    Values,
    column_values,
    columns_equal,
    compare_and_set,
    fetch_all,
    insert,
    read_model,
)

INCIDENTS = (IncidentKind.BREACH, IncidentKind.LEAK)  # the kinds that are called so
USE_SLACK = timedelta(hours=1)  # the ledger writes an app's leases of a connection as often as this


class IncidentRow(columns.IdTable, table=True):
    __table_args__ = (
        columns.partial_index("ix_incident_unfinished", "created_at", where="finished_at IS NULL"),
        columns.partial_index("ix_incident_person", "tenant", "person", where="finished_at IS NULL"),
    )
    kind: str
    integration: str | None = None
    app: str | None = None
    app_id: str | None = None
    since: datetime | None = columns.timestamp()
    until: datetime | None = columns.timestamp()
    reason: str
    by: str
    state: str
    paused: bool
    created_at: datetime = columns.timestamp()
    waits_until: datetime = columns.timestamp()
    selected: int
    ended: int
    outcomes: dict[str, int] = columns.json()
    after: str
    idle: int
    lines: int
    digest: str
    header: str
    summary: str
    note: str
    finished_at: datetime | None = columns.timestamp()
    mac: str | None = None
    person: str | None = None
    held_until: datetime | None = columns.timestamp()
    undone_at: datetime | None = columns.timestamp()
    beside: dict[str, int] = Field(sa_type=JSON, sa_column_kwargs={"server_default": "{}"})


class IncidentConnectionRow(columns.TenantTable, table=True):
    __table_args__ = (
        Index("ix_incident_connection_step", "tenant", "incident_id", "step", "integration", "used_at"),
        Index("ix_incident_connection_connection", "tenant", "connection_id"),
    )
    incident_id: str = Field(primary_key=True)
    connection_id: str = Field(primary_key=True)
    integration: str
    provider: str
    used_at: datetime | None = columns.timestamp()
    step: str
    outcome: str | None = None
    generation: int
    told_at: datetime | None = columns.timestamp()
    line: str
    matched: str | None = None
    leases: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    wave: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    reminders: int = Field(default=0, sa_column_kwargs={"server_default": "0"})


_ITEM, _CONNECTION, _USE = (table_of(table) for table in (IncidentConnectionRow, ConnectionRow, LeaseUseRow))
_I, _C, _U = _ITEM.c, _CONNECTION.c, _USE.c
_SAME = and_(_C.tenant == _I.tenant, _C.id == _I.connection_id)
_NOW = (_C.state, _C.generation.label("generation_now"), _C.subject, _C.label)
# the most recently used first: what was never leased comes last
_BY_USE = (_I.used_at.is_(None), _I.used_at.desc(), _I.connection_id)


class Incidents(AuthenticatedRepository[Incident, IncidentId]):
    _table, _model = IncidentRow, Incident

    async def add(self, incident: Incident) -> None:
        """Raises Failure ALREADY_EXISTS."""
        await self._add(incident, f"Incident {incident.id}")

    async def page(
        self, tenant: Tenant, after: str | None, limit: int, kinds: tuple[IncidentKind, ...] = INCIDENTS
    ) -> list[Incident]:
        """Orders of these kinds, sorted by id. Not checked."""
        mine = self._where(col(IncidentRow.kind).in_(kinds), tenant=tenant)
        return await self._page(mine, "id", after, limit)

    async def open_campaign(self, tenant: Tenant, integration: str) -> Incident | None:
        """The campaign of this integration that hasn't ended, nor was undone."""
        kind = IncidentKind.CAMPAIGN.value
        mine = self._where(
            tenant=tenant, kind=kind, integration=integration, finished_at=None, undone_at=None
        )
        return await self._first(mine.order_by(col(IncidentRow.created_at)))

    async def open_of_person(self, tenant: Tenant, person: str) -> Incident | None:
        """The offboarding of this person that hasn't ended, nor was undone."""
        mine = self._where(tenant=tenant, person=person, finished_at=None, undone_at=None)
        return await self._first(mine.order_by(col(IncidentRow.created_at)))

    async def newest(self, tenant: Tenant, limit: int) -> list[Incident]:
        """The last incidents, the newest first. Not checked."""
        row = IncidentRow
        query = self._where(col(row.kind).in_(INCIDENTS), tenant=tenant).order_by(
            col(row.created_at).desc(), col(row.id)
        )
        return await self._all_unchecked(query.limit(limit))

    async def unfinished(self, before: datetime, limit: int) -> list[Incident]:
        """Those of every tenant from before then that haven't ended, nor wait for the end of a grace. Not
        checked."""
        row = IncidentRow
        works = or_(col(row.held_until).is_(None), col(row.held_until) < before, col(row.state) != "holding")
        late = self._where(col(row.finished_at).is_(None), col(row.created_at) < before, works)
        return await self._all_unchecked(late.order_by(col(row.created_at)).limit(limit))


class CountedIntegration(NamedTuple):
    """How many connections of an integration an incident would be about."""

    integration: str
    provider: str
    connections: int


class ListedPlace(NamedTuple):
    """A connection that is to be listed."""

    id: ConnectionId
    integration: str
    provider: str
    generation: int


class PersonsConnection(NamedTuple):
    """A live connection of a subject that is a person's."""

    id: ConnectionId
    integration: str
    provider: str
    subject: str
    label: str
    state: str
    generation: int


class ListedConnection(NamedTuple):
    """A connection of an incident, and how it is now: None where it was erased."""

    item: IncidentItem
    state: str | None
    generation: int
    subject: str | None
    label: str | None


class IncidentItems(Repository):
    """The connections of incidents and of bulk orders; `incident_id` is the id of either."""

    async def live(
        self, tenant: Tenant, integration: str | None, after: str, limit: int
    ) -> list[ConnectionId]:
        """Connections that haven't ended, of the tenant or of one integration, by id, after `after`."""
        query = select(_C.id).where(_live(tenant, integration), _C.id > after)
        rows = await self._connection.execute(query.order_by(_C.id).limit(limit))
        return [ConnectionId(id) for id in rows.scalars()]

    async def of_leaver(
        self, incident: Incident, matches: Iterable[Match], after: str, limit: int
    ) -> list[ConnectionId]:
        """Live connections of the subjects that are the leaver's, and those that are listed already, by id,
        after `after`."""
        listed = select(_I.connection_id).where(_at(incident, ItemStep.LISTED))
        query = select(_C.id).where(_live(incident.tenant, None), _C.id > after)
        query = query.where(or_(_of_person(matches), _C.id.in_(listed)))
        rows = await self._connection.execute(query.order_by(_C.id).limit(limit))
        return [ConnectionId(id) for id in rows.scalars()]

    async def of_person(
        self, tenant: Tenant, matches: Iterable[Match], limit: int
    ) -> list[PersonsConnection]:
        """Live connections of these subjects, by id."""
        names = (_C.id, _C.integration, _C.provider, _C.subject, _C.label, _C.state, _C.generation)
        query = select(*names).where(_live(tenant, None), _of_person(matches))
        rows = await self._connection.execute(query.order_by(_C.id).limit(limit))
        return [PersonsConnection(*row) for row in rows]

    async def leased_by(self, tenant: Tenant, app_id: AppId, after: str, limit: int) -> list[ConnectionId]:
        """Connections whose tokens the app has leased, ended ones too, by id, after `after`."""
        mine = columns_equal(LeaseUseRow, tenant=tenant, app_id=app_id)
        query = select(_U.connection_id).where(mine, _U.connection_id > after)
        rows = await self._connection.execute(query.order_by(_U.connection_id).limit(limit))
        return [ConnectionId(id) for id in rows.scalars()]

    async def counts(
        self, tenant: Tenant, integration: str | None, app_id: AppId | None, since: datetime | None
    ) -> list[CountedIntegration]:
        """How many live connections these are, by integration: at the most, where `since` is said."""
        query = select(_C.integration, _C.provider, func.count()).where(_live(tenant, integration))
        if app_id is not None or since is not None:
            used = select(_U.connection_id).where(_U.tenant == tenant)
            if app_id is not None:
                used = used.where(_U.app_id == app_id)
            if since is not None:
                used = used.where(_U.used_at >= since - USE_SLACK)
            query = query.where(_C.id.in_(used))
        query = query.group_by(_C.integration, _C.provider).order_by(_C.integration)
        return [CountedIntegration(*row) for row in await self._connection.execute(query)]

    async def places(self, tenant: Tenant, ids: Collection[ConnectionId]) -> list[ListedPlace]:
        """Where these connections are, by id, as far as they are there."""
        names = (_C.id, _C.integration, _C.provider, _C.generation)
        query = select(*names).where(_C.tenant == tenant, _C.id.in_(ids)).order_by(_C.id)
        return [ListedPlace(*row) for row in await self._connection.execute(query)]

    async def waits(self, tenant: Tenant, id: ConnectionId) -> bool:
        """Whether an incident that goes on will tell the connection's workflow."""
        incident = table_of(IncidentRow).c
        same = and_(incident.tenant == _I.tenant, incident.id == _I.incident_id)
        listed = and_(_I.tenant == tenant, _I.connection_id == id, _I.step == ItemStep.LISTED.value)
        query = select(_I.connection_id).join_from(_ITEM, table_of(IncidentRow), same)
        tells = incident.kind != IncidentKind.CAMPAIGN.value  # which has nothing to tell before its end
        query = query.where(listed, incident.finished_at.is_(None), tells).limit(1)
        return (await self._connection.execute(query)).first() is not None

    async def last_uses(self, tenant: Tenant, ids: Collection[ConnectionId]) -> dict[str, datetime]:
        """When each of these connections was last leased by any app, to the hour."""
        query = select(_U.connection_id, func.max(_U.used_at)).where(
            _U.tenant == tenant, _U.connection_id.in_(ids)
        )
        rows = await self._connection.execute(query.group_by(_U.connection_id))
        return {id: at for id, at in rows}

    async def add(self, item: IncidentItem) -> bool:
        """Add a connection to its incident; False: it is there already."""
        return await insert(self._connection, IncidentConnectionRow, column_values(item))

    async def replace(self, item: IncidentItem, *, expected: int) -> None:
        """Raises Failure STORE_CONFLICT, NOT_FOUND."""
        names = ("tenant", "incident_id", "connection_id")
        key = {name: getattr(item, name) for name in names}
        await compare_and_set(self._connection, IncidentConnectionRow, key, column_values(item), expected)

    async def any_open(self, order: ConnectionsOrder[Any]) -> bool:
        """Whether a connection of the incident hasn't ended yet."""
        steps = [step.value for step in ItemStep if step is not ItemStep.ENDED]
        query = select(_I.connection_id).where(_of(order), _I.step.in_(steps)).limit(1)
        return (await self._connection.execute(query)).first() is not None

    async def integrations_at(self, order: ConnectionsOrder[Any], step: ItemStep) -> list[str]:
        """The integrations with connections at this step."""
        query = select(_I.integration).where(_at(order, step)).distinct().order_by(_I.integration)
        return list((await self._connection.execute(query)).scalars())

    async def told_since(self, order: ConnectionsOrder[Any], since: datetime) -> dict[str, int]:
        """How many connections were told since then and haven't ended, by integration."""
        query = select(_I.integration, func.count()).where(_at(order, ItemStep.TOLD), _I.told_at > since)
        rows = await self._connection.execute(query.group_by(_I.integration))
        return {integration: number for integration, number in rows}

    async def next_at(
        self, order: ConnectionsOrder[Any], step: ItemStep, limit: int, integration: str | None = None
    ) -> list[IncidentItem]:
        """Connections at this step, the most recently used first."""
        query = select(_ITEM).where(_at(order, step)).order_by(*_BY_USE).limit(limit)
        if integration is not None:
            query = query.where(_I.integration == integration)
        return await self._items(query)

    async def revoked(
        self, order: ConnectionsOrder[Any], limit: int
    ) -> list[tuple[IncidentItem, str | None]]:
        """Connections that have ended, and of which the incident doesn't know it; each with how."""
        query = (
            select(_ITEM, _C.revocation)
            .join_from(_ITEM, _CONNECTION, _SAME)
            .where(_of(order), _I.step != ItemStep.ENDED.value, _C.state.in_(FINAL_STATES))
            .order_by(_I.connection_id)
            .limit(limit)
        )
        rows = await fetch_all(self._connection, query)
        return [(_item(row), row["revocation"]) for row in rows]

    async def changed(self, order: ConnectionsOrder[Any], limit: int) -> list[ListedConnection]:
        """Connections that were told to refresh, and whose generation or state has moved since."""
        moved = (_C.generation > _I.generation) | (_C.state != "active")
        query = (
            select(_ITEM, *_NOW)
            .join_from(_ITEM, _CONNECTION, _SAME)
            .where(_at(order, ItemStep.TOLD), moved)
            .order_by(_I.connection_id)
            .limit(limit)
        )
        return [_listed(row) for row in await fetch_all(self._connection, query)]

    async def failed(self, order: ConnectionsOrder[Any], limit: int) -> list[IncidentItem]:
        """Connections that were told to refresh, and whose refresh has failed since."""
        query = (
            select(_ITEM)
            .join_from(_ITEM, _CONNECTION, _SAME)
            .where(_at(order, ItemStep.TOLD), _C.last_failed_at >= _I.told_at)
            .order_by(_I.connection_id)
            .limit(limit)
        )
        return await self._items(query)

    async def page(
        self, order: ConnectionsOrder[Any], after: str | None, limit: int, outcome: str | None = None
    ) -> list[ListedConnection]:
        """Connections of the incident by id, after the id `after`, and how each is now."""
        query = (
            select(_ITEM, *_NOW)
            .join_from(_ITEM, _CONNECTION, _SAME, isouter=True)
            .where(_of(order), _I.connection_id > (after or ""))
            .order_by(_I.connection_id)
            .limit(limit)
        )
        if outcome is not None:
            query = query.where(_I.outcome == outcome)
        return [_listed(row) for row in await fetch_all(self._connection, query)]

    async def lines(self, order: ConnectionsOrder[Any], after: str, limit: int) -> list[tuple[str, str]]:
        """Connection and line of the report, in its order, behind the connection `after`."""
        query = select(_I.connection_id, _I.line).where(_of(order), _I.connection_id > after, _I.line != "")
        rows = await self._connection.execute(query.order_by(_I.connection_id).limit(limit))
        return [(id, line) for id, line in rows]

    async def _items(self, query: Select[Any]) -> list[IncidentItem]:
        return [_item(row) for row in await fetch_all(self._connection, query)]


def connections_of(items: Iterable[IncidentItem]) -> Sequence[ConnectionId]:
    return [item.connection_id for item in items]


def _item(row: Values) -> IncidentItem:
    values = {name: row[name] for name in IncidentItem.model_fields}
    return read_model(IncidentItem, IncidentConnectionRow, values)


def _listed(row: Values) -> ListedConnection:
    generation = row["generation_now"] or 0
    return ListedConnection(_item(row), row["state"], generation, row["subject"], row["label"])


def _live(tenant: Tenant, integration: str | None) -> ColumnElement[bool]:
    mine = and_(_C.tenant == tenant, _C.state.not_in(FINAL_STATES))
    return mine if integration is None else and_(mine, _C.integration == integration)


def _of_person(matches: Iterable[Match]) -> ColumnElement[bool]:
    """Subjects that are the person's, each at its integration or at every one."""
    each = [
        _C.subject == match.subject
        if match.integration is None
        else and_(_C.subject == match.subject, _C.integration == match.integration)
        for match in matches
    ]
    return or_(false(), *each)


def _of(order: ConnectionsOrder[Any]) -> ColumnElement[bool]:
    return and_(_I.tenant == order.tenant, _I.incident_id == order.id)


def _at(order: ConnectionsOrder[Any], step: ItemStep) -> ColumnElement[bool]:
    return and_(_of(order), _I.step == step.value)
