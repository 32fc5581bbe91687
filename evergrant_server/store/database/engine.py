"""Opens the database that a URL names: SQLite or PostgreSQL, with the same methods.

`read` is one snapshot, `write` one change that is committed on a clean exit and rolled back on an
exception, `autocommit` runs single statements without a transaction around them. A database
belongs to one event loop.
"""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import ContextVar
from enum import StrEnum
from pathlib import Path
from typing import Any, cast

from sqlalchemy import URL, QueuePool, event, make_url, text
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import ArgumentError, DisconnectionError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from evergrant_server.bounded_concurrency import FairTurns
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.store.database.errors import DRIVER_ERRORS
from evergrant_server.store.database.hosts import DatabaseHost, DatabaseServers, hosts_of, url_of
from evergrant_server.store.database.sqlite import SqliteConnection, SqliteDatabase

_POSTGRES_SETTINGS = {
    "application_name": "evergrant",
    "timezone": "UTC",
    "statement_timeout": "15000",  # ms
    "lock_timeout": "10000",
    "idle_in_transaction_session_timeout": "15000",
    "default_transaction_isolation": "read committed",  # of a function that is called by itself, too
}

# of a PostgreSQL URL, as asyncpg's `connect` names them; the last is SQLAlchemy's
_URL_PARAMETERS = {
    *("host", "port", "user", "password", "database", "passfile", "service", "servicefile"),
    *("ssl", "direct_tls", "target_session_attrs", "krbsrvname", "gsslib", "statement_cache_size"),
    "prepared_statement_cache_size",
}


class Pool(StrEnum):
    """Work of one process that never waits for the connections of other work (PostgreSQL)."""

    REQUESTS = "requests"  # commands, lists and pages; a worker's activities
    LEASES = "leases"  # on the way to a lease: who calls, and the connection's row
    LEDGER = "ledger"  # the commits of leases, one after another
    POLLER = "poller"  # the positions of connections whose refresh is waited for, one query after another
    BACKGROUND = "background"  # the relay of the outbox
    BARRIER = "barrier"  # waits for the other region's standby, where there is one


# open connections, and those beyond them under load (docs/guide/operations.md)
_POOL_SIZES = {
    Pool.REQUESTS: (8, 4),
    Pool.LEASES: (4, 0),
    Pool.LEDGER: (1, 0),
    Pool.POLLER: (1, 0),
    Pool.BACKGROUND: (1, 1),
    Pool.BARRIER: (2, 0),
}
MOST_OF_BARRIERS = sum(_POOL_SIZES[Pool.BARRIER])  # of one process, where there is another region
MOST_CONNECTIONS = sum(map(sum, _POOL_SIZES.values())) - MOST_OF_BARRIERS  # of one process
# A commit of these waits for the standby; all others do what the server's own setting says.
_WAITS = {"synchronous_commit": "on"}
_SEATS = text(
    "SELECT least("
    "current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int,"
    " nullif(d.datconnlimit, -1), nullif(r.rolconnlimit, -1)) FROM pg_database d, pg_roles r"
    " WHERE d.datname = current_database() AND r.rolname = current_user"
)
_POOL_TIMEOUT_S = 10.0
_COMMAND_TIMEOUT_S = 20.0
_BROKEN = (*DRIVER_ERRORS, OSError, TimeoutError)
_USELESS = frozenset({"25006", "57P01", "57P02", "57P03"})  # read-only; being shut down, crashed, starting
_requester: ContextVar[tuple[str, str] | None] = ContextVar("requester", default=None)


def share_connections(tenant: str, app: str) -> None:
    """Have the rest of this request take its connections in turn with those of other tenants and apps."""
    _requester.set((tenant, app))


