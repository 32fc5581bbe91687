"""Processes of the installation: which root keys each holds and seals with, and which schema its code is for.

Each writes its row every few seconds. By the database's clock where there is one, so that no host's clock
decides who is alive. The rows let a rotation wait; they let no process seal: the transaction that seals looks
for itself whether its root is the current one.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple

from sqlalchemy import Connection, delete, func, inspect, select, update

from evergrant_server.core.ids import Tenant
from evergrant_server.store.database import columns
from evergrant_server.store.database.columns import table_of
from evergrant_server.store.database.engine import DatabaseConnection, open_database
from evergrant_server.store.database.errors import translate_errors
from evergrant_server.store.database.rows import Values, fetch_all, insert

HEARTBEAT = timedelta(seconds=10)
LIVE_FOR = HEARTBEAT * 3
# A process that was stopped may go on; after this long, its own limits end what it had begun.
MAY_COME_BACK = timedelta(minutes=10)
_KEPT = timedelta(days=1)
SAYS_NOTHING = "0018"  # the newest schema whose code doesn't say which one it is written for
_INSTALLATION = Tenant("")


class ProcessRow(columns.IdTable, table=True):
    role: str
    host: str
    version: str
    schema_version: str | None = None  # that its code is written for; None: code of before 0019
    roots: dict[str, list[str]] = columns.json()  # that it holds, by purpose
    seals_with: dict[str, str] = columns.json()  # the current one of each purpose, as it knows it
    started_at: datetime = columns.timestamp()
    seen_at: datetime = columns.timestamp()


class ProcessState(StrEnum):
    LIVE = "live"
    SILENT = "silent"  # it may be stopped, or cut off, and come back
    GONE = "gone"


class Process(NamedTuple):
    """A process as its row says, and how long ago it was written."""

    id: str
    role: str
    host: str
    version: str
    schema_version: str | None
    roots: dict[str, list[str]]
    seals_with: dict[str, str]
    started_at: datetime
    seen_at: datetime
    silent_for: timedelta

    @property
    def state(self) -> ProcessState:
        if self.silent_for <= LIVE_FOR:
            return ProcessState.LIVE
        return ProcessState.SILENT if self.silent_for <= MAY_COME_BACK else ProcessState.GONE


_P = table_of(ProcessRow).c


class Processes:
    """Within one transaction."""

    def __init__(self, connection: DatabaseConnection, now: datetime) -> None:
        self._connection, self._now = connection, now

    async def beat(
        self,
        id: str,
        names: Mapping[str, str],
        roots: Mapping[str, list[str]],
        seals_with: Mapping[str, str],
        started_at: datetime,
    ) -> None:
        """Write that this process lives, and what it holds. `names` are its role, host and versions."""
        now = await self._database_time()
        held: Values = {"roots": dict(roots), "seals_with": dict(seals_with), "seen_at": now}
        mine = update(ProcessRow).where(_P.tenant == _INSTALLATION, _P.id == id)
        changed = await self._connection.execute(mine.values({**held, "revision": _P.revision + 1}))
        if changed.rowcount == 0:
            key: Values = {"tenant": _INSTALLATION, "id": id, "revision": 1, "started_at": started_at}
            await insert(self._connection, ProcessRow, {**key, **names, **held})

    async def end(self, id: str) -> None:
        """Write that this process has ended. A gateway may delete nothing: `prune` does."""
        long_ago = await self._database_time() - _KEPT
        mine = update(ProcessRow).where(_P.tenant == _INSTALLATION, _P.id == id)
        await self._connection.execute(mine.values({"seen_at": long_ago, "revision": _P.revision + 1}))

    async def prune(self) -> None:
        """Delete the rows of processes that have ended, or were silent for a day."""
        old = await self._database_time() - _KEPT
        await self._connection.execute(
            delete(ProcessRow).where(_P.tenant == _INSTALLATION, _P.seen_at <= old)
        )

    async def all(self, names: Collection[str] = Process._fields[:-1]) -> list[Process]:
        """Every process that wrote within the last day, by role and host; of these columns."""
        now = await self._database_time()
        query = select(*(_P[name] for name in names)).where(_P.seen_at > now - _KEPT)
        rows = await fetch_all(self._connection, query.order_by(_P.role, _P.host, _P.id))
        missing: dict[str, Any] = dict.fromkeys(Process._fields[:-1])
        return [Process(**{**missing, **row}, silent_for=now - row["seen_at"]) for row in rows]

    async def _database_time(self) -> datetime:
        if self._connection.dialect.name != "postgresql":
            return self._now
        moment: datetime = (await self._connection.execute(select(func.clock_timestamp()))).scalar_one()
        return moment


async def read_processes(url: str, now: datetime) -> list[Process]:
    """As `Processes.all`, also in a database that this code has yet to upgrade. Raises Failure
    STORE_UNAVAILABLE."""
    database = open_database(url)
    try:
        with translate_errors():
            async with database.read() as connection:
                names = [name for name in await connection.run_sync(_columns) if name in Process._fields]
                return await Processes(connection, now).all(names) if names else []
    finally:
        await database.close()


def _columns(connection: Connection) -> list[str]:
    table, there = table_of(ProcessRow).name, inspect(connection)
    return [column["name"] for column in there.get_columns(table)] if there.has_table(table) else []


def that_go_on(processes: list[Process]) -> list[Process]:
    """The live processes, without those that a later one of their role and host followed and that haven't
    written since: after a restart these are live for a moment, and an operator has nothing to repair."""
    began: dict[tuple[str, str], datetime] = {}
    for process in processes:
        key = process.role, process.host
        began[key] = max(process.started_at, began.get(key, process.started_at))
    return [
        process
        for process in processes
        if process.state is ProcessState.LIVE and (process.seen_at >= began[process.role, process.host])
    ]


def too_old(processes: Sequence[Process], oldest_code: str) -> list[Process]:
    """The live processes whose code doesn't work with a schema that says this."""
    return [
        process
        for process in processes
        if process.state is ProcessState.LIVE and (process.schema_version or SAYS_NOTHING) < oldest_code
    ]


def lacking(processes: list[Process], purpose: str, root_id: str) -> list[Process]:
    """The live processes that need this purpose, which have some root of it, and don't hold this one."""
    return [
        process
        for process in processes
        if process.state is ProcessState.LIVE
        and purpose in process.roots
        and root_id not in process.roots[purpose]
    ]


def may_seal_with_another(processes: list[Process], purpose: str, root_id: str) -> list[Process]:
    """Those that may still seal with another root of this purpose: live ones that don't know yet, and those
    that fell silent and may come back."""
    return [
        process
        for process in processes
        if process.state is not ProcessState.GONE
        and purpose in process.roots
        and (process.state is ProcessState.SILENT or process.seals_with.get(purpose) != root_id)
    ]
