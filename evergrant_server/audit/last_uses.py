"""When each key, permit and leased connection was last used: a part of a lease batch."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

# by tenant and id of a key or permit, or by tenant, app and connection of a lease
LastUses = Mapping[tuple[str, ...], datetime]

_TABLES = {
    "key": ("app_key_use", ("key_id",)),
    "per": ("permit_use", ("permit_id",)),
    "app": ("lease_use", ("app_id", "connection_id")),
}
_OF_KEYS = "key"  # credentials and tokens authenticate requests as keys do


def _statement(table: str, ids: tuple[str, ...], values: str) -> str:
    key = ", ".join(("tenant", *ids))
    return (
        f"INSERT INTO {table} ({key}, used_at, revision) {values}"
        f" ON CONFLICT ({key}) DO UPDATE"
        f" SET used_at = excluded.used_at, revision = {table}.revision + 1"
        f" WHERE {table}.used_at < excluded.used_at"
    )


def _pg_values(ids: tuple[str, ...]) -> str:
    arrays = ", ".join(f"${place}::varchar[]" for place in range(1, len(ids) + 2))
    return f"SELECT *, 1 FROM unnest({arrays}, ${len(ids) + 2}::timestamptz[])"


_LITE = {
    kind: _statement(table, ids, f"VALUES ({'?, ' * (len(ids) + 2)}1)")
    for kind, (table, ids) in _TABLES.items()
}
_PG = {kind: _statement(table, ids, _pg_values(ids)) for kind, (table, ids) in _TABLES.items()}


def write_uses_sqlite(raw: Any, uses: LastUses) -> None:
    for kind, rows in _by_table(uses):
        raw.executemany(_LITE[kind], [(*key, sqlite_moment(at)) for *key, at in rows])


async def write_uses_postgresql(raw: Any, uses: LastUses) -> None:
    for kind, rows in _by_table(uses):
        await raw.execute(_PG[kind], *zip(*rows, strict=True))


def _by_table(uses: LastUses) -> Iterable[tuple[str, list[tuple[Any, ...]]]]:
    """The rows of each table, in order, so that two ledgers never wait crosswise."""
    rows_of: dict[str, list[tuple[Any, ...]]] = {}
    for key, at in sorted(uses.items()):
        kind = key[1].partition("_")[0]
        rows_of.setdefault(kind if kind in _TABLES else _OF_KEYS, []).append((*key, at))
    return sorted(rows_of.items())


def sqlite_moment(at: datetime) -> str:
    """As SQLAlchemy writes it: UTC, without the zone, always with microseconds."""
    return at.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")
