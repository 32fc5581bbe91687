"""Translates a driver's exceptions into failures; every transaction uses it."""

import sqlite3
from collections.abc import Generator
from contextlib import contextmanager

from asyncpg import (  # pyright: ignore[reportMissingTypeStubs]  # it has none
    InterfaceError,
    InternalClientError,
    PostgresError,
)
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from evergrant_server.core.errors import ErrorCode, Failure

DRIVER_ERRORS = (InterfaceError, InternalClientError, PostgresError)  # asyncpg's own
_RETRY_AFTER = 1.0  # seconds
# serialization_failure, deadlock_detected, lock_not_available
_CONFLICT_STATES = frozenset({"40001", "40P01", "55P03"})
_SCHEMA_STATES = frozenset({"42P01", "42703"})  # undefined_table, undefined_column
# not_null_violation, check_violation: no other change causes them, and no further try ends them
_NEVER_STORED = frozenset({"23502", "23514", "SQLITE_CONSTRAINT_NOTNULL", "SQLITE_CONSTRAINT_CHECK"})
# what an operator can act on, by SQLSTATE or SQLite's error name, and what ends it
_READ_ONLY = ("its file or folder is read-only", "Let this user write both.")
_FULL = ("the disk is full", "Make room on the disk of the database.")
_NAMED = {
    "42501": (
        "its user may not do that there",
        "If it is a process's: python -m evergrant_server db upgrade, as the owner of the tables, with "
        "--gateway-role USER, --api-role or --worker-role. To upgrade it has to own the database: ALTER "
        "DATABASE name OWNER TO user, as an administrator.",
    ),
    "28P01": ("it refused the user or the password", ""),
    "28000": ("it refused the user", ""),
    "3D000": ("it has no database of that name", ""),
    "53300": ("it has no connection left to give", ""),
    "08003": ("the session was cut", ""),
    "57P01": ("it is being shut down", ""),
    "57P02": ("it has crashed and starts again", ""),
    "57P03": ("it is starting or being shut down", ""),
    "25006": ("it is a standby, or was made read-only", ""),
    "TargetServerAttributeNotMatched": ("it is a standby, or was made read-only", ""),
    "SQLITE_CANTOPEN": ("its file can't be opened or isn't there", ""),
    "SQLITE_READONLY": _READ_ONLY,
    "SQLITE_READONLY_DIRECTORY": _READ_ONLY,
    "SQLITE_READONLY_CANTINIT": _READ_ONLY,
    "SQLITE_NOTADB": ("its file is no SQLite database", ""),
    "SQLITE_FULL": _FULL,
    "SQLITE_IOERR_SHMSIZE": _FULL,
    "SQLITE_IOERR_WRITE": _FULL,
    "SQLITE_BUSY": (
        "another process holds it",
        "End that process (fuser evergrant.db names it), such as an open sqlite3 shell, and try again.",
    ),
}
_UNREACHABLE = {
    "ConnectionRefusedError": "nothing listens at its address",
    "gaierror": "its host name isn't known",
    "TimeoutError": "it didn't answer in time",
    "ConnectionError": "it takes no TLS, which sslmode in its URL demands",
    "SSLCertVerificationError": "its certificate is by no authority of this machine or of SSL_CERT_FILE",
}
_PROMOTE = "Start the primary, or promote a standby: SELECT pg_promote() there."
_SCHEMA_WORDS = ("no such table", "no such column", "has no column named")


class NoPrimary(ConnectionError):
    """None of several servers takes writes. The text says why, server by server, and quotes nothing else."""


@contextmanager
def translate_errors() -> Generator[None]:
    """Turn the driver's exceptions into failures. The driver's text may quote values: it is left out."""
    try:
        yield
    except SQLAlchemyError as error:
        raise _failure_of(error) from None
    except (sqlite3.Error, *DRIVER_ERRORS) as error:  # from a driver
        raise _failure_of(DBAPIError("", None, error)) from None
    except NoPrimary as error:
        raise store_unavailable(f"none of its servers takes writes ({error})", _PROMOTE) from None
    except (OSError, TimeoutError) as error:
        raise store_unavailable(reason_of(error)) from None


def reason_of(error: Exception) -> str:
    """Why a server gave no session: without its own text, which may quote values."""
    name = type(error).__name__
    if isinstance(error, OSError | TimeoutError):
        return f"{_UNREACHABLE[name]} ({name})" if name in _UNREACHABLE else name
    return _named(DBAPIError("", None, error), str(getattr(error, "sqlstate", None) or ""))[0]


def store_unavailable(why: str, repair: str = "") -> Failure:
    exact = {"repair": repair} if repair else {}
    detail = f"The store can't be used: {why}."
    return Failure(ErrorCode.STORE_UNAVAILABLE, detail, retry_after=_RETRY_AFTER, **exact)


def _failure_of(error: SQLAlchemyError) -> Failure:
    if isinstance(error, PoolTimeout):
        return store_unavailable("all its connections are busy")
    if not isinstance(error, DBAPIError):
        return Failure(ErrorCode.INTERNAL, f"A statement failed: {type(error).__name__}.")
    state = str(getattr(error.orig, "sqlstate", None) or "")
    text = str(error.orig).lower()
    rule = state or str(getattr(error.orig, "sqlite_errorname", ""))
    if rule in _NEVER_STORED:
        return Failure(ErrorCode.INTERNAL, f"The database refuses a row of this code ({rule}).")
    conflicts = isinstance(error, IntegrityError) or isinstance(error.orig, sqlite3.IntegrityError)
    if conflicts or state in _CONFLICT_STATES:
        return Failure(ErrorCode.STORE_CONFLICT, "Another change came first; nothing was written.")
    if state in _SCHEMA_STATES or any(words in text for words in _SCHEMA_WORDS):
        return Failure(ErrorCode.SCHEMA_MISMATCH, "The database lacks a table or column this code uses.")
    if isinstance(error, DataError) or state.startswith("22"):  # class 22: data exception
        return Failure(ErrorCode.INVALID_REQUEST, "A value can't be stored by this database.")
    return store_unavailable(*_named(error, state))


def _named(error: DBAPIError, state: str) -> tuple[str, str]:
    """A reason that quotes no statement and no value, and its repair if that is known."""
    name = type(error.orig).__name__ if error.orig is not None else type(error).__name__
    sqlite = getattr(error.orig, "sqlite_errorname", "")
    quoted = " ".join(part for part in (name, state, sqlite) if part)
    why, repair = _NAMED.get(state) or _NAMED.get(sqlite) or _NAMED.get(name) or ("", "")
    return f"{why} ({quoted})" if why else quoted, repair
