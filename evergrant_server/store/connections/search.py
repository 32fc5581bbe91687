"""Connections in the order of urgency, or found by the beginning of a subject, a label or an id.

A page is read from stretches of indexes, one behind another: no page walks the rows before it. A place names
a stretch and the last row there.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Select,
    TextClause,
    and_,
    case,
    func,
    literal,
    or_,
    select,
    text,
    tuple_,
    union_all,
)

from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.errors import Failure
from evergrant_server.core.ids import ConnectionId, Tenant, new_id
from evergrant_server.store.connections.connections import UnreadableRow, expires_before
from evergrant_server.store.connections.tables import (
    FINAL_STATES,
    LABELLED_CONDITION,
    UNWELL_CONDITION,
    WELL_CONDITION,
    ConnectionRow,
)
from evergrant_server.store.database.columns import table_of
from evergrant_server.store.database.engine import DatabaseConnection
from evergrant_server.store.database.rows import Values, fetch_all, read_model

MOST_COUNTED = 100_000  # rows of a state: a count beyond it says that there are more
_ID_LENGTH = len(new_id("con"))
_AFTER_ALL = "\U0010ffff"  # sorts behind every character that a name may have

_ROW = table_of(ConnectionRow).c
_STATES = (  # by urgency
    *(LifecycleState.NEEDS_REAUTH, LifecycleState.ACTIVE, LifecycleState.PENDING_CONSENT),
    *(LifecycleState.REVOKING, LifecycleState.REVOKED, LifecycleState.CONSENT_EXPIRED, LifecycleState.DENIED),
)
_Condition = ColumnElement[bool] | TextClause


class ListOrder(StrEnum):
    """What a list of connections is sorted by."""

    ID = "id"
    URGENCY = "urgency"  # those that need somebody first; in each state by integration and id


@dataclass(frozen=True)
class ConnectionFilter:
    """What narrows a list; None narrows nothing. `search`: how the subject, the label or the id begins.
    `failing`: active ones whose last refresh failed, or whose account is to be chosen. `live`: that haven't
    ended."""

    integration: str | None = None
    provider: str | None = None
    subject: str | None = None
    state: LifecycleState | None = None
    expiring_before: datetime | None = None
    search: str | None = None
    failing: bool = False
    live: bool = False


class Placed(NamedTuple):
    """A row of the list, and the place behind it."""

    place: str
    row: Values


class _Stretch(NamedTuple):
    """Rows of one index, in its order: by `names`."""

    condition: _Condition
    names: tuple[str, ...]
    is_bytewise: bool = False


class StateCounts(NamedTuple):
    """How many connections are in each state. `failing` are among the active ones. `complete`: no count has
    stopped at the most that is counted."""

    states: dict[LifecycleState, int]
    failing: int
    complete: bool


class ConnectionSearch:
    """The lists of one tenant, in one transaction."""

    def __init__(self, connection: DatabaseConnection, tenant: Tenant) -> None:
        self._connection, self._tenant = connection, tenant
        self._is_sqlite = connection.dialect.name == "sqlite"

    async def page(
        self,
        wanted: ConnectionFilter,
        order: ListOrder,
        after: str | None,
        limit: int,
        names: Sequence[str] = (),
    ) -> list[Placed]:
        """The next rows behind the place `after`; None: the first ones. Fewer than `limit`: there are no
        more. `names` are those of columns, with those of the order; without
        them each row is whole."""
        stretches = self._stretches(wanted, order)
        columns = [_ROW[name] for name in names] or _ROW
        number, key = _parsed(after)
        placed: list[Placed] = []
        while number < len(stretches):
            stretch = stretches[number]
            query = select(*columns).where(self._mine(), stretch.condition, *_narrowing(wanted))
            if key:
                query = query.where(self._behind(stretch, key))
            left = limit - len(placed)
            rows = await fetch_all(self._connection, self._sorted(query, stretch).limit(left))
            placed += [Placed(_place(number, stretch, row), row) for row in rows]
            if len(rows) == left:
                break
            number, key = number + 1, ()
        return placed

    async def counts(self, wanted: ConnectionFilter, most: int = MOST_COUNTED) -> StateCounts:
        """How many connections of the filter are in each state, apart from its own state: one statement."""
        is_searched = (wanted.search, wanted.provider, wanted.subject) != (None, None, None)
        counted = self._found_states(wanted, most) if is_searched else self._indexed_states(wanted, most)
        rows = await fetch_all(self._connection, counted)
        numbers = {row["state"]: int(row["number"]) for row in rows}
        failing = numbers.pop("failing", 0)
        states = {LifecycleState(state): number for state, number in numbers.items() if number}
        most_found = sum(states.values()) if is_searched else max(states.values(), default=0)
        return StateCounts(states, failing, most_found <= most)

    def _indexed_states(self, wanted: ConnectionFilter, most: int) -> Any:
        """By the index of states, each up to one more than the most."""
        conditions: list[tuple[str, _Condition]] = [
            (state.value, _ROW.state == state.value) for state in LifecycleState
        ]
        conditions.append(("failing", text(UNWELL_CONDITION)))
        parts: list[Any] = []
        for name, condition in conditions:
            some = select(_ROW.id).where(self._mine(), condition, *_integration(wanted)).limit(most + 1)
            counted = select(func.count()).select_from(some.subquery()).scalar_subquery()
            parts.append(select(literal(name).label("state"), counted.label("number")))
        return union_all(*parts)

    def _found_states(self, wanted: ConnectionFilter, most: int) -> Any:
        """Of what a search finds, by its own indexes."""
        unwell = case((text(UNWELL_CONDITION), 1), else_=0)
        narrowed = ConnectionFilter(wanted.integration, wanted.provider, wanted.subject, search=wanted.search)
        parts = [
            select(
                select(_ROW.state, unwell.label("unwell"))
                .where(self._mine(), stretch.condition, *_narrowing(narrowed))
                .limit(most + 1)
                .subquery()
            )
            for stretch in self._stretches(narrowed, ListOrder.ID)
        ]
        rows = union_all(*parts).subquery()
        by_state = select(rows.c.state.label("state"), func.count().label("number")).group_by(rows.c.state)
        failing = select(literal("failing"), func.count()).where(rows.c.unwell == 1)
        return union_all(by_state, failing)

    def _mine(self) -> ColumnElement[bool]:
        return _ROW.tenant == self._tenant

    def _stretches(self, wanted: ConnectionFilter, order: ListOrder) -> list[_Stretch]:
        if wanted.search is not None:
            return self._searched(wanted.search)
        if order is ListOrder.ID:
            return [_Stretch(self._mine(), ("id",))]
        return list(_by_urgency(wanted))

    def _searched(self, beginning: str) -> list[_Stretch]:
        """By the subject, then by the label; an id's beginning leads to ids alone."""
        if beginning.startswith("con_"):
            last = beginning.ljust(_ID_LENGTH, "z")
            return [_Stretch(and_(_ROW.id >= beginning, _ROW.id <= last), ("id",))]
        subject, label = self._begins("subject", beginning), self._begins("label", beginning)
        labelled = and_(text(LABELLED_CONDITION), label, ~subject)
        return [
            _Stretch(subject, ("subject", "id"), is_bytewise=True),
            _Stretch(labelled, ("label", "id"), is_bytewise=True),
        ]

    def _begins(self, name: str, beginning: str) -> ColumnElement[bool]:
        at_least, below = self._bytewise(name, ">=")(beginning), self._bytewise(name, "<")
        return and_(at_least, below(beginning + _AFTER_ALL))

    def _bytewise(self, name: str, sign: str) -> Callable[[str], ColumnElement[bool]]:
        """A comparison by bytes: SQLite's own; of PostgreSQL the one that `text_pattern_ops` indexes."""
        operator = sign if self._is_sqlite else f"~{sign}~"
        return lambda value: _ROW[name].bool_op(operator)(value)

    def _behind(self, stretch: _Stretch, key: tuple[str, ...]) -> ColumnElement[bool]:
        if not stretch.is_bytewise:
            return tuple_(*(_ROW[name] for name in stretch.names)) > tuple_(*key)
        name, (value, id) = stretch.names[0], key
        here = and_(_ROW[name] == value, _ROW.id > id)
        return and_(self._bytewise(name, ">=")(value), or_(self._bytewise(name, ">")(value), here))

    def _sorted(self, query: Select[Any], stretch: _Stretch) -> Select[Any]:
        if not stretch.is_bytewise or self._is_sqlite:
            return query.order_by(*(_ROW[name] for name in stretch.names))
        return query.order_by(text(f"connection.{stretch.names[0]} USING ~<~"), _ROW.id)


