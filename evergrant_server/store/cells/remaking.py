"""Rows of another cell: verified with the keys of the cell that wrote them, and signed with this one's.

A row that was altered in the other cell's database, or on its way, is refused by name. Where a refresh token
may be sent and whose account it is was written by a worker there, and is written by a worker here (ADR 0025).
"""

from collections.abc import Mapping
from typing import Any

from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.grant import NARROWED
from evergrant_server.core.errors import Failure
from evergrant_server.core.ids import Tenant
from evergrant_server.core.integrations import Integration
from evergrant_server.crypto import KeyRing
from evergrant_server.store.authority.authenticators import (
    accepted_destination_mac,
    account_mac,
    authority_broken,
    grant_mac,
    grant_parts,
    require_destination,
    require_grant,
    require_own_account,
    require_own_destination,
    require_signature,
    row_mac,
)
from evergrant_server.store.authority.scan import ALL
from evergrant_server.store.cells.rows import PINNED, MovedRows, decoded
from evergrant_server.store.connections.grants import grant_of
from evergrant_server.store.connections.tables import FINAL_STATES, ConnectionGrantRow, ConnectionRow
from evergrant_server.store.database.columns import table_of
from evergrant_server.store.database.rows import Values, read_model

_SIGNED = {table_of(row).name: (row, model) for row, model in ALL.items()}
_CONNECTION, _GRANT = (table_of(row).name for row in (ConnectionRow, ConnectionGrantRow))
_OVER = frozenset({*FINAL_STATES, LifecycleState.REVOKING.value})  # nothing is sent for it but its revocation


class RemadeRows:
    """Makes rows of another cell this one's. `origin` verifies what that one wrote."""

    def __init__(self, ring: KeyRing, origin: KeyRing) -> None:
        self._ring, self._origin = ring, origin

    async def remade(
        self, rows: MovedRows, tenant: Tenant, table: str, received: list[Values]
    ) -> list[Values]:
        """The rows of the other cell's answer, with this cell's authenticators.

        Raises Failure AUTHORITY_BROKEN for a row of another tenant, or that nobody of the other cell wrote.
        """
        values = [decoded(table, row) for row in received]
        if any(row["tenant"] != tenant for row in values):
            raise authority_broken(table, tenant, "has a row of another tenant")
        pins = {row["id"]: row.get(PINNED) for row in received} if table == _CONNECTION else {}
        if table == _GRANT:
            owners = await rows.destinations(tenant, {row["connection_id"] for row in values})
            return [self._grant(row, owners.get(row["connection_id"])) for row in values]
        if table not in _SIGNED:
            return values
        return [self._signed(table, row, pins) for row in values]

    def _signed(self, table: str, row: Values, pins: Mapping[str, str | None]) -> Values:
        kind, model = _SIGNED[table]
        value = read_model(model, kind, row)
        require_signature(self._origin, value, kind, row)
        made: dict[str, Any] = {"mac": row_mac(self._ring, value)}
        if isinstance(value, Integration) and row["destination_mac"]:
            hosts = row["pinned_hosts"]
            require_destination(self._origin, value, row["destination_mac"], hosts)
            made["destination_mac"] = accepted_destination_mac(
                self._ring, value, row["destination_mac"], hosts
            )
        if isinstance(value, Connection):
            made["account_mac"] = self._account(value, row["account_mac"], pins.get(value.id))
        return {**row, **made}

    def _account(self, connection: Connection, mac: str | None, pin: str | None) -> str | None:
        try:
            require_own_account(self._origin, connection, mac, pin)
        except Failure:
            if connection.state.value in _OVER:
                return None
            raise
        return None if mac is None else account_mac(self._ring, connection, pin)

    def _grant(self, row: Values, owner: Values | None) -> Values:
        tenant, id, slot = row["tenant"], row["connection_id"], row["slot"]
        if owner is None:
            raise authority_broken(_GRANT, id, "is of no connection")
        grant = grant_of(row)
        is_over = owner["state"] in _OVER
        if not is_over or row["mac"] is not None:
            require_grant(self._origin, tenant, id, grant, slot, row["mac"])
        made: dict[str, Any] = {"mac": self._ring.sign(*grant_parts(tenant, id, grant, slot))}
        if not slot.startswith(NARROWED) and not (is_over and row["destination_mac"] is None):
            names: dict[str, Any] = {"tenant": tenant, "integration_id": owner["integration_id"]}
            connection = Connection.model_construct(id=id, **names)
            destination, hosts = owner["made"] or "", row["pinned_hosts"]
            require_own_destination(self._origin, connection, row["destination_mac"], destination, hosts)
            made["destination_mac"] = grant_mac(self._ring, connection, destination, hosts)
        return {**row, **made}
