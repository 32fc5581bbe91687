"""The interface that SQLite and PostgreSQL implement: a database and its connections."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from sqlalchemy import Connection, CursorResult, Dialect, Executable

P = ParamSpec("P")
T = TypeVar("T")
Parameters = Mapping[str, Any] | Sequence[Mapping[str, Any]]


class DatabaseConnection(Protocol):
    """A connection inside one transaction; SQLAlchemy's AsyncConnection is one."""

    @property
    def dialect(self) -> Dialect: ...

    async def execute(
        self, statement: Executable, parameters: Parameters | None = None
    ) -> CursorResult[*tuple[Any, ...]]: ...

    async def exec_driver_sql(self, statement: str) -> CursorResult[*tuple[Any, ...]]: ...

    async def run_sync(
        self, fn: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T: ...


class Database(Protocol):
    """One database. Belongs to one event loop."""

    @property
    def is_sqlite(self) -> bool: ...

    def read(self) -> AbstractAsyncContextManager[DatabaseConnection]:
        """One snapshot to read."""
        ...

    def write(self) -> AbstractAsyncContextManager[DatabaseConnection]:
        """One change: committed on a clean exit, rolled back on an exception."""
        ...

    def autocommit(self) -> AbstractAsyncContextManager[DatabaseConnection]:
        """Single statements without a transaction around them."""
        ...

    async def close(self) -> None:
        """Close every connection. Transactions must have ended."""
        ...
