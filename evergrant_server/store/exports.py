"""Exports and their lines. A line is a JWE to a key that this store doesn't have."""

from datetime import datetime
from typing import Any

from sqlalchemy import Index, Text, delete, select
from sqlmodel import Field, ForeignKeyConstraint, col

from evergrant_server.core.export import Export
from evergrant_server.core.ids import ExportId
from evergrant_server.store.authority.authenticators import AuthenticatedRepository
from evergrant_server.store.database import columns
from evergrant_server.store.database.rows import columns_equal, insert


class ExportRow(columns.IdTable, table=True):
    __table_args__ = (Index(None, "id", unique=True),)
    status: str
    recipient: dict[str, str] = columns.json()
    filters: dict[str, Any] = columns.json()
    exported: int
    skipped: int
    pages: int
    after: str | None = None
    by: str
    trace_id: str
    created_at: datetime = columns.timestamp()
    expires_at: datetime = columns.timestamp()
    mac: str | None = None


class ExportLineRow(columns.TenantTable, table=True):
    __table_args__ = (
        ForeignKeyConstraint(["tenant", "export_id"], ["export.tenant", "export.id"], ondelete="CASCADE"),
    )
    export_id: str = Field(primary_key=True)
    seq: int = Field(primary_key=True, sa_type=columns.BIG_INTEGER, sa_column_kwargs={"autoincrement": False})  # pyright: ignore[reportArgumentType]  # an instance carries the variant
    jwe: str = Field(sa_type=Text)


class Exports(AuthenticatedRepository[Export, ExportId]):
    _table, _model = ExportRow, Export

    async def add(self, export: Export) -> None:
        """Add an export. Raises Failure ALREADY_EXISTS."""
        await self._add(export, f"Export {export.id}")

    async def write_page(self, before: Export, after: Export, lines: list[str]) -> Export:
        """Write a page's lines with the row that counts them, if the row is as `before` was.

        Raises Failure STORE_CONFLICT when the row changed meanwhile, NOT_FOUND when it is gone.
        """
        saved = await self.replace(after, expected=before.revision)
        for seq, line in enumerate(lines, before.exported + 1):
            values = {"tenant": after.tenant, "export_id": after.id, "seq": seq, "jwe": line, "revision": 1}
            await insert(self._connection, ExportLineRow, values)
        return saved

    async def lines(self, export: Export, after: int, limit: int) -> list[str]:
        """Up to `limit` lines behind the line with the number `after`; they are counted from 1."""
        mine = columns_equal(ExportLineRow, tenant=export.tenant, export_id=export.id)
        number = col(ExportLineRow.seq)
        query = select(col(ExportLineRow.jwe)).where(mine, number > after).order_by(number).limit(limit)
        return list((await self._connection.execute(query)).scalars())

    async def delete_lines(self, export: Export) -> Export:
        """Delete the lines; the row stays and says so. Raises Failure STORE_CONFLICT."""
        mine = columns_equal(ExportLineRow, tenant=export.tenant, export_id=export.id)
        await self._run(delete(ExportLineRow).where(mine))
        return await self.replace(export.deleted(), expected=export.revision)
