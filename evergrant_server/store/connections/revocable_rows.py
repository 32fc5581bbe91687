"""Rows of a connection that is to be revoked, as far as they can be read: nothing else stops a revocation.

What can't be read gives way to a default, in the row too, so that everything after it reads the row. The
tokens are sealed beside it, and where they are sent is the integration's: neither is taken from what is lost.
"""

from datetime import datetime
from typing import Any

from pydantic import ValidationError
from sqlalchemy import select, update

from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.grant import MAIN_SLOT, Grant
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId, Tenant
from evergrant_server.store.connections.tables import ConnectionGrantRow, ConnectionRow
from evergrant_server.store.database.columns import Row, table_of
from evergrant_server.store.database.rows import (
    Model,
    Repository,
    Values,
    column_values,
    columns_equal,
    fetch_first,
    find_one,
    read_model,
)


class RevocableRows(Repository):
    async def connection(self, tenant: Tenant, id: ConnectionId, now: datetime) -> Connection | None:
        """The connection, for its revocation alone: its names are not checked. Its grant can be read from
        then on, too."""
        key: Values = {"tenant": tenant, "id": id}
        try:
            row = await find_one(self._connection, ConnectionRow, **key)
            connection = None if row is None else read_model(Connection, ConnectionRow, row)
        except (Failure, ValueError) as error:  # ValueError: a column isn't of its type
            _require_unreadable(error)
            connection = await self._repaired_connection(key, now)
        if connection is not None:
            await self._repair_grant(connection, now)
        return connection

    async def _repaired_connection(self, key: Values, now: datetime) -> Connection | None:
        values = await self._readable_columns(ConnectionRow, key)
        if values is None:
            return None
        grant = {"tenant": key["tenant"], "connection_id": key["id"], "slot": MAIN_SLOT}
        granted = await self._readable_columns(ConnectionGrantRow, grant) or {}
        otherwise: Values = {
            **dict.fromkeys(("created_at", "changed_at", "consent_deadline"), now),
            "state": LifecycleState.ACTIVE,
            "generation": granted.get("generation", 0),
            "revision": 1,
        }
        connection = _with_defaults(Connection, values, otherwise)
        return await self._write(ConnectionRow, key, connection)

    async def _repair_grant(self, owner: Connection, now: datetime) -> None:
        key: Values = {"tenant": owner.tenant, "connection_id": owner.id, "slot": MAIN_SLOT}
        try:
            row = await find_one(self._connection, ConnectionGrantRow, **key)
            if row is not None:
                read_model(Grant, ConnectionGrantRow, {**row, "metadata": row["facts"]})
        except (Failure, ValueError) as error:
            _require_unreadable(error)
            values = await self._readable_columns(ConnectionGrantRow, key)
            assert values is not None
            otherwise: Values = {"generation": owner.generation, "scopes": (), "obtained_at": now}
            otherwise |= {"expires_at": None, "refreshable": True, "revision": 1}
            read = _with_defaults(Grant, {**values, "metadata": values.get("facts", {})}, otherwise)
            columns = column_values(read)
            facts = {"facts": columns.pop("metadata"), **columns}
            mine = columns_equal(ConnectionGrantRow, **key)
            await self._run(update(ConnectionGrantRow).where(mine).values(facts))

    async def _readable_columns(self, table: type[Row], key: Values) -> Values | None:
        """The row's columns, without those that aren't of their type; None: there is no row."""
        mine, values = columns_equal(table, **key), Values()
        for column in table_of(table).c:
            try:
                row = await fetch_first(self._connection, select(column).where(mine))
            except ValueError:
                continue
            if row is None:
                return None
            values |= row
        return values

    async def _write(self, table: type[Row], key: Values, model: Model) -> Model:
        values = {name: value for name, value in column_values(model).items() if name not in key}
        await self._run(update(table).where(columns_equal(table, **key)).values(values))
        return model


def _require_unreadable(error: Exception) -> None:
    """Raise a Failure that says something else than that a row can't be read."""
    if isinstance(error, Failure) and error.code is not ErrorCode.INTERNAL:
        raise error


def _with_defaults(model: type[Model], values: Values, otherwise: Values) -> Model:
    """The values, where they are valid; else those of `otherwise`, or the default. Raises ValidationError
    where there is neither: no name of the row is made up."""
    while True:
        try:
            return model.model_validate(values)
        except ValidationError as error:
            broken = _fields_of(error)
            kept = {name: value for name, value in values.items() if name not in broken}
            repaired = kept | {name: otherwise[name] for name in broken & otherwise.keys()}
            if repaired == values:
                raise
            values = repaired


def _fields_of(error: ValidationError) -> set[str]:
    errors: list[Any] = error.errors(include_url=False, include_context=False, include_input=False)
    return {str(problem["loc"][0]) for problem in errors if problem["loc"]}
