"""The restore: a backup is verified, put in the database's place, and what must not be used is marked."""

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from evergrant_server.cli.backup import copies
from evergrant_server.cli.backup.drill import Stopwatch, record_in_log
from evergrant_server.cli.backup.marks import Marks, mark
from evergrant_server.cli.backup.postgresql import Programs
from evergrant_server.cli.backup.verification import Verified, verify
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.clock import SystemClock
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.crypto.keyring import Role
from evergrant_server.settings import Settings
from evergrant_server.store.database import schema
from evergrant_server.store.database.copies import (
    Behind,
    Copy,
    libpq_environment,
    live_processes,
    put_back,
    reading,
    set_aside,
    what_is_behind,
)
from evergrant_server.store.database.engine import sqlite_path
from evergrant_server.store.database.sqlite import BUSY_MS, end_of, restoring
from evergrant_server.wiring.platform import open_store
from providers.definition.registry import Registry

P = ParamSpec("P")
T = TypeVar("T")
_LONGEST_WAIT_S = BUSY_MS / 1000  # for who has the database's file open


@dataclass
class RestoreReport:
    """`placed`: the backup is the database now. `replaced`: where the database of before is; None: there was
    none that could be read, so that nothing could be compared or marked."""

    backup: str
    kind: str
    placed: bool = False
    schema: str = ""
    replaced: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    verified: Verified = field(default_factory=Verified)
    behind: Behind | None = None
    marks: Marks | None = None

    def as_json(self) -> dict[str, Any]:
        found = asdict(self.verified)
        found["newest_at"] = self.verified.newest_at and self.verified.newest_at.isoformat()
        facts = {
            name: value for name, value in vars(self).items() if name not in ("verified", "behind", "marks")
        }
        behind = None if self.behind is None else self.behind._asdict()
        return {**facts, **found, "behind": behind, "marks": self.marks and asdict(self.marks)}


async def restore(settings: Settings, backup: Path | None, programs: Programs) -> RestoreReport:
    """Put a backup in the place of the database; None: it is there already, and is verified where it is.

    The database of before is kept. A backup that isn't whole is not put in its place. Raises Failure
    INVALID_REQUEST while a process of the installation runs, or for a backup that can't be read.
    """
    await _require_stopped(settings)
    watch = Stopwatch()
    kind = "in place" if backup is None else copies.kind_of(settings, backup)
    report = RestoreReport(str(backup or "in place"), kind)
    placed = _in_place if backup is None else _sqlite if settings.uses_sqlite else _postgresql
    async with placed(settings, backup or Path(), report, programs) as newer:
        watch.lap("restore")
        if report.placed and newer is not None:
            await _compare(settings, report, newer)
            watch.lap("mark")
    if report.placed:
        await _record(settings, report)
    report.seconds = watch.seconds
    return report


async def _require_stopped(settings: Settings) -> None:
    """Raise Failure INVALID_REQUEST where the current database says that a process uses it."""
    try:
        async with reading(settings.database_url) as copy:
            live = await live_processes(copy, SystemClock().now())
    except Failure:
        return  # there is none, it is damaged, or older than the rows of processes
    if live:
        named = ", ".join(f"{process.role} on {process.host}" for process in live)
        why = f"{named} runs with this database. Stop API, gateways and workers first"
        raise Failure(ErrorCode.INVALID_REQUEST, f"{why}; one that was killed counts for 30 seconds.")


async def _judge(settings: Settings, report: RestoreReport) -> bool:
    """Migrate and verify a database that holds the backup. False: it isn't whole."""
    report.schema = await schema.upgrade(settings.database_url) or "none"
    report.verified = await verify(settings)
    return not report.verified.problems


@asynccontextmanager
async def _in_place(
    settings: Settings, _: Path, report: RestoreReport, programs: Programs
) -> AsyncIterator[Copy | None]:
    report.placed = await _judge(settings, report)
    yield None


@asynccontextmanager
async def _sqlite(
    settings: Settings, backup: Path, report: RestoreReport, programs: Programs
) -> AsyncIterator[Copy | None]:
    """Verify a copy beside the database's file, then exchange the two by renaming."""
    file = sqlite_path(settings.database_url)
    assert file is not None
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    copy = restoring(file)
    _delete(copy)
    before: Path | None = None
    try:
        await _to_its_end(copies.copy_sqlite, backup, copy)
        if await _judge(copies.of_database(settings, f"sqlite:///{copy}"), report):
            before = await _to_its_end(_exchange, file, copy)
            report.placed = True
    finally:
        _delete(copy)  # while it is there, no process opens the database
    async with _readable(None if before is None else f"sqlite:///{before}") as newer:
        report.replaced = None if newer is None else str(before)
        yield newer


