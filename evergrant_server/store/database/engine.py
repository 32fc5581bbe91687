"""Opens the database that a URL names."""

from pathlib import Path

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.store.database.connection import Database
from evergrant_server.store.database.postgresql import PostgresDatabase
from evergrant_server.store.database.sqlite import SqliteDatabase


def open_database(url: str) -> Database:
    """The database behind the URL; it connects when it is first used. Raises Failure STORE_UNAVAILABLE."""
    file = sqlite_path(url)
    return PostgresDatabase(_parse_url(url)) if file is None else SqliteDatabase(file)


def sqlite_path(url: str) -> Path | None:
    """The database file of a SQLite URL; None for PostgreSQL. Raises Failure STORE_UNAVAILABLE."""
    parsed = _parse_url(url)
    return Path(parsed.database or "") if parsed.drivername == "sqlite" else None


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
            return parsed.set(drivername="postgresql+asyncpg")
        case other:
            raise _unusable(f"{other} is not sqlite or postgresql")


def _unusable(why: str) -> Failure:
    return Failure(ErrorCode.STORE_UNAVAILABLE, f"EVERGRANT_DATABASE_URL can't be used: {why}.")
