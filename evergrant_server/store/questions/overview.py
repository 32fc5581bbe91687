"""What a tenant's overview counts: a few statements, however many connections there are.

Each reads an index, up to a most. Counts say where they have stopped.
"""

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Select, Subquery, case, func, literal, null, select, text, union_all

from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.decisions import AccessRequestState, CallApprovalState
from evergrant_server.core.definition import DefinitionState
from evergrant_server.core.ids import Tenant
from evergrant_server.store.access import AppKeyRow, AppRow
from evergrant_server.store.audit_tables import AuditHourRow
from evergrant_server.store.connections.refused_consents import AWAITING_CONSENT, refused_by
from evergrant_server.store.connections.tables import (
    FIXED_END_CONDITION,
    UNWELL_CONDITION,
    ConnectionGrantRow,
    ConnectionRow,
)
from evergrant_server.store.database.columns import table_of
from evergrant_server.store.database.rows import Repository, Values, fetch_all
from evergrant_server.store.decisions import AccessRequestRow, ApprovalRow, CallApprovalRow
from evergrant_server.store.integrations.definitions import DefinitionRow
from evergrant_server.store.keys import NO_CONNECTION, KeyRow
from evergrant_server.store.permits import PermitRow
from evergrant_server.store.root_keys import RootKeyRow
from evergrant_server.store.webhooks import WebhookRow

MOST_READ = 20_000  # rows of a state, to group them by cause
MOST_COUNTED = 100_000  # entries of the index of states
MOST_JUDGED = 2_000  # rows that a visitor's permits are asked about, one by one
_MOST_NAMED = 50

_ROW = table_of(ConnectionRow).c
_GRANT = table_of(ConnectionGrantRow).c
_WAITING = (LifecycleState.NEEDS_REAUTH, LifecycleState.PENDING_CONSENT, LifecycleState.REVOKING)
_LIVE = (LifecycleState.ACTIVE, *_WAITING)

MaySee = Callable[[str, str, str, str], bool]
"""Whether a visitor sees the connection with this integration, provider, subject and id."""


class Attention(NamedTuple):
    """Connections of one integration and state that fail, or wait, for one cause; since the first of them.

    `code` None: they wait for a first consent, or for the end of a revocation.
    """

    integration: str
    provider: str
    state: LifecycleState
    code: str | None
    connections: int
    since: datetime


class IntegrationCount(NamedTuple):
    integration: str
    state: LifecycleState
    connections: int


class ComingEnd(NamedTuple):
    """What ends, of whom, and when; `connections` for ends of grants, of which `at` is the first."""

    kind: str
    name: str
    owner: str
    at: datetime
    connections: int


class WaitingDecisions(NamedTuple):
    """How many decisions of a kind wait for an admin, since the first of them."""

    kind: str
    number: int
    since: datetime


class HourCount(NamedTuple):
    hour: datetime
    action: AuditAction
    number: int


class KeyAge(NamedTuple):
    """Since when a key is the current one of its purpose; `service` None: a tenant's key."""

    purpose: str
    service: str | None
    at: datetime | None


