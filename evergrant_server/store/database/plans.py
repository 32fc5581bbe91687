"""Statements of SQLite that are compiled once: SQLAlchemy writes them, `sqlite3` runs them.

For the statements that repositories build once and run with parameters. Looking a compiled statement up,
and making a result of its rows, takes SQLAlchemy several times as long as SQLite's own work. Values go in and
come out by the same types, so nothing is stored otherwise.
"""

import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Delete, Executable, Insert, Select, Update
from sqlalchemy.exc import StatementError

_MOST = 1000  # statements; one that is built anew each time would fill the memory
_Processor = Callable[[Any], Any] | None


@dataclass(frozen=True, slots=True)
class Plan:
    """The text of a statement, and how its values go in and come out."""

    sql: str
    parameters: tuple[tuple[str, _Processor], ...]
    constants: Mapping[str, Any]
    columns: tuple[tuple[str, _Processor], ...]

    def execute(self, driver: sqlite3.Connection, values: Mapping[str, Any]) -> sqlite3.Cursor:
        """Raises SQLAlchemy's StatementError for a value that its type refuses, and sqlite3's errors."""
        constants = self.constants
        bound: list[Any] = []
        try:
            for name, process in self.parameters:
                value = values[name] if name in values else constants[name]
                bound.append(value if process is None else process(value))
        except (TypeError, ValueError) as error:
            why = "a value can't be bound"
            raise StatementError(why, self.sql, None, error, hide_parameters=True) from None
        return driver.execute(self.sql, bound)

    def rows(self, cursor: sqlite3.Cursor) -> list[dict[str, Any]]:
        return [
            {
                name: value if process is None else process(value)
                for (name, process), value in zip(self.columns, row, strict=True)
            }
            for row in cursor
        ]


_plans: dict[tuple[Executable, tuple[str, ...]], Plan | None] = {}


def plan_of(connection: Connection, statement: Executable, values: Mapping[str, Any]) -> Plan | None:
    """The plan of a statement with parameters of these names; None: SQLAlchemy has to run it."""
    key = statement, tuple(values)
    if key not in _plans:
        if len(_plans) >= _MOST:
            return None
        _plans[key] = _compiled(connection, statement, key[1])
    return _plans[key]


def _compiled(connection: Connection, statement: Any, names: tuple[str, ...]) -> Plan | None:
    if not isinstance(statement, Select | Insert | Update | Delete):
        return None  # the columns of a text are known when it has run
    compiled: Any = statement.compile(dialect=connection.dialect, column_keys=list(names))
    made_each_time = (compiled.post_compile_params, compiled.literal_execute_params, compiled.insert_prefetch)
    if any(made_each_time) or compiled.update_prefetch:
        return None
    dialect = connection.dialect
    columns = statement.selected_columns if isinstance(statement, Select) else ()
    types = {name: compiled.binds[name].type.dialect_impl(dialect) for name in compiled.positiontup}
    return Plan(
        compiled.string,
        tuple((name, types[name].bind_processor(dialect)) for name in compiled.positiontup),
        compiled.params,
        tuple(
            (column.name, column.type.dialect_impl(dialect).result_processor(dialect, None))
            for column in columns
        ),
    )