def connection_or_unreadable(row: Values) -> Connection | UnreadableRow:
    """The row as a connection; of one that can't be read its names and why."""
    try:
        return read_model(Connection, ConnectionRow, row)
    except Failure as failure:
        about = row["id"], row["integration"], row["provider"], row["subject"]
        return UnreadableRow(*about, failure.detail)


def _by_urgency(wanted: ConnectionFilter) -> Iterator[_Stretch]:
    names = ("integration", "id")
    for state in _STATES:
        if wanted.state not in (None, state) or (wanted.live and state.value in FINAL_STATES):
            continue
        if wanted.failing and state is not LifecycleState.ACTIVE:
            continue
        if state is not LifecycleState.ACTIVE:
            yield _Stretch(_ROW.state == state.value, names)
            continue
        yield _Stretch(text(UNWELL_CONDITION), names)
        if not wanted.failing:
            yield _Stretch(text(WELL_CONDITION), names)


def _integration(wanted: ConnectionFilter) -> list[ColumnElement[bool]]:
    return [] if wanted.integration is None else [_ROW.integration == wanted.integration]


def _narrowing(wanted: ConnectionFilter) -> Iterator[_Condition]:
    yield from _integration(wanted)
    if wanted.provider is not None:
        yield _ROW.provider == wanted.provider
    if wanted.subject is not None:
        yield _ROW.subject == wanted.subject
    if wanted.state is not None:
        yield _ROW.state == wanted.state.value
    if wanted.failing:
        yield text(UNWELL_CONDITION)
    if wanted.live:
        yield _ROW.state.not_in(FINAL_STATES)
    if wanted.expiring_before is not None:
        yield expires_before(wanted.expiring_before)


def _place(number: int, stretch: _Stretch, row: Values) -> str:
    """Behind this row; of a list by id alone it is the id, as it was before there were stretches."""
    if number == 0 and stretch.names == ("id",):
        return row["id"]
    return json.dumps([number, *(row[name] for name in stretch.names)])


def _parsed(place: str | None) -> tuple[int, tuple[str, ...]]:
    """The number of a stretch and the key of the last row there."""
    if place is None:
        return 0, ()
    if not place.startswith("["):
        return 0, (ConnectionId(place),)
    number, *key = json.loads(place)
    return number, tuple(key)
