"""Who reaches what, for people: apps and permits with their broken rows, what they reach and have leased.

Reads rows whose authenticator is broken too, and says so. Nothing is decided by these rows: the lease path
reads `access` and `lease_rows`.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, TextClause, func, or_, select, text, tuple_, union_all
from sqlmodel import col

from evergrant_server.core.access import App, AppCredential, AppKey, Effect, Permit
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.grant import MAIN_SLOT
from evergrant_server.core.errors import Failure
from evergrant_server.core.ids import AppId, ConnectionId, PermitId, Tenant
from evergrant_server.store.access import (
    AppCredentialRow,
    AppKeyRow,
    AppKeyUseRow,
    AppRow,
    LeaseUseRow,
)
from evergrant_server.store.authority.authenticators import Model, authentic
from evergrant_server.store.connections.tables import LIVE_CONDITION, ConnectionGrantRow, ConnectionRow
from evergrant_server.store.database.columns import Row, table_of
from evergrant_server.store.database.rows import Values, columns_equal, fetch_all, find_one, read_model
from evergrant_server.store.permits import PermitRow, PermitUseRow
from evergrant_server.store.store import Transaction

_EVERY = "*"
_PLACE = ("integration", "provider", "subjects", "connections")  # of a permit: which connections it covers


@dataclass(frozen=True)
class AppReview:
    """An app with its good keys, credentials and permits; `broken` has the failure of each other row.

    Broken keys and credentials are left out: each is an unknown one, and the app's others still work.
    """

    stopped: Failure | None  # it is disabled, or an agent that has ended
    keys: tuple[AppKey, ...]
    credentials: tuple[AppCredential, ...]
    permits: tuple[Permit, ...]
    broken: tuple[Failure, ...]


@dataclass(frozen=True)
class PermitReview:
    """A permit with the values of its row. `authentic`: its row and its app's are Evergrant's.

    `last_used_at` is when it last allowed something, `app_last_used_at` the app's last lease or other
    authenticated request, both to the minute.
    """

    app: str
    app_disabled: bool
    sponsor: str | None
    agent_ends_at: datetime | None
    permit: Values
    authentic: bool
    live_connections: int
    last_used_at: datetime | None
    app_last_used_at: datetime | None


async def review_app(tx: Transaction, tenant: Tenant, name: str, now: datetime) -> AppReview | None:
    """The app of this name with all that its requests are judged by, or None."""
    row = await find_one(tx.connection, AppRow, tenant=tenant, name=name)
    if row is None:
        return None
    mine = {"tenant": tenant, "app_id": row["id"]}
    _, broken_app = _split(tx, App, AppRow, [row])
    keys, _ = _split(tx, AppKey, AppKeyRow, await _rows(tx, AppKeyRow, **mine))
    credentials, _ = await tx.credentials.authentic_of_app(tenant, row["id"])
    permits, broken_permits = _split(tx, Permit, PermitRow, await _rows(tx, PermitRow, **mine))
    app = read_model(App, AppRow, row)
    broken = (*broken_app, *broken_permits, *await _missing_denies(tx, app))
    stopped = await _stopped(tx, app, now)
    return AppReview(stopped, tuple(keys), tuple(credentials), tuple(permits), broken)


async def _missing_denies(tx: Transaction, app: App) -> list[Failure]:
    """The failure of an app that has lost a permit that denies, or none."""
    try:
        await tx.access.require_denies(app)
    except Failure as failure:
        return [failure]
    return []


async def _stopped(tx: Transaction, app: App, now: datetime) -> Failure | None:
    try:
        await tx.agents.require_active(app, now)
    except Failure as failure:
        return failure
    return None


async def review_connection(
    tx: Transaction, tenant: Tenant, id: ConnectionId
) -> tuple[Connection, Failure | None] | None:
    """The connection as its row says, with the failure of its names' authenticator, or None."""
    connection = await tx.connections.get(tenant, id)
    if connection is None:
        return None
    try:
        await tx.connections.get_authentic(tenant, id)
    except Failure as failure:
        return connection, failure
    return connection, None


