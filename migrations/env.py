"""Runs migrations on the connection that `store.schema` hands over, or on EVERGRANT_DATABASE_URL."""

import asyncio
import os

from alembic import context
from sqlalchemy import Connection

from evergrant_server.store.engine import make_engine
from evergrant_server.store.tables import METADATA


def _run(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=METADATA, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()


async def _run_on(url: str) -> None:
    engine = make_engine(url)
    try:
        async with engine.begin() as connection:
            await connection.run_sync(_run)
    finally:
        await engine.dispose()


given = context.config.attributes.get("connection")
if given is not None:
    _run(given)
else:
    asyncio.run(_run_on(os.environ["EVERGRANT_DATABASE_URL"]))
