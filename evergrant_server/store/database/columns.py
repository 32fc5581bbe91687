"""Building blocks of the tables: the metadata, the base classes of rows, and column types.

The types mean the same on SQLite and PostgreSQL.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    TypeDecorator,
    text,
)
from sqlalchemy.orm import declared_attr
from sqlmodel import Field, ForeignKeyConstraint, SQLModel

from evergrant_server.crypto import KeyPurpose, Sealed

METADATA = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)
BIG_INTEGER = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers only INTEGER keys by itself


class UtcDateTime(TypeDecorator[datetime]):
    """A moment in UTC with microseconds: `timestamptz` on PostgreSQL, ISO text on SQLite.

    A naive datetime is refused: it would mean another moment on another machine.
    """

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a moment without a time zone can't be stored")
        moment = value.astimezone(UTC)
        return moment.replace(tzinfo=None) if dialect.name == "sqlite" else moment

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class SealedBytes(TypeDecorator[Sealed]):
    """Sealed bytes; what comes back doesn't print its content."""

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> bytes | None:
        if value is not None and not isinstance(value, Sealed):
            raise TypeError("only sealed bytes may be stored in a sealed column")
        return None if value is None else bytes(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Sealed | None:
        return None if value is None else Sealed(value)


# whether a column may be NULL follows from its annotation
def timestamp() -> Any:
    return Field(default=None, sa_type=UtcDateTime)


def json() -> Any:
    return Field(default=None, sa_type=JSON)


@dataclass(frozen=True)
class SealedBy:
    """Whose key seals the values of a column, and what their seals are bound to beside tenant, table, column.

    `connection` is the column that names the connection whose key it is; None: the key is the tenant's. `row`
    are the columns that make the row's name, `generation` is the column of the generation.
    """

    purpose: KeyPurpose
    connection: str | None = None
    row: tuple[str, ...] = ("id",)
    generation: str | None = None


BY_INTAKE = SealedBy(KeyPurpose.INTAKE)
SEALED_BY = "sealed_by"


def sealed(by: SealedBy | None) -> Any:
    """A column of sealed bytes. `by` None: a key, which the key above it wraps (`store.keys`)."""
    return Field(default=None, sa_type=SealedBytes, sa_column_kwargs={"info": {SEALED_BY: by}})


def partial_index(
    name: str, *columns: str, where: str, unique: bool = False, postgresql_ops: dict[str, str] | None = None
) -> Index:
    """An index over the rows for which the condition `where` holds."""
    options: dict[str, Any] = {} if postgresql_ops is None else {"postgresql_ops": postgresql_ops}
    where_of_both = {"sqlite_where": text(where), "postgresql_where": text(where)}
    return Index(name, *columns, unique=unique, **where_of_both, **options)


def app_foreign_key() -> ForeignKeyConstraint:
    return ForeignKeyConstraint(["tenant", "app_id"], ["app.tenant", "app.id"], ondelete="CASCADE")


def connection_foreign_key() -> ForeignKeyConstraint:
    return ForeignKeyConstraint(["tenant", "connection_id"], ["connection.tenant", "connection.id"])


class Row(SQLModel):
    """The base class of rows: one metadata, and no sealed bytes in `repr`."""

    metadata: ClassVar[MetaData] = METADATA  # pyright: ignore[reportIncompatibleVariableOverride]  # our own schema, not SQLModel's global one
    model_config = {"arbitrary_types_allowed": True}

    @declared_attr.directive
    def __tablename__(cls) -> str:  # noqa: N805  # pyright: ignore[reportIncompatibleVariableOverride]  # as SQLModel does: SQLAlchemy hands over the class
        """`AppKeyRow` is the table `app_key`."""
        return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", cls.__name__.removesuffix("Row")).lower()


class TenantTable(Row):
    """A row of one tenant. Its primary key begins with the tenant."""

    tenant: str = Field(primary_key=True)
    revision: int


class IdTable(TenantTable):
    """A row that its tenant and its id name."""

    id: str = Field(primary_key=True)


def table_of(row: type[Row]) -> Table:
    """The table of a row class, for statements that go around SQLAlchemy's ORM."""
    return METADATA.tables[str(row.__tablename__)]


@cache
def sealed_columns() -> dict[Table, dict[str, SealedBy]]:
    """Every sealed column of the schema that is no key, by its table, in the order of the tables' names."""
    tables = sorted(METADATA.tables.values(), key=lambda table: table.name)
    declared = {
        table: {column.name: column.info[SEALED_BY] for column in table.c if column.info.get(SEALED_BY)}
        for table in tables
    }
    return {table: columns for table, columns in declared.items() if columns}