async def _to_its_end(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `work` in a thread. A command that is ended meanwhile waits for it."""
    return await end_of(asyncio.create_task(asyncio.to_thread(work, *args, **kwargs)))


def _exchange(file: Path, copy: Path) -> Path | None:
    """Put the copy in the file's place; returns where the file is now, None where there was none."""
    with closing(sqlite3.connect(copy)) as here:
        here.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    _sync(copy)
    before = file.with_name(f"{file.name}.{_aside_name()}") if file.exists() else None
    with _held(file):
        for end in ("-wal", "-shm", ""):  # SQLite finds its log by the file's name
            if before is not None and (part := Path(f"{file}{end}")).exists():
                part.rename(f"{before}{end}")
        copy.rename(file)
    _sync(file.parent)
    return before


@contextmanager
def _held(file: Path) -> Iterator[None]:
    """Hold the database's file against every other process.

    Raises Failure INVALID_REQUEST where one has it open, whatever the rows of processes say: it would go on
    with a file that is set aside, and spend refresh tokens that the restored one has too.
    """
    if not file.exists():
        yield
        return
    with closing(sqlite3.connect(file, isolation_level=None, timeout=_LONGEST_WAIT_S)) as holder:
        try:
            holder.execute("PRAGMA locking_mode=EXCLUSIVE")  # no other connection, not even one that is idle
            holder.execute("BEGIN EXCLUSIVE")
        except sqlite3.Error as error:
            if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY:  # else it is damaged, and nobody's
                why = f"A process has opened {file} since (fuser {file} names it). Nothing was exchanged."
                raise Failure(ErrorCode.INVALID_REQUEST, f"{why} Stop it, and restore again.") from None
        yield


@asynccontextmanager
async def _postgresql(
    settings: Settings, backup: Path, report: RestoreReport, programs: Programs
) -> AsyncIterator[Copy | None]:
    """Keep the tables of before in a schema of their own, and undo that where the backup isn't whole."""
    url, aside = settings.database_url, _aside_name()
    async with AsyncExitStack() as opened:
        dump = backup
        if report.kind == "base":
            scratch = await opened.enter_async_context(copies.scratch_folder(None))
            dump = scratch / "evergrant.dump"
            async with programs.serving(backup, url, scratch) as copy:
                await programs.take(copy, dump)
        await _require_stopped(settings)  # again: what was done since may have taken minutes
        await set_aside(url, aside)
        try:
            await programs.restore(dump, libpq_environment(url))
            report.placed = await _judge(settings, report)
        finally:
            if not report.placed:
                await put_back(url, aside)
        async with _readable(url if report.placed else None, aside) as newer:
            report.replaced = None if newer is None else f"schema {aside}"
            yield newer


@asynccontextmanager
async def _readable(url: str | None, schema: str | None = None) -> AsyncIterator[Copy | None]:
    """The database of before, if it has connections that can be read."""
    async with AsyncExitStack() as opened:
        newer: Copy | None = None
        if url is not None:
            try:
                newer = await opened.enter_async_context(reading(url, schema))
                await newer.tree_sizes()
            except Failure:
                newer = None
        yield newer


async def _compare(settings: Settings, report: RestoreReport, newer: Copy) -> None:
    async with open_store(settings, Role.OPERATOR) as (store, _), reading(settings.database_url) as older:
        report.behind = await what_is_behind(older, newer)
        report.marks = await mark(store, Registry.load(), SystemClock(), older, newer)


async def _record(settings: Settings, report: RestoreReport) -> None:
    marks = report.marks or Marks()
    detail = {"kind": report.kind, **asdict(marks), "compared": report.marks is not None}
    await record_in_log(settings, AuditAction.BACKUP_RESTORED, detail)


def _aside_name() -> str:
    return f"replaced_{SystemClock().now():%Y%m%d_%H%M%S}"


def _delete(file: Path) -> None:
    for end in ("", "-wal", "-shm", "-journal"):
        Path(f"{file}{end}").unlink(missing_ok=True)


def _sync(place: Path) -> None:
    descriptor = os.open(place, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
