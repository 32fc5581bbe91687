"""A database that is in use is brought to head: every row of before is still there, and still reads."""

from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.flow import Flow, TokenTarget
from evergrant_server.core.single_use.attempt import Attempt, AttemptKind
from evergrant_server.store import schema
from evergrant_server.store.engine import make_engine
from evergrant_server.store.tables import AttemptRow, ConnectionRow

NOW = datetime(2026, 1, 1, tzinfo=UTC)
WORDS = {
    "state": LifecycleState.ACTIVE.value,
    "kind": AttemptKind.REFRESH.value,
    "flow": Flow.AUTHORIZATION_CODE.value,
}


def filled(column: sa.Column[Any]) -> Any:
    """Something that this column takes."""
    kind = column.type
    match kind:
        case sa.Boolean():
            return True
        case sa.Integer() | sa.Float():
            return 1
        case sa.DateTime():
            return NOW
        case sa.LargeBinary():
            return b"x"
        case sa.JSON():
            return {} if column.name == "target" else []
        case _:
            return WORDS.get(column.name, "x")


def migrate(connection: sa.Connection, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(schema.MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def use(connection: sa.Connection) -> list[str]:
    """A row in every table, with what must not be null."""
    known = sa.MetaData()
    known.reflect(connection)
    tables = [table for table in known.sorted_tables if table.name != "alembic_version"]
    for table in tables:
        row = {column.name: filled(column) for column in table.columns if not column.nullable}
        connection.execute(table.insert().values(row))
    return [table.name for table in tables]


def rows(connection: sa.Connection, table: str) -> list[dict[str, Any]]:
    return [dict(row) for row in connection.execute(sa.text(f'SELECT * FROM "{table}"')).mappings()]


@pytest.mark.parametrize("since", ["0001", "0002", "0004", "0008"])
async def test_a_database_in_use_keeps_its_rows(empty_url: str, since: str):
    engine = make_engine(empty_url)
    try:
        async with engine.begin() as database:
            await database.run_sync(migrate, since)
        async with engine.begin() as database:
            tables = await database.run_sync(use)
        await schema.upgrade(empty_url)
        async with engine.begin() as database:
            kept = {table: len(await database.run_sync(rows, table)) for table in tables}
            found = (await database.execute(sa.select(ConnectionRow.__table__))).mappings().one()  # pyright: ignore[reportAttributeAccessIssue]  # SQLModel adds it
            tried = (await database.execute(sa.select(AttemptRow.__table__))).mappings().one()  # pyright: ignore[reportAttributeAccessIssue]  # SQLModel adds it
    finally:
        await engine.dispose()
    assert kept == dict.fromkeys(tables, 1)
    connection, attempt = Connection.model_validate(dict(found)), Attempt.model_validate(dict(tried))
    if since < "0008":
        assert (connection.flow, connection.target) == (Flow.AUTHORIZATION_CODE, TokenTarget())
    if since < "0005":
        assert (attempt.sends, attempt.first_opened_at) == (1, attempt.opened_at)
