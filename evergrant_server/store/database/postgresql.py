"""PostgreSQL through asyncpg: every wait is bounded, and no statement prints its parameters."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from sqlalchemy import URL
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

_SETTINGS = {
    "application_name": "evergrant",
    "timezone": "UTC",
    "statement_timeout": "15000",  # ms
    "lock_timeout": "10000",
    "idle_in_transaction_session_timeout": "15000",
}


class PostgresDatabase:
    """One PostgreSQL database. Belongs to one event loop."""

    is_sqlite = False

    def __init__(self, url: URL) -> None:
        self._engine = create_async_engine(
            url,
            hide_parameters=True,
            pool_size=8,
            max_overflow=8,
            pool_timeout=10,
            connect_args={"timeout": 5, "command_timeout": 20, "server_settings": _SETTINGS},
        )
        self._readers = self._engine.execution_options(
            isolation_level="REPEATABLE READ", postgresql_readonly=True
        )
        self._autocommit = self._engine.execution_options(isolation_level="AUTOCOMMIT")

    @asynccontextmanager
    async def read(self) -> AsyncGenerator[AsyncConnection]:
        async with self._readers.connect() as connection:
            yield connection

    @asynccontextmanager
    async def write(self) -> AsyncGenerator[AsyncConnection]:
        async with self._engine.begin() as connection:
            yield connection

    @asynccontextmanager
    async def autocommit(self) -> AsyncGenerator[AsyncConnection]:
        async with self._autocommit.connect() as connection:
            yield connection

    async def close(self) -> None:
        await self._engine.dispose()