class PostgresDatabase:
    """One PostgreSQL database: every wait is bounded, and no statement prints its parameters.

    This one has the connections of one pool; `in_pool` gives the one with those of another.
    """

    is_sqlite = False

    def __init__(
        self,
        url: URL,
        *,
        limits: bool = True,
        pool: Pool = Pool.REQUESTS,
        servers: DatabaseServers | None = None,
    ) -> None:
        """`servers`: those of all pools."""
        self._url, self._limits = url, limits
        self.servers = servers or DatabaseServers(hosts_of(url))
        self._pools: dict[Pool, PostgresDatabase] = {pool: self}
        self._turns = FairTurns(sum(_POOL_SIZES[pool]))
        unlimited = {"statement_timeout": "0", "idle_in_transaction_session_timeout": "0"}
        settings = _POSTGRES_SETTINGS if limits else _POSTGRES_SETTINGS | unlimited
        settings = settings | _WAITS if pool is Pool.BARRIER else settings
        arguments: dict[str, Any] = {
            "timeout": 5,
            "command_timeout": _COMMAND_TIMEOUT_S if limits else None,
            "server_settings": settings,
        }
        if self.servers.hosts:
            url = url_of(url, self.servers.hosts[0])
            arguments["async_creator_fn"] = self.servers.connect
        self._engine = create_async_engine(
            url,
            hide_parameters=True,
            pool_size=_POOL_SIZES[pool][0],
            max_overflow=_POOL_SIZES[pool][1],
            pool_timeout=_POOL_TIMEOUT_S,
            connect_args=arguments,
        )
        event.listen(self._engine.sync_engine, "checkout", _replace_if_closed)
        event.listen(self._engine.sync_engine, "handle_error", _end_if_useless)
        self._readers = self._engine.execution_options(
            isolation_level="REPEATABLE READ", postgresql_readonly=True
        )
        self._autocommit = self._engine.execution_options(isolation_level="AUTOCOMMIT")

    @asynccontextmanager
    async def read(self) -> AsyncGenerator[AsyncConnection]:
        async with self._turn(), self._readers.connect() as connection:
            yield connection

    @asynccontextmanager
    async def write(self) -> AsyncGenerator[AsyncConnection]:
        async with self._turn(), self._engine.begin() as connection:
            try:
                yield connection
            except _BROKEN:  # from `asyncpg_driver`, of whose end the pool learns nothing
                await connection.invalidate()
                raise

    @asynccontextmanager
    async def autocommit(self) -> AsyncGenerator[AsyncConnection]:
        async with self._autocommit.connect() as connection:
            yield connection

    @asynccontextmanager
    async def _turn(self) -> AsyncGenerator[None]:
        """What a request reads or writes needs a turn of its tenant and app; a worker's work needs none."""
        requester = _requester.get() if self._pools.get(Pool.REQUESTS) is self else None
        async with AsyncExitStack() as held:
            if requester is not None:
                try:
                    await held.enter_async_context(self._turns.turn(*requester, within_s=_POOL_TIMEOUT_S))
                except TimeoutError:
                    raise PoolTimeout from None
            yield

    async def commits_seen(self) -> None:
        """None: PostgreSQL has no such number as SQLite's; its readers hold up no writer."""

    async def empty_log(self) -> bool:
        """True: PostgreSQL keeps and recycles its log as its own settings say."""
        return True

    def in_pool(self, pool: Pool) -> "PostgresDatabase":
        """The same database through the connections of `pool`, which are opened when they are needed."""
        if pool not in self._pools:
            database = PostgresDatabase(self._url, limits=self._limits, pool=pool, servers=self.servers)
            self._pools[pool] = database
            self._pools[pool]._pools = self._pools
        return self._pools[pool]

    def kept(self) -> "KeptPostgres":
        return KeptPostgres(self._engine)

    def connections_in_use(self) -> dict[Pool, int]:
        """Of every pool: of this database and of its siblings."""
        return {
            pool: cast(QueuePool, database._engine.pool).checkedout()
            for pool, database in self._pools.items()
        }

    async def close(self) -> None:
        """Close the connections of every pool."""
        await self.servers.close()
        for database in self._pools.values():
            await database._engine.dispose()


