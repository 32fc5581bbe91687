"""Runs migrations on the connection that `store.database.schema` hands over, or on EVERGRANT_DATABASE_URL."""

import asyncio
import os

from alembic import context
from sqlalchemy import Connection

from evergrant_server.store.database.columns import METADATA
from evergrant_server.store.database.engine import open_database
from evergrant_server.store.database.schema import write_oldest_code


def _run(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=METADATA)
    with context.begin_transaction():
        context.run_migrations()
    write_oldest_code(connection)


async def _run_on(url: str) -> None:
    database = open_database(url)
    try:
        async with database.write() as connection:
            await connection.run_sync(_run)
    finally:
        await database.close()


connection = context.config.attributes.get("connection")
if connection is not None:
    _run(connection)
else:
    asyncio.run(_run_on(os.environ["EVERGRANT_DATABASE_URL"]))
