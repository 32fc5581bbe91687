"""What the ledger compares of a lease by delegation: each delegation up to the root, and what began it.

A row that was stopped, changed or deleted since the lease was judged has another revision, or none.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from evergrant_server.core.ids import AppId, Tenant

_ROWS = "SELECT id, tenant, revision FROM {table} WHERE id {among}"
_SQL = " UNION ALL ".join(_ROWS.replace("{table}", table) for table in ("delegation", "delegation_rule"))
_LITE = _SQL.replace("{among}", "IN (SELECT value FROM json_each(:ids))")
_PG = _SQL.replace("{among}", "= ANY($1::varchar[])")

Revisions = Mapping[str, tuple[object, ...]]  # (id, tenant, revision) by the id


class DelegatedUse(NamedTuple):
    """The chain of one lease, with the revisions it was judged by; for the record, who acts for whom.

    `rows` are delegations and the rule of their root; `apps` those that the caller acts under.
    """

    rows: tuple[tuple[str, int], ...]
    apps: tuple[tuple[AppId, int], ...]
    recorded: Mapping[str, object]

    @property
    def named(self) -> set[str]:
        """What mustn't change until the lease is committed."""
        return {id for id, _ in self.rows} | {id for id, _ in self.apps}

    def holds(self, tenant: Tenant, rows: Revisions, apps: Revisions) -> bool:
        """Whether all of it is as it was. `apps` have `disabled` behind their revision."""
        return all(rows.get(id) == (id, tenant, revision) for id, revision in self.rows) and all(
            apps.get(id) == (id, tenant, revision, False) for id, revision in self.apps
        )


def rows_sqlite(raw: Any, uses: Sequence[DelegatedUse]) -> Revisions:
    """The rows that these leases name. A batch without delegations asks for nothing."""
    return _by_id(raw.execute(_LITE, {"ids": json.dumps(_ids(uses))})) if uses else {}


async def rows_postgresql(raw: Any, uses: Sequence[DelegatedUse]) -> Revisions:
    return _by_id(await raw.fetch(_PG, _ids(uses))) if uses else {}


def _ids(uses: Sequence[DelegatedUse]) -> list[str]:
    return sorted({id for use in uses for id, _ in use.rows})


def _by_id(rows: Iterable[Any]) -> Revisions:
    return {row[0]: tuple(row) for row in rows}
