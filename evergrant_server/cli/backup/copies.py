"""A backup of either engine: taken, and served from a copy in a scratch folder as a database of its own."""

import asyncio
import os
import shutil
import sqlite3
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

from evergrant_server.cli.backup.postgresql import Programs, is_base
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.settings import Settings
from evergrant_server.store.database.copies import may_replicate
from evergrant_server.store.database.engine import sqlite_path

_SQLITE_HEAD = b"SQLite format 3\0"


async def take(settings: Settings, out: Path, programs: Programs) -> None:
    """Take a backup of the running installation's database; `out` must not exist.

    SQLite: a file. PostgreSQL: a base backup in a folder, or a dump where the name ends in `.dump`.
    Raises Failure ALREADY_EXISTS, INVALID_REQUEST, STORE_UNAVAILABLE.
    """
    if await asyncio.to_thread(os.path.lexists, out):
        raise Failure(ErrorCode.ALREADY_EXISTS, f"{out} exists: name another place.")
    file = sqlite_path(settings.database_url)
    if file is None:
        await programs.take(settings.database_url, out)
    else:
        await asyncio.to_thread(copy_sqlite, file, out)


async def form_to_take(settings: Settings) -> str:
    """The name of a backup that this role may take: a base backup, else a dump."""
    if settings.uses_sqlite:
        return "evergrant.db"
    return "data" if await may_replicate(settings.database_url) else "evergrant.dump"


def kind_of(settings: Settings, backup: Path) -> str:
    """What a backup is: `file` (SQLite), `base` or `dump` (PostgreSQL). Raises Failure INVALID_REQUEST for
    one that can't be read, or is another engine's."""
    try:
        base = is_base(backup)
        head = b"" if base else _head(backup)
    except OSError as error:
        raise Failure(ErrorCode.INVALID_REQUEST, f"{backup} can't be read ({error.strerror}).") from None
    kind = "base" if base else "dump" if head.startswith(b"PGDMP") else "file" if head == _SQLITE_HEAD else ""
    if not kind:
        known = "a file of SQLite, a folder that pg_basebackup wrote, or a file of pg_dump --format=custom"
        raise Failure(ErrorCode.INVALID_REQUEST, f"{backup} is no backup of Evergrant: it has to be {known}.")
    if (kind == "file") is not settings.uses_sqlite:
        engine = "SQLite" if settings.uses_sqlite else "PostgreSQL"
        why = f"{backup} is a backup of another engine than {engine}, which EVERGRANT_DATABASE_URL names."
        raise Failure(ErrorCode.INVALID_REQUEST, why)
    return kind


def _head(backup: Path) -> bytes:
    with backup.open("rb") as file:
        return file.read(len(_SQLITE_HEAD))


def copy_sqlite(source: Path, target: Path) -> None:
    """Copy a database by SQLite itself, its write-ahead log included. Raises Failure INVALID_REQUEST."""
    try:
        target.touch(mode=0o600, exist_ok=False)
        with closing(sqlite3.connect(source)) as there, closing(sqlite3.connect(target)) as here:
            there.backup(here)
            (verdict,) = here.execute("PRAGMA quick_check(1)").fetchone()
            here.execute("PRAGMA journal_mode=DELETE")  # one file, whoever copies it
    except (sqlite3.Error, OSError) as error:
        target.unlink(missing_ok=True)
        raise Failure(ErrorCode.INVALID_REQUEST, f"{source} can't be copied to {target}: {error}.") from None
    if verdict != "ok":
        target.unlink()
        raise Failure(ErrorCode.INVALID_REQUEST, f"{source} is damaged, as SQLite says: {verdict}.")


@asynccontextmanager
async def scratch_folder(above: Path | None) -> AsyncIterator[Path]:
    """A private folder, deleted at the end of the block with all that is in it."""
    folder = Path(tempfile.mkdtemp(prefix="evergrant-drill-", dir=above))
    try:
        yield folder
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


@asynccontextmanager
async def serving(
    settings: Settings, backup: Path, scratch: Path, programs: Programs
) -> AsyncIterator[Settings]:
    """Settings of a database that is a copy of the backup, in the folder `scratch`. The backup stays as it
    is. Raises Failure INVALID_REQUEST."""
    if kind_of(settings, backup) == "file":
        copy = scratch / "copy.db"
        await asyncio.to_thread(copy_sqlite, backup, copy)
        yield of_database(settings, f"sqlite:///{copy}")
        return
    async with programs.serving(backup, settings.database_url, scratch) as url:
        yield of_database(settings, url)


def of_database(settings: Settings, url: str) -> Settings:
    """The same settings with another database, which has no password."""
    return settings.__replace__(database_url=url, database_password_file=None)


def size_of(backup: Path) -> int:
    """The bytes of a backup."""
    files = [backup] if backup.is_file() else [path for path in backup.rglob("*") if path.is_file()]
    return sum(path.stat().st_size for path in files)
