"""The schema's version: reads the database's, compares it with this code's, and upgrades.

Alembic upgrades. Every process compares versions when it starts, and doesn't import Alembic for it. A process
also works with a newer schema that says so: the column `oldest_code` of `alembic_version` is the version of
the oldest code that does (ADR 0132). Versions are numbers of four digits, so that code can judge one that it
has never heard of.
"""

import asyncio
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypeVar

from sqlalchemy import Connection, inspect, text

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.store.database.engine import open_database, sqlite_path
from evergrant_server.store.database.errors import store_unavailable, translate_errors

T = TypeVar("T")
# The oldest code that works with this code's schema: `db upgrade` writes it into the database. A migration
# that takes away what older code uses raises it, to a version whose code no longer does (ADR 0132).
OLDEST_CODE = "0018"
MIGRATIONS = Path(__file__).resolve().parents[3] / "migrations"
_OF_A_NEWER_SERVER = (
    "Start the newer release with this database; or restore the backup from before its upgrade. "
    "If a checkout from before 0.1.0 made it: begin with an empty database."
)
_LONG_SESSIONS = (
    "Wait for its end (a backup), or end it, and run it again: SELECT pid, xact_start, query "
    "FROM pg_stat_activity WHERE xact_start < now() - interval '1 minute'"
)
_OR_OTHER = "or name another file: EVERGRANT_DATABASE_URL=sqlite:///FOLDER/evergrant.db"
_UPGRADE_LOCK = 0x4576_6572  # "Ever": one upgrade at a time on PostgreSQL
# While a migration waits for a table, so does everything that comes after it: it waits a little, and comes
# again. Longer than PostgreSQL's deadlock_timeout (1 s), after which an autovacuum makes way.
_TABLE_LOCK_MS = 1500
_LOCK_TRIES, _BETWEEN_TRIES_S = 60, 1.0


class Stamp(NamedTuple):
    """What a database says of its schema: the version, and the oldest code that works with it, where it says
    that."""

    version: str
    oldest_code: str | None = None

    @property
    def is_newer(self) -> bool:
        """A later release than this code's has upgraded the database."""
        return self.version > expected_version()

    @property
    def suits(self) -> bool:
        """This code works with the database."""
        expected = expected_version()
        if not self.is_newer:
            return self.version == expected
        return self.oldest_code is not None and self.oldest_code <= expected


def expected_version() -> str:
    """The version this code is written for."""
    if not known_versions():
        raise Failure(ErrorCode.INTERNAL, f"No migration was found in {MIGRATIONS}.")
    return max(known_versions())


def require_existing_file(url: str) -> None:
    """Raise Failure SCHEMA_MISMATCH when SQLite's file isn't there: opening it would make it."""
    if _absent(url):
        raise _mismatch(None, expected_version())


async def current_version(url: str) -> str | None:
    """The version the database has; None when it is empty. Raises Failure STORE_UNAVAILABLE."""
    stamp = await read_stamp(url)
    return None if stamp is None else stamp.version


async def read_stamp(url: str) -> Stamp | None:
    """What the database says of its schema; None when it is empty. Raises Failure STORE_UNAVAILABLE."""
    if _absent(url):
        return None
    return await _run(url, _stamp, writes=False)


async def is_in_use(url: str) -> bool:
    """Whether the database has an app, or a sealed value's key: it needs the key file that made them.

    Raises Failure STORE_UNAVAILABLE.
    """
    return await current_version(url) is not None and await _run(url, _has_rows, writes=False)


async def upgrade(url: str) -> str | None:
    """Bring the database to `expected_version()`, in one transaction; returns the version it had.

    Does nothing to a database of that version or of a newer one that works with this code, and returns None
    for one that was empty. Raises Failure SCHEMA_MISMATCH for a newer database that doesn't,
    STORE_UNAVAILABLE when it can't be reached, or a table is locked for minutes.
    """
    _private_file(url)
    for _ in range(_LOCK_TRIES):
        try:
            return await _run(url, _upgrade, writes=True)
        except Failure as failure:
            if failure.code is not ErrorCode.STORE_CONFLICT:
                raise
        await asyncio.sleep(_BETWEEN_TRIES_S)
    raise store_unavailable("other sessions keep a table locked that a migration changes", _LONG_SESSIONS)


