"""When each key and permit was last used, to the minute: a part of a lease batch."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from evergrant_server.core.ids import KeyId, PermitId, Tenant

LastUses = Mapping[tuple[Tenant, KeyId | PermitId], datetime]

_PERMIT = "per_"
_TABLES = (("app_key_use", "key_id"), ("permit_use", "permit_id"))


def _statement(table: str, id: str, values: str) -> str:
    return (
        f"INSERT INTO {table} (tenant, {id}, used_at, revision) {values}"
        f" ON CONFLICT (tenant, {id}) DO UPDATE"
        f" SET used_at = excluded.used_at, revision = {table}.revision + 1"
        f" WHERE {table}.used_at < excluded.used_at"
    )


_PG_VALUES = "SELECT *, 1 FROM unnest($1::varchar[], $2::varchar[], $3::timestamptz[])"
_LITE = [_statement(*names, "VALUES (?, ?, ?, 1)") for names in _TABLES]
_PG = [_statement(*names, _PG_VALUES) for names in _TABLES]


def write_uses_sqlite(raw: Any, uses: LastUses) -> None:
    for statement, rows in zip(_LITE, _by_table(uses), strict=True):
        raw.executemany(statement, [(*key, sqlite_moment(at)) for *key, at in rows])


async def write_uses_postgresql(raw: Any, uses: LastUses) -> None:
    for statement, rows in zip(_PG, _by_table(uses), strict=True):
        if rows:
            await raw.execute(statement, *zip(*rows, strict=True))


def _by_table(uses: LastUses) -> tuple[list[tuple[str, str, datetime]], ...]:
    """In order, so that two ledgers never wait crosswise."""
    found: tuple[list[tuple[str, str, datetime]], ...] = ([], [])
    for (tenant, id), at in sorted(uses.items()):
        found[id.startswith(_PERMIT)].append((tenant, id, at))
    return found


def sqlite_moment(at: datetime) -> str:
    """As SQLAlchemy writes it: UTC, without the zone, always with microseconds."""
    return at.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")