async def review_permits(
    tx: Transaction, tenant: Tenant, after: tuple[str, str] | None, limit: int, *, of_app: str | None = None
) -> list[PermitReview]:
    """The tenant's permits, or those of one app, sorted by the names of app and permit, after that pair."""
    rows = await _permit_rows(tx, tenant, after, limit, of_app)
    app_ids = sorted({row["app_id"] for row in rows})
    apps = {row["id"]: row for row in await _apps(tx, tenant, app_ids)}
    uses = await tx.access.permit_uses(tenant, [row["id"] for row in rows])
    app_uses = await _last_uses(tx, tenant, app_ids)
    lost = {id: await _missing_denies(tx, read_model(App, AppRow, row)) for id, row in apps.items()}
    reached: dict[str, int] = {}
    reviews: list[PermitReview] = []
    for row in rows:
        owner = apps[row["app_id"]]
        place = repr([row[name] for name in _PLACE])
        if place not in reached:
            reached[place] = await count_covered(tx, tenant, row)
        broken = _split(tx, App, AppRow, [owner])[1] or _split(tx, Permit, PermitRow, [row])[1]
        reviews.append(
            PermitReview(
                app=row["app_name"],
                app_disabled=bool(owner["disabled"]),
                sponsor=owner["sponsor"],
                agent_ends_at=owner["ends_at"],
                permit=row,
                authentic=not (broken or lost[owner["id"]]),
                live_connections=reached[place],
                last_used_at=uses.get(row["id"]),
                app_last_used_at=app_uses.get(owner["id"]),
            )
        )
    return reviews


async def _permit_rows(
    tx: Transaction, tenant: Tenant, after: tuple[str, str] | None, limit: int, of_app: str | None
) -> list[Values]:
    """The rows of permits, each with its app's name as `app_name`."""
    permit, app = table_of(PermitRow), table_of(AppRow)
    names = (app.c.name, permit.c.name)
    query = (
        select(permit, app.c.name.label("app_name"))
        .join(app, (app.c.tenant == permit.c.tenant) & (app.c.id == permit.c.app_id))
        .where(permit.c.tenant == tenant)
        .order_by(*names)
        .limit(limit)
    )
    if after is not None:
        query = query.where(tuple_(*names) > tuple_(*after))
    if of_app is not None:
        query = query.where(app.c.name == of_app)
    return await fetch_all(tx.connection, query)


async def unused_permits(
    tx: Transaction, since: datetime, after: PermitId | None, limit: int
) -> list[Permit]:
    """Permits of every tenant that allow, and that no lease has used since then, sorted by id. Not checked.

    Those that were made later, and those of a disabled app, are left out.
    """
    permit, use, app = table_of(PermitRow), table_of(PermitUseRow).c, table_of(AppRow)
    query = (
        select(permit)
        .join(app, (app.c.tenant == permit.c.tenant) & (app.c.id == permit.c.app_id))
        .join(
            table_of(PermitUseRow),
            (use.tenant == permit.c.tenant) & (use.permit_id == permit.c.id),
            isouter=True,
        )
        .where(func.coalesce(use.used_at, permit.c.created_at) < since, app.c.disabled.is_(False))
        .where(permit.c.effect == Effect.ALLOW.value, permit.c.id > (after or ""))
        .order_by(permit.c.id)
        .limit(limit)
    )
    return [read_model(Permit, PermitRow, row) for row in await fetch_all(tx.connection, query)]


def _split(
    tx: Transaction, model: type[Model], table: type[Row], rows: Iterable[Values]
) -> tuple[list[Model], list[Failure]]:
    """The rows that are Evergrant's as values, and the failures of the others."""
    good: list[Model] = []
    broken: list[Failure] = []
    for row in rows:
        try:
            good.append(authentic(tx.sealer.ring, model, table, row))
        except Failure as failure:
            broken.append(failure)
    return good, broken


async def _rows(tx: Transaction, table: type[Row], **equal: str) -> list[Values]:
    return await fetch_all(tx.connection, select(table).where(columns_equal(table, **equal)))


async def _apps(tx: Transaction, tenant: Tenant, ids: Sequence[str]) -> list[Values]:
    mine = columns_equal(AppRow, tenant=tenant) & col(AppRow.id).in_(ids)
    return await fetch_all(tx.connection, select(AppRow).where(mine))


