"""The store itself: opened once per process, handing out transactions."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from evergrant_server.core.clock import Clock
from evergrant_server.crypto import KeyPurpose, KeyRing
from evergrant_server.store import schema
from evergrant_server.store.engine import BEGIN_OPTION, make_engine
from evergrant_server.store.faults import translate_errors
from evergrant_server.store.sealing import UnwrappedKeys
from evergrant_server.store.transactions import Transaction

_CLOSE_S = 10.0


class Store:
    """One database and the keys to its columns. Belongs to one event loop."""

    def __init__(self, engine: AsyncEngine, ring: KeyRing, clock: Clock) -> None:
        """Use `open`: it checks that the database can be reached and has our schema."""
        self._engine = engine
        self._clock = clock
        self.ring = ring
        self.is_sqlite = engine.dialect.name == "sqlite"
        # SQLite has one writer. Waiting here is fair and doesn't poll, as its busy handler does.
        self._writing = asyncio.Lock()
        if self.is_sqlite:
            self._readers = engine
            self._writers = engine.execution_options(**{BEGIN_OPTION: "BEGIN IMMEDIATE"})
            self._single = engine.execution_options(**{BEGIN_OPTION: ""})
        else:
            self._readers = engine.execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            )
            self._writers = engine
            self._single = engine.execution_options(isolation_level="AUTOCOMMIT")

    @classmethod
    async def open(cls, url: str, ring: KeyRing, clock: Clock, *, expect_schema: bool = True) -> "Store":
        """Open the database behind `url` with the keys of `ring`.

        Raises Failure STORE_UNAVAILABLE when it can't be reached, and, unless
        `expect_schema` is False, SCHEMA_MISMATCH when its version isn't this code's.
        """
        if expect_schema:
            schema.require_existing_file(url)
        engine = make_engine(url)
        try:
            with translate_errors():
                async with engine.connect() as connection:
                    if expect_schema:
                        await connection.run_sync(schema.require_expected_version)
        except BaseException:
            await engine.dispose()
            raise
        return cls(engine, ring, clock)

    async def close(self) -> None:
        """Close every connection, but wait for no silent database. Transactions must have ended."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_S):
                await self._engine.dispose()

    @asynccontextmanager
    async def read(self) -> AsyncGenerator[Transaction]:
        """One snapshot: every query inside sees the same moment."""
        with translate_errors():
            async with self._readers.connect() as connection:
                yield self._tx(connection)

    @asynccontextmanager
    async def write(self, keys: UnwrappedKeys | None = None) -> AsyncGenerator[Transaction]:
        """One change: committed on a clean exit, rolled back on an exception.

        With `keys`, what they seal or open needs no key service. Nothing but database calls
        may be awaited inside. Raises Failure STORE_UNAVAILABLE
        when it can't begin or commit, STORE_CONFLICT when another change came first.
        """
        async with AsyncExitStack() as stack:
            if self.is_sqlite:
                await stack.enter_async_context(self._writing)
            stack.enter_context(translate_errors())
            connection = await stack.enter_async_context(self._writers.begin())
            yield self._tx(connection, keys)

    @asynccontextmanager
    async def autocommit(self) -> AsyncGenerator[AsyncConnection]:
        """A connection for one plain query, without a transaction around it: the lease path's."""
        with translate_errors():
            async with self._single.connect() as connection:
                yield connection

    async def unwrap_keys(
        self, tenant: str, connection_id: str, purposes: tuple[KeyPurpose, ...]
    ) -> UnwrappedKeys:
        """Unwrap the keys that a connection's next answer will need, making those it lacks.

        Raises Failure KEY_UNAVAILABLE, SEAL_BROKEN, STORE_UNAVAILABLE.
        """
        async with self.read() as tx:
            found = await tx.sealer.find_current_keys(tenant, connection_id, purposes)
        if found is not None:
            return found
        async with self.write() as tx:
            return await tx.sealer.get_or_create_keys(tenant, connection_id, purposes)

    def _tx(self, connection: AsyncConnection, keys: UnwrappedKeys | None = None) -> Transaction:
        return Transaction(connection, self.ring, self._clock.now(), keys)
