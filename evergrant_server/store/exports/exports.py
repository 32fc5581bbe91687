"""Exports and their lines. A line is a JWE to a key that this store doesn't have."""

from sqlalchemy import delete, select
from sqlmodel import col

from evergrant_server.core.export import Export
from evergrant_server.core.ids import ExportId, Tenant
from evergrant_server.store.database.rows import (
    Repository,
    already_exists,
    column_values,
    columns_equal,
    compare_and_set,
    find_model,
    insert,
)
from evergrant_server.store.exports.tables import ExportLineRow, ExportRow


class Exports(Repository):
    """Exports of one transaction."""

    async def add(self, export: Export) -> None:
        """Add an export. Raises Failure ALREADY_EXISTS."""
        if not await insert(self._connection, ExportRow, column_values(export)):
            raise already_exists(f"Export {export.id}")

    async def get(self, tenant: Tenant, id: ExportId) -> Export | None:
        return await find_model(self._connection, Export, ExportRow, tenant=tenant, id=id)

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
        await self._connection.execute(delete(ExportLineRow).where(mine))
        return await self.replace(export.deleted(), expected=export.revision)

    async def replace(self, export: Export, *, expected: int) -> Export:
        key = {"tenant": export.tenant, "id": export.id}
        revision = await compare_and_set(self._connection, ExportRow, key, column_values(export), expected)
        return export.model_copy(update={"revision": revision})