async def _last_uses(tx: Transaction, tenant: Tenant, app_ids: Sequence[str]) -> dict[str, datetime]:
    """When an app was last authenticated, by its id. The lease ledger writes it (`app_key_use`)."""
    both = (table_of(AppKeyRow).c, table_of(AppCredentialRow).c)
    keys = union_all(
        *(
            select(table.id, table.app_id).where(table.tenant == tenant, table.app_id.in_(app_ids))
            for table in both
        )
    ).subquery()
    use = table_of(AppKeyUseRow).c
    query = (
        select(keys.c.app_id, func.max(use.used_at))
        .join_from(keys, table_of(AppKeyUseRow), (use.tenant == tenant) & (use.key_id == keys.c.id))
        .group_by(keys.c.app_id)
    )
    return {app_id: at for app_id, at in await tx.connection.execute(query)}


async def covered_connections(
    tx: Transaction, tenant: Tenant, permit: Values, limit: int
) -> list[Connection]:
    """The first connections, by subject, that haven't ended and that the fields of a permit cover. Not
    checked."""
    row = ConnectionRow
    query = select(row).where(*_covered(tenant, permit)).order_by(col(row.subject), col(row.id)).limit(limit)
    return [read_model(Connection, row, values) for values in await fetch_all(tx.connection, query)]


async def count_covered(tx: Transaction, tenant: Tenant, permit: Values) -> int:
    """How many connections that haven't ended the fields of a permit cover."""
    query = select(func.count()).select_from(ConnectionRow).where(*_covered(tenant, permit))
    return int((await tx.connection.execute(query)).scalar_one())


def _covered(tenant: Tenant, permit: Values) -> Iterator[ColumnElement[bool] | TextClause]:
    yield columns_equal(ConnectionRow, tenant=tenant)
    yield text(LIVE_CONDITION)
    for name in ("integration", "provider"):
        if permit[name] != _EVERY:
            yield columns_equal(ConnectionRow, **{name: permit[name]})
    if permit["connections"] is not None:
        yield col(ConnectionRow.id).in_(permit["connections"])
    if _EVERY not in permit["subjects"]:
        yield or_(*_subjects(permit["subjects"]))


def _subjects(subjects: Sequence[str]) -> Iterator[ColumnElement[bool]]:
    """As `policy` compares them: exactly, or by the beginning where `*` follows it."""
    subject = col(ConnectionRow.subject)
    yield subject.in_([name for name in subjects if not name.endswith(_EVERY)])
    for beginning in (beginning[:-1] for beginning in subjects if beginning.endswith(_EVERY)):
        yield func.substr(subject, 1, len(beginning)) == beginning


@dataclass(frozen=True)
class LeasedConnection:
    """A connection that an app has leased, with the scopes of its token now."""

    id: ConnectionId
    integration: str
    provider: str
    subject: str
    scopes: tuple[str, ...]
    leased_at: datetime


async def leased_connections(
    tx: Transaction, tenant: Tenant, app_id: AppId, since: datetime, limit: int
) -> list[LeasedConnection]:
    """The connections that an app has leased since then and that hold a token, the newest lease first."""
    use, connection, grant = (table_of(table) for table in (LeaseUseRow, ConnectionRow, ConnectionGrantRow))
    same = (connection.c.tenant == use.c.tenant) & (connection.c.id == use.c.connection_id)
    main = (grant.c.tenant == use.c.tenant) & (grant.c.connection_id == use.c.connection_id)
    c = connection.c
    query = (
        select(c.id, c.integration, c.provider, c.subject, grant.c.scopes, use.c.used_at)
        .join_from(use, connection, same)
        .join(grant, main & (grant.c.slot == MAIN_SLOT))
        .where(use.c.tenant == tenant, use.c.app_id == app_id, use.c.used_at >= since)
        .order_by(use.c.used_at.desc(), c.id)
        .limit(limit)
    )
    return [
        LeasedConnection(
            row["id"],
            row["integration"],
            row["provider"],
            row["subject"],
            tuple(row["scopes"]),
            row["used_at"],
        )
        for row in await fetch_all(tx.connection, query)
    ]