class KeptPostgres:
    """The connection of one task, the lease ledger's, kept between its transactions."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._connection: AsyncConnection | None = None
        self._driver: Any = None

    async def driver(self) -> Any:
        """asyncpg's own connection, outside a transaction; another one once it was cut."""
        if self._connection is not None and self._driver.is_closed():
            await self.drop()
        if self._connection is None:
            self._connection = await self._engine.connect()
            self._driver = await asyncpg_driver(self._connection)
        return self._driver

    async def drop(self) -> None:
        """End the session: what it was doing isn't known. The next `driver` has another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.invalidate()
            await connection.close()

    async def close(self) -> None:
        """Give the connection back to its pool."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()


def _replace_if_closed(_connection: Any, record: Any, _proxy: Any) -> None:
    """Of a pool's connection that the server has ended, or a fail-over: its work gets another one."""
    if record.driver_connection.is_closed():
        raise DisconnectionError


def _end_if_useless(context: ExceptionContext) -> None:
    """End the connection, and those of its pool, to a server that takes no writes (any more)."""
    if getattr(context.original_exception, "sqlstate", None) in _USELESS:
        context.is_disconnect = True


Database = SqliteDatabase | PostgresDatabase
DatabaseConnection = SqliteConnection | AsyncConnection  # inside one transaction


async def seats(connection: DatabaseConnection) -> int:
    """How many connections PostgreSQL lets in for this role and database, at most."""
    return int((await connection.execute(_SEATS)).scalar_one())


def open_database(url: str, *, limits: bool = True) -> Database:
    """The database behind the URL; it connects when it is first used. Raises Failure STORE_UNAVAILABLE.

    Without `limits` a statement may take as long as it does: building an index over a big table.
    """
    file = sqlite_path(url)
    return PostgresDatabase(_parse_url(url), limits=limits) if file is None else SqliteDatabase(file)


def servers_of(url: str) -> tuple[URL, tuple[DatabaseHost, ...]]:
    """The URL and its PostgreSQL servers; none unless it names several. Raises Failure STORE_UNAVAILABLE."""
    parsed = _parse_url(url)
    return parsed, () if parsed.drivername == "sqlite" else hosts_of(parsed)


def sqlite_path(url: str) -> Path | None:
    """The database file of a SQLite URL; None for PostgreSQL. Raises Failure STORE_UNAVAILABLE."""
    parsed = _parse_url(url)
    return Path(parsed.database or "") if parsed.drivername == "sqlite" else None


async def asyncpg_driver(connection: DatabaseConnection) -> Any:
    """asyncpg's own connection, with its prepared statements cached by their text.

    SQLAlchemy begins only with its own first statement: use `transaction()` of what this returns.
    """
    if not isinstance(connection, AsyncConnection):
        raise TypeError("this connection is not PostgreSQL's")
    return (await connection.get_raw_connection()).driver_connection


def _parse_url(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise _unusable("it is not a database URL") from None
    match parsed.drivername:
        case "sqlite":
            if not parsed.database or parsed.database == ":memory:":
                raise _unusable("SQLite needs a file")
            return parsed
        case "postgresql" | "postgresql+asyncpg":
            return _for_asyncpg(parsed)
        case other:
            raise _unusable(f"{other} is not sqlite or postgresql")


def _for_asyncpg(url: URL) -> URL:
    """The URL in asyncpg's words: libpq's `sslmode` is its `ssl`. Raises Failure for a parameter it lacks."""
    query = {"ssl" if name == "sslmode" else name: value for name, value in url.query.items()}
    unknown = sorted(set(query) - _URL_PARAMETERS)
    if unknown:
        raise _unusable(f"its parameter {unknown[0]} isn't known here: leave it out")
    url = url.set(drivername="postgresql+asyncpg", query=query)
    try:
        several = hosts_of(url)
    except ValueError as error:
        raise _unusable(str(error)) from None
    if several and query.get("target_session_attrs", "read-write") not in ("read-write", "primary"):
        raise _unusable("with several servers, target_session_attrs is read-write: leave it out")
    return url


def _unusable(why: str) -> Failure:
    return Failure(ErrorCode.STORE_UNAVAILABLE, f"EVERGRANT_DATABASE_URL can't be used: {why}.")
