"""What fails at one integration, counted by cause: two statements, however many connections there are."""

from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, FromClause, Select, case, func, literal, null, select, text
from sqlalchemy.sql.selectable import Subquery

from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import ConnectionId, IntegrationId, Tenant
from evergrant_server.store.connections.refused_consents import AWAITING_CONSENT, refused_by
from evergrant_server.store.connections.tables import FAILING_CONDITION, LIVE_CONDITION, ConnectionRow
from evergrant_server.store.database.columns import table_of
from evergrant_server.store.database.engine import DatabaseConnection
from evergrant_server.store.database.rows import columns_equal, fetch_all

EXAMPLES = 20  # of a cause, the newest: their audit records hold the provider's words
MOST_READ = 20_000  # rows of an integration that aren't in the index of failing ones

_ROW = table_of(ConnectionRow).c


class Example(NamedTuple):
    """A connection of a cause, and when it failed last."""

    connection_id: ConnectionId
    failed_at: datetime
    flow: Flow


class Cause(NamedTuple):
    """Connections of one state that fail with one code. `code` is None where nothing fails.

    `since` is the earliest moment that a row knows: rows keep when failures began from the third one on.
    """

    state: LifecycleState
    code: ErrorCode | None
    connections: int
    since: datetime
    examples: tuple[Example, ...]  # the newest first


class Causes(NamedTuple):
    """`failing` are active connections whose last refresh failed, `states` all live ones by state and reason.

    `complete`: `states` counts every live connection, and not only the first `MOST_READ`.
    """

    failing: tuple[Cause, ...]
    states: tuple[Cause, ...]
    complete: bool

    def count(self, *states: LifecycleState) -> int:
        """How many live connections are in one of these states."""
        return sum(cause.connections for cause in self.states if cause.state in states)


async def causes_of(
    connection: DatabaseConnection, tenant: Tenant, integration_id: IntegrationId, most_read: int = MOST_READ
) -> Causes:
    """Count the integration's live connections by state and cause."""
    mine = columns_equal(ConnectionRow, tenant=tenant, integration_id=integration_id)
    failing = select(
        _ROW.id,
        _ROW.state,
        _ROW.flow,
        _ROW.last_failure.label("code"),
        _ROW.last_failed_at.label("failed_at"),
        func.coalesce(_ROW.failing_since, _ROW.last_failed_at).label("since"),
    ).where(mine, text(FAILING_CONDITION))
    waits = _ROW.state != LifecycleState.ACTIVE.value
    awaits = _ROW.state.in_([state.value for state in AWAITING_CONSENT])
    live = select(
        _ROW.id,
        _ROW.state,
        _ROW.flow,
        case((awaits, func.coalesce(refused_by(), _ROW.reason)), (waits, _ROW.reason), else_=null()).label(
            "code"
        ),
        _ROW.changed_at.label("failed_at"),
        _ROW.changed_at.label("since"),
    ).where(mine, text(LIVE_CONDITION))
    states = await _grouped(connection, live.limit(most_read + 1))
    complete = sum(cause.connections for cause in states) <= most_read
    return Causes(await _grouped(connection, failing), states, complete)


async def _grouped(connection: DatabaseConnection, rows: Select[*tuple[Any, ...]]) -> tuple[Cause, ...]:
    """The rows by state and code, each with its count and its newest examples: one statement."""
    counted = _counted(rows.subquery())
    examples = select(counted).where(counted.c.place <= EXAMPLES).order_by(counted.c.place, counted.c.id)
    groups: dict[tuple[str, str | None], list[dict[str, Any]]] = {}
    for row in await fetch_all(connection, examples):
        groups.setdefault((row["state"], row["code"]), []).append(row)
    return tuple(
        Cause(
            state=LifecycleState(state),
            code=None if code is None else _known(code),
            connections=first["connections"],
            since=first["first_at"],
            examples=tuple(Example(row["id"], row["failed_at"], Flow(row["flow"])) for row in (first, *rest)),
        )
        for (state, code), (first, *rest) in groups.items()
    )


def _counted(rows: FromClause) -> Subquery:
    """Beside each row how many its group has, since when, and which place it has in it, the newest first."""

    def over(value: ColumnElement[Any], *order: Any) -> ColumnElement[Any]:
        return value.over(partition_by=(rows.c.state, rows.c.code), order_by=order or None)

    return select(
        *(rows.c.id, rows.c.state, rows.c.flow, rows.c.code, rows.c.failed_at),
        over(func.count(literal(1))).label("connections"),
        over(func.min(rows.c.since)).label("first_at"),
        over(func.row_number(), rows.c.failed_at.desc(), rows.c.id).label("place"),
    ).subquery()


def _known(code: str) -> ErrorCode:
    """A code that a newer version wrote is shown as INTERNAL."""
    return ErrorCode(code) if code in set(ErrorCode) else ErrorCode.INTERNAL