class Overviews(Repository):
    """The counts of one tenant."""

    async def attention(self, tenant: Tenant, most: int = MOST_READ) -> tuple[list[Attention], bool]:
        """What needs somebody, grouped; and whether all of it was counted."""
        rows = _rows_that_wait(tenant, most + 1)
        names = (rows.c.integration, rows.c.provider, rows.c.state, rows.c.code)
        counted = select(*names, func.count().label("connections"), func.min(rows.c.since).label("since"))
        groups = await fetch_all(self._connection, counted.group_by(*names))
        attention = [_attention(group, group["connections"], group["since"]) for group in groups]
        numbers: dict[LifecycleState, int] = {}
        for group in attention:
            numbers[group.state] = numbers.get(group.state, 0) + group.connections
        return attention, max(numbers.values(), default=0) <= most

    async def attention_for(
        self, tenant: Tenant, may_see: MaySee, most: int = MOST_JUDGED
    ) -> tuple[list[Attention], bool]:
        """As `attention`, of what a visitor sees among the first rows."""
        rows = _rows_that_wait(tenant, most + 1)
        judged = await fetch_all(self._connection, select(rows))
        groups: dict[tuple[Any, ...], list[Values]] = {}
        for row in judged:
            if may_see(row["integration"], row["provider"], row["subject"], row["id"]):
                group = (row["integration"], row["provider"], row["state"], row["code"])
                groups.setdefault(group, []).append(row)
        attention = [
            _attention(seen[0], len(seen), min(row["since"] for row in seen)) for seen in groups.values()
        ]
        return attention, len(judged) <= most

    async def live_by_integration(
        self, tenant: Tenant, most: int = MOST_COUNTED
    ) -> tuple[list[IntegrationCount], bool]:
        """How many live connections each integration has in each state; and whether all were counted."""
        states = [state.value for state in _LIVE]
        some = select(_ROW.integration, _ROW.state).where(_ROW.tenant == tenant, _ROW.state.in_(states))
        rows = some.limit(most + 1).subquery()
        counted = select(rows.c.integration, rows.c.state, func.count().label("number"))
        counts = [
            IntegrationCount(row["integration"], LifecycleState(row["state"]), row["number"])
            for row in await fetch_all(self._connection, counted.group_by(rows.c.integration, rows.c.state))
        ]
        return counts, sum(count.connections for count in counts) <= most

    async def ends(self, tenant: Tenant, now: datetime, within: timedelta) -> list[ComingEnd]:
        """Keys, permits, agents and grants that end within this time, the first end first."""
        until = now + within
        named = union_all(*_named_ends(tenant, now, until)).subquery()
        grants = union_all(*_grant_ends(tenant, now, until)).subquery()
        by_kind = select(
            *(grants.c.kind, grants.c.name, grants.c.owner, func.min(grants.c.at).label("at")),
            func.count().label("connections"),
        ).group_by(grants.c.kind, grants.c.name, grants.c.owner)
        first = select(named).order_by(named.c.at, named.c.kind, named.c.name).limit(_MOST_NAMED)
        ends = [ComingEnd(**row) for row in await fetch_all(self._connection, first)]
        ends += [ComingEnd(**row) for row in await fetch_all(self._connection, by_kind)]
        return sorted(ends, key=lambda end: (end.at, end.kind, end.name))

    async def decisions(self, tenant: Tenant, now: datetime) -> list[WaitingDecisions]:
        """Decisions and repairs beside connections that wait for an admin."""
        request, call, approval = (
            table_of(row).c for row in (AccessRequestRow, CallApprovalRow, ApprovalRow)
        )
        definition, webhook = table_of(DefinitionRow).c, table_of(WebhookRow).c
        open_approval = approval.used_at.is_(None) & approval.approved_by.is_(None)
        parts = (
            (
                "access_request",
                request,
                request.state == AccessRequestState.WAITING.value,
                request.created_at,
            ),
            ("call", call, call.state == CallApprovalState.WAITING.value, call.created_at),
            ("approval", approval, open_approval & (approval.expires_at > now), approval.created_at),
            (
                "definition",
                definition,
                definition.state == DefinitionState.WAITING.value,
                definition.created_at,
            ),
            (
                "webhook",
                webhook,
                webhook.failing_since.is_not(None) | webhook.disabled_by.is_not(None),
                func.coalesce(webhook.failing_since, webhook.changed_at),
            ),
        )
        counted = union_all(
            *(
                select(
                    literal(kind).label("kind"), func.count().label("number"), func.min(at).label("since")
                ).where(row.tenant == tenant, waits)
                for kind, row, waits, at in parts
            )
        )
        rows = await fetch_all(self._connection, counted)
        return [WaitingDecisions(**row) for row in rows if row["number"]]

    async def hours(self, tenant: Tenant, since: datetime) -> list[HourCount]:
        """Leases and refreshes by the hour, as far as workers have counted them."""
        row = table_of(AuditHourRow).c
        query = select(row.hour, row.action, row.number).where(row.tenant == tenant, row.hour >= since)
        return [
            HourCount(count["hour"], AuditAction(count["action"]), count["number"])
            for count in await fetch_all(self._connection, query.order_by(row.hour))
        ]

    async def prune_hours(self, before: datetime) -> int:
        """Delete counts of hours before then."""
        hours = table_of(AuditHourRow)
        return await self._run(hours.delete().where(hours.c.hour < before))

    async def keys(self, tenant: Tenant) -> list[KeyAge]:
        """The current keys of the tenant, and the current roots that are rows."""
        key, root = table_of(KeyRow).c, table_of(RootKeyRow).c
        mine = (key.tenant == tenant) & (key.connection_id == NO_CONNECTION) & key.retired_at.is_(None)
        of_tenant = select(key.purpose, null().label("service"), key.created_at.label("at")).where(mine)
        of_roots = select(root.purpose, root.service, root.current_at).where(root.state == "current")
        rows = await fetch_all(self._connection, union_all(of_tenant, of_roots))
        return sorted((KeyAge(**row) for row in rows), key=lambda age: (age.service is not None, age.purpose))

    async def archived_at(self) -> datetime | None:
        """When PostgreSQL's archiver has kept the last piece of its log, where it says so. None: it keeps
        none, or this is another database."""
        if self._connection.dialect.name == "sqlite":
            return None
        query = text("SELECT last_archived_time FROM pg_stat_archiver")
        return (await self._connection.execute(query)).scalar_one_or_none()


