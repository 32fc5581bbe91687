"""Building blocks of the tables: the metadata, the base class of rows, and column types."""

import re
from typing import Any, ClassVar

from sqlalchemy import JSON, BigInteger, Integer, MetaData, Table
from sqlalchemy.orm import declared_attr
from sqlmodel import Field, ForeignKeyConstraint, SQLModel

from evergrant_server.store.database.types import SealedBytes, UtcDateTime

METADATA = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)
BIG_INTEGER = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers only INTEGER keys by itself


def timestamp_column() -> Any:
    return Field(sa_type=UtcDateTime)


def optional_timestamp_column() -> Any:
    return Field(default=None, sa_type=UtcDateTime)


def json_column() -> Any:
    return Field(sa_type=JSON)


def optional_json_column() -> Any:
    return Field(default=None, sa_type=JSON)


def sealed_column() -> Any:
    return Field(default=None, sa_type=SealedBytes)


def connection_foreign_key() -> ForeignKeyConstraint:
    return ForeignKeyConstraint(["tenant", "connection_id"], ["connection.tenant", "connection.id"])


def app_foreign_key() -> ForeignKeyConstraint:
    return ForeignKeyConstraint(["tenant", "app_id"], ["app.tenant", "app.id"], ondelete="CASCADE")


class Row(SQLModel):
    """The base class of rows: one metadata, and no sealed bytes in `repr`."""

    metadata: ClassVar[MetaData] = METADATA  # pyright: ignore[reportIncompatibleVariableOverride]  # our own schema, not SQLModel's global one
    model_config = {"arbitrary_types_allowed": True}

    @declared_attr.directive
    def __tablename__(cls) -> str:  # noqa: N805  # pyright: ignore[reportIncompatibleVariableOverride]  # as SQLModel does: SQLAlchemy hands over the class
        """`AppKeyRow` is the table `app_key`."""
        return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", cls.__name__.removesuffix("Row")).lower()


def table_of(row: type[Row]) -> Table:
    """The table of a row class, for statements that go around SQLAlchemy's ORM."""
    return METADATA.tables[str(row.__tablename__)]
