"""The schema's version: reads the database's, compares it with this code's, and upgrades.

Alembic upgrades. Every process compares versions when it starts, and doesn't import Alembic for it.
"""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection, inspect, text

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.store.database.engine import open_database, sqlite_path
from evergrant_server.store.database.errors import store_unavailable, translate_errors

T = TypeVar("T")
MIGRATIONS = Path(__file__).resolve().parents[3] / "migrations"
_OF_A_NEWER_SERVER = (
    "Start the newer release with this database; or restore the backup from before its upgrade. "
    "If a checkout from before 0.1.0 made it: begin with an empty database."
)
_OR_OTHER = "or name another file: EVERGRANT_DATABASE_URL=sqlite:///FOLDER/evergrant.db"
_UPGRADE_LOCK = 0x4576_6572  # "Ever": one upgrade at a time on PostgreSQL


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
    if _absent(url):
        return None
    return await _run(url, _version, writes=False)


async def is_in_use(url: str) -> bool:
    """Whether the database has an app, or a sealed value's key: it needs the key file that made them.

    Raises Failure STORE_UNAVAILABLE.
    """
    return await current_version(url) is not None and await _run(url, _has_rows, writes=False)


async def upgrade(url: str) -> str | None:
    """Bring the database to `expected_version()`, in one transaction; returns the version it had.

    Does nothing to a database of that version, and returns None for one that was empty.
    Raises Failure SCHEMA_MISMATCH for a database from a newer version, STORE_UNAVAILABLE
    when it can't be reached.
    """
    _private_file(url)
    return await _run(url, _upgrade, writes=True)


async def _run(url: str, work: Callable[[Connection], T], *, writes: bool) -> T:
    database = open_database(url, limits=not writes)
    try:
        with translate_errors():
            async with database.write() if writes else database.read() as connection:
                return await connection.run_sync(work)
    finally:
        await database.close()


def require_expected_version(connection: Connection) -> None:
    """Raise Failure SCHEMA_MISMATCH unless the database has exactly the version of this code."""
    version, expected = _version(connection), expected_version()
    if version != expected:
        raise _mismatch(version, expected)


def _upgrade(connection: Connection) -> str | None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _UPGRADE_LOCK})
    version, expected = _version(connection), expected_version()
    if version == expected:
        return version
    if version is not None and not is_known(version):
        raise _mismatch(version, expected)
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    return version


def _version(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()


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


def _mismatch(version: str | None, expected: str) -> Failure:
    repair = "Run: python -m evergrant_server db upgrade."
    if version is None:
        detail = f"The database is empty and this code wants schema {expected}."
    elif is_known(version):
        detail = f"The database has the older schema {version} and this code wants {expected}."
    else:
        detail = f"The database has schema {version}, from a newer server; this code knows {expected}."
        repair = _OF_A_NEWER_SERVER
    version = version or "none"
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