def _attention(row: Values, number: int, since: datetime) -> Attention:
    state = LifecycleState(row["state"])
    return Attention(row["integration"], row["provider"], state, row["code"], number, since)


def _rows_that_wait(tenant: Tenant, most: int) -> Subquery:
    """Connections that need somebody, of each state up to so many: with the cause, and since when."""

    def of(condition: Any, code: ColumnElement[Any], since: ColumnElement[Any]) -> Select[*tuple[Any, ...]]:
        names = (_ROW.id, _ROW.integration, _ROW.provider, _ROW.subject, _ROW.state)
        rows = select(*names, code.label("code"), since.label("since"))
        return select(rows.where(_ROW.tenant == tenant, condition).limit(most).subquery())

    chooses = case((_ROW.failures > 0, _ROW.last_failure), else_=literal("choice_required"))
    failing_since = func.coalesce(_ROW.failing_since, _ROW.last_failed_at, _ROW.changed_at)
    parts = [of(text(UNWELL_CONDITION), chooses, failing_since)]
    refused = func.coalesce(refused_by(), _ROW.reason)
    for state in _WAITING:
        code = refused if state in AWAITING_CONSENT else _ROW.reason
        parts.append(of(_ROW.state == state.value, code, _ROW.changed_at))
    return union_all(*parts).subquery()


def _named_ends(tenant: Tenant, now: datetime, until: datetime) -> Iterable[Select[*tuple[Any, ...]]]:
    """Of keys, permits and agents: one row each."""
    app, key, permit = (table_of(row).c for row in (AppRow, AppKeyRow, PermitRow))

    def end(kind: str, name: ColumnElement[Any], at: ColumnElement[Any]) -> Select[*tuple[Any, ...]]:
        columns = (literal(kind).label("kind"), name.label("name"), app.name.label("owner"))
        rows = select(*columns, at.label("at"), literal(0).label("connections"))
        return rows.where(app.tenant == tenant, at > now, at <= until)

    yield end("key", key.id, key.expires_at).where(*_of_app(key, app), key.revoked_at.is_(None))
    yield end("permit", permit.name, permit.expires_at).where(*_of_app(permit, app))
    yield end("agent", app.name, app.ends_at)


def _of_app(row: Any, app: Any) -> tuple[ColumnElement[bool], ...]:
    return row.tenant == app.tenant, row.app_id == app.id


def _grant_ends(tenant: Tenant, now: datetime, until: datetime) -> Iterable[Select[*tuple[Any, ...]]]:
    """Of grants: refresh tokens, and access tokens that no refresh follows."""

    def ends(kind: str, at: ColumnElement[Any], *conditions: Any) -> Select[*tuple[Any, ...]]:
        live = (_ROW.tenant == _GRANT.tenant, _ROW.id == _GRANT.connection_id, _ROW.state == "active")
        columns = (literal(kind).label("kind"), _ROW.integration.label("name"), _ROW.provider.label("owner"))
        rows = select(*columns, at.label("at")).where(*live, _GRANT.tenant == tenant, at > now, at <= until)
        return select(rows.where(*conditions).limit(MOST_READ).subquery())

    yield ends("refresh_token", _GRANT.refresh_expires_at, _GRANT.refresh_expires_at.is_not(None))
    yield ends("access_token", _GRANT.expires_at, text(FIXED_END_CONDITION))
