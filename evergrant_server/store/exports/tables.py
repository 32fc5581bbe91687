"""The tables of exports and their lines."""

from datetime import datetime
from typing import Any

from sqlalchemy import Index, Text
from sqlmodel import Field, ForeignKeyConstraint

from evergrant_server.store.database.columns import (
    BIG_INTEGER,
    Row,
    json_column,
    timestamp_column,
)


class ExportRow(Row, table=True):
    __table_args__ = (Index(None, "id", unique=True),)
    tenant: str = Field(primary_key=True)
    id: str = Field(primary_key=True)
    status: str
    recipient: dict[str, str] = json_column()
    filters: dict[str, Any] = json_column()
    exported: int
    skipped: int
    pages: int
    after: str | None = None
    by: str
    trace_id: str
    created_at: datetime = timestamp_column()
    expires_at: datetime = timestamp_column()
    revision: int


class ExportLineRow(Row, table=True):
    __table_args__ = (
        ForeignKeyConstraint(["tenant", "export_id"], ["export.tenant", "export.id"], ondelete="CASCADE"),
    )
    tenant: str = Field(primary_key=True)
    export_id: str = Field(primary_key=True)
    seq: int = Field(primary_key=True, sa_type=BIG_INTEGER, sa_column_kwargs={"autoincrement": False})  # pyright: ignore[reportArgumentType]  # an instance carries the variant
    jwe: str = Field(sa_type=Text)
    revision: int