async def _run(url: str, work: Callable[[Connection], T], *, writes: bool) -> T:
    database = open_database(url, limits=not writes)
    try:
        with translate_errors():
            async with database.write() if writes else database.read() as connection:
                return await connection.run_sync(work)
    finally:
        await database.close()


def has_newer_schema(connection: Connection) -> bool:
    """A later release than this code's has upgraded the database."""
    stamp = _stamp(connection)
    return stamp is not None and stamp.is_newer


def require_own_version(connection: Connection) -> None:
    """Raise Failure SCHEMA_MISMATCH unless the database has exactly the version of this code."""
    stamp = _stamp(connection)
    if stamp is None or stamp.version != expected_version():
        raise _mismatch(stamp, expected_version())


def require_usable_schema(connection: Connection) -> None:
    """Raise Failure SCHEMA_MISMATCH unless this code works with the database's schema."""
    stamp = _stamp(connection)
    if stamp is None or not stamp.suits:
        raise _mismatch(stamp, expected_version())


def _upgrade(connection: Connection) -> str | None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _UPGRADE_LOCK})
        connection.execute(text(f"SET LOCAL lock_timeout = {_TABLE_LOCK_MS}"))
    stamp = _stamp(connection)
    if stamp is not None and stamp.suits:
        return stamp.version
    if stamp is not None and not is_known(stamp.version):
        raise _mismatch(stamp, expected_version())
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    return None if stamp is None else stamp.version


def write_oldest_code(connection: Connection) -> None:
    """Have the database say which code works with it. Alembic has brought it to this code's version."""
    if "oldest_code" in {column["name"] for column in inspect(connection).get_columns("alembic_version")}:
        connection.execute(text("UPDATE alembic_version SET oldest_code = :code"), {"code": OLDEST_CODE})


def _stamp(connection: Connection) -> Stamp | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    row = connection.execute(text("SELECT * FROM alembic_version")).mappings().one_or_none()
    return (
        None if row is None else Stamp(row["version_num"], row.get("oldest_code"))
    )  # of before 0019: without


def _has_rows(connection: Connection) -> bool:
    rows = text('SELECT 1 WHERE EXISTS (SELECT 1 FROM app) OR EXISTS (SELECT 1 FROM "key")')
    return connection.execute(rows).first() is not None


def is_known(version: str) -> bool:
    """True for a version that this code has a migration of."""
    return version in known_versions()


@cache
def known_versions() -> frozenset[str]:
    """The revisions of the migrations: the number that each file's name begins with."""
    return frozenset(file.name[:4] for file in (MIGRATIONS / "versions").glob("[0-9]*.py"))


def _mismatch(stamp: Stamp | None, expected: str) -> Failure:
    repair = "Run: python -m evergrant_server db upgrade."
    if stamp is None:
        detail = f"The database is empty and this code wants schema {expected}."
    elif is_known(stamp.version):
        detail = f"The database has the older schema {stamp.version} and this code wants {expected}."
    else:
        detail = f"The database has schema {stamp.version}, from a newer server; this code knows {expected}"
        works = (
            f", and that schema works with code of {stamp.oldest_code} and later."
            if stamp.oldest_code
            else "."
        )
        detail, repair = detail + works, _OF_A_NEWER_SERVER
    version = stamp.version if stamp else "none"
    return Failure(ErrorCode.SCHEMA_MISMATCH, detail, found=version, expected=expected, repair=repair)


def _absent(url: str) -> bool:
    """True for SQLite without its file. Raises Failure STORE_UNAVAILABLE when its path can't be used."""
    file = sqlite_path(url)
    if file is None:
        return False
    folder = file.parent
    if not folder.is_dir():
        raise store_unavailable(
            f"the folder {folder} isn't there", f"Make it (mkdir -p {folder}), {_OR_OTHER}"
        )
    if file.is_dir():
        raise store_unavailable(
            f"{file} is a folder", f"Name a file: EVERGRANT_DATABASE_URL=sqlite:///{file}/evergrant.db"
        )
    if not os.access(folder, os.W_OK):  # SQLite writes its journal beside the file
        raise store_unavailable(
            f"this user can't write into the folder {folder}",
            f"Let it (chmod, or a mount that isn't read-only), {_OR_OTHER}",
        )
    return not file.exists()


def _private_file(url: str) -> None:
    """Make a new SQLite file readable by its owner alone, before SQLite creates it with the umask's mode."""
    file = sqlite_path(url)
    if file is None:
        return
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise store_unavailable(f"{file} can't be written ({error.strerror})") from None
