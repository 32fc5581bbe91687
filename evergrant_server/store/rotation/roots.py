"""What stands under a root key: tenants' keys, and the workers' authenticators that name it.

Of every tenant, in the order of tenants and ids. By compare-and-set on the values: no revision moves.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Select,
    Table,
    and_,
    bindparam,
    func,
    literal,
    or_,
    select,
    tuple_,
    update,
)

from evergrant_server.core.connections.account import PIN
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.errors import Failure
from evergrant_server.core.integrations import Integration
from evergrant_server.crypto import KeyPurpose, KeyRing, SealingKey
from evergrant_server.store.authority.authenticators import (
    accepted_destination_mac,
    account_mac,
    authentic,
    grant_mac,
    require_destination,
    require_own_account,
    require_own_destination,
)
from evergrant_server.store.connections.account_identifiers import AccountIdentifierRow
from evergrant_server.store.connections.tables import FINAL_STATES, ConnectionGrantRow, ConnectionRow
from evergrant_server.store.database.columns import table_of
from evergrant_server.store.database.engine import DatabaseConnection
from evergrant_server.store.database.rows import Values, fetch_all
from evergrant_server.store.integrations.tables import IntegrationRow
from evergrant_server.store.keys import NO_CONNECTION
from evergrant_server.store.rotation.resealing import Moved
from evergrant_server.store.rotation.tenant_keys import KEYS, place_of, sealer_of

_INTEGRATIONS, _GRANTS = table_of(IntegrationRow), table_of(ConnectionGrantRow)
_CONNECTIONS, _PINS = table_of(ConnectionRow), table_of(AccountIdentifierRow)
_K, _I, _G, _C, _P = KEYS.c, _INTEGRATIONS.c, _GRANTS.c, _CONNECTIONS.c, _PINS.c


class _Place(NamedTuple):
    """One kind of what stands under a root: its table and column, the rows with what is needed of them, and
    the value that a row has under the current root."""

    table: Table
    column: str
    rows: Select[Any]
    renewed: Callable[[KeyRing, Values], Any]


def _renewed_key(ring: KeyRing, row: Values) -> Any:
    purpose, place = KeyPurpose(row["purpose"]), place_of(row)
    key: SealingKey = ring.unwrap(purpose, place, row["id"], row["sealed_key"])
    return ring.wrap(purpose, place, key)


def _renewed_destination(ring: KeyRing, row: Values) -> str:
    integration = authentic(ring, Integration, IntegrationRow, row)
    require_destination(ring, integration, row["destination_mac"], row["pinned_hosts"])
    return accepted_destination_mac(ring, integration, row["destination_mac"], row["pinned_hosts"])


def _renewed_grant(ring: KeyRing, row: Values) -> str:
    names: dict[str, Any] = {"tenant": row["tenant"], "integration_id": row["integration_id"]}
    owner = Connection.model_construct(id=row["connection_id"], **names)
    made, hosts = row["made"] or "", row["pinned_hosts"]
    require_own_destination(ring, owner, row["destination_mac"], made, hosts)
    return grant_mac(ring, owner, made, hosts)


def _renewed_pin(ring: KeyRing, row: Values) -> str:
    names: dict[str, Any] = {name: row[name] for name in ("tenant", "id", "generation")}
    owner = Connection.model_construct(None, **names)
    require_own_account(ring, owner, row["account_mac"], row["pin"])
    return account_mac(ring, owner, row["pin"])


_OF_GRANT = and_(_C.tenant == _G.tenant, _C.id == _G.connection_id)
_OF_INTEGRATION = and_(_I.tenant == _C.tenant, _I.id == _C.integration_id)
_OF_PIN = and_(_P.tenant == _C.tenant, _P.connection_id == _C.id, _P.name == PIN)
_LIVES = _C.state.not_in(FINAL_STATES)
_TENANT_KEYS = _Place(KEYS, "sealed_key", select(KEYS).where(_K.connection_id == NO_CONNECTION), _renewed_key)
# what names a root of the refresh purpose: workers alone make and verify them
_MACS = (
    _Place(_INTEGRATIONS, "destination_mac", select(_INTEGRATIONS), _renewed_destination),
    _Place(
        _GRANTS,
        "destination_mac",
        select(_GRANTS, _C.integration_id, _I.destination_mac.label("made"))
        .join(_CONNECTIONS, _OF_GRANT)
        .join(_INTEGRATIONS, _OF_INTEGRATION)
        .where(_LIVES),
        _renewed_grant,
    ),
    _Place(
        _CONNECTIONS,
        "account_mac",
        select(_CONNECTIONS, _P.identifier_hash.label("pin")).outerjoin(_PINS, _OF_PIN).where(_LIVES),
        _renewed_pin,
    ),
)


class RootMoves:
    """Within one transaction. Needs the purpose of the root, whose current root is that of the ring."""

    def __init__(self, connection: DatabaseConnection, ring: KeyRing, now: datetime) -> None:
        self._connection, self._ring, self._now = connection, ring, now

    async def move(
        self, purposes: Sequence[KeyPurpose], root_id: str, after: Sequence[str], limit: int
    ) -> Moved:
        """Bring a page of what stands under other roots of these purposes under this one, the current one.

        `after` is the number of the place of the page before, and the row that it ended with.
        """
        places = _places(purposes)
        number, *behind = after or ("0",)
        place = places[int(number)]
        key = list(place.table.primary_key)
        query = place.rows.where(_under_another(place, purposes, root_id))
        if behind:
            query = query.where(tuple_(*key) > tuple_(*map(literal, behind)))
        rows = await fetch_all(self._connection, query.order_by(*key).limit(limit))
        moved = await self._renew(place, rows)
        if len(rows) == limit:
            last = (str(rows[-1][column.name]) for column in key)
            return moved._replace(after=(number, *last))
        following = int(number) + 1
        return moved._replace(after=(str(following),) if following < len(places) else None)

    async def tenant_keys_by_root(self) -> dict[str, int]:
        """How many tenants' keys each root wraps."""
        query = select(_K.wrapping_key_id, func.count().label("keys"))
        query = query.where(_K.connection_id == NO_CONNECTION).group_by(_K.wrapping_key_id)
        return {row["wrapping_key_id"]: row["keys"] for row in await fetch_all(self._connection, query)}

    async def count_all(self, purposes: Sequence[KeyPurpose]) -> int:
        """How much stands under roots of these purposes."""
        total = 0
        for place in _places(purposes):
            rows = place.rows.where(_under_another(place, purposes, ""))
            count = select(func.count()).select_from(rows.subquery())
            total += (await self._connection.execute(count)).scalar_one()
        return total

    async def count_left(self, purposes: Sequence[KeyPurpose], root_id: str) -> int:
        """How much stands under another root of these purposes: keys, and authenticators that are good."""
        left = 0
        for place in _places(purposes):
            query = place.rows.where(_under_another(place, purposes, root_id))
            count = select(func.count()).select_from(query.subquery())
            if not (await self._connection.execute(count)).scalar_one():
                continue
            for row in await fetch_all(self._connection, query):
                try:
                    place.renewed(self._ring, row)
                except Failure:
                    continue  # no root verifies it: nothing is lost with this one
                left += 1
        return left

    async def _renew(self, place: _Place, rows: Sequence[Values]) -> Moved:
        changes, broken = list[Values](), list[Failure]()
        key = list(place.table.primary_key)
        for row in rows:
            try:
                value = place.renewed(self._ring, row)
            except Failure as failure:
                broken.append(failure)
                continue
            named = {f"at_{column.name}": row[column.name] for column in key}
            change: Values = {**named, "old_value": row[place.column], "new_value": value}
            changes.append(change | ({"root": sealer_of(value)} if place is _TENANT_KEYS else {}))
        if changes:
            same = [column == bindparam(f"at_{column.name}") for column in key]
            unchanged = place.table.c[place.column] == bindparam("old_value")
            values: Values = {place.column: bindparam("new_value")}
            values |= {"wrapping_key_id": bindparam("root")} if place is _TENANT_KEYS else {}
            statement = update(place.table).where(*same, unchanged).values(values)
            await self._connection.execute(statement, changes)
        return Moved(len(changes), broken=tuple(broken))


def _places(purposes: Sequence[KeyPurpose]) -> tuple[_Place, ...]:
    return (_TENANT_KEYS, *_MACS) if KeyPurpose.REFRESH in purposes else (_TENANT_KEYS,)


def _under_another(place: _Place, purposes: Sequence[KeyPurpose], root_id: str) -> ColumnElement[bool]:
    if place is _TENANT_KEYS:
        mine = _K.purpose.in_([purpose.value for purpose in purposes])
        return and_(mine, _K.wrapping_key_id != root_id)
    column = place.table.c[place.column]
    # `<root id>.<hex>`, in an integration's behind the serial of its destination
    begins = column.startswith(f"{root_id}.", autoescape=True)
    return and_(column.is_not(None), ~or_(begins, column.contains(f".{root_id}.", autoescape=True)))
