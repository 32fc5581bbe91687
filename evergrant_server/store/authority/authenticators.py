"""Authenticators of rows that carry authority: apps, permits, connections' names, integrations, consents.

Write access to the database alone gives no token: a row whose `mac` isn't of this key ring and these
columns is refused by name, with the failure `authority_broken`. Column `mac`: the signature of API, worker or
operator, which a gateway verifies and can't make; GATEWAY_MAY_WRITE has the rows that a gateway signs
(ADR 0064). Columns `destination_mac` and `account_mac`: a key of the workers, because they decide where
refresh tokens are sent, and whose account may come (ADR 0025).
"""

import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Executable, Select
from sqlmodel import col

from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.grant import Grant
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import Tenant
from evergrant_server.core.integrations import Integration
from evergrant_server.core.model import CheckedModel
from evergrant_server.crypto import KeyRing, Role, Signer
from evergrant_server.store.authority.covered_fields import COVERED, GATEWAY_MAY_WRITE
from evergrant_server.store.database.columns import IdTable, Row, table_of
from evergrant_server.store.database.engine import DatabaseConnection
from evergrant_server.store.database.rows import (
    Id,
    Model,
    ModelRepository,
    Values,
    fetch_all,
    find_one,
    read_model,
)
from evergrant_server.store.revived_rows import put_back

CONNECTION_NAMES = (  # and `target`, and `expected_account` where the app has said one
    *("tenant", "id", "integration_id", "integration", "provider", "subject", "label", "flow"),
    *("source", "source_app", "consented_with"),
)
_DESTINATION = {"tenant", "id", "provider", "issuer", "params", "endpoints"}  # where its secrets are sent


def connection_parts(names: Mapping[str, Any], target: Mapping[str, Any]) -> tuple[str, ...]:
    """What the authenticator of a connection with these values of CONNECTION_NAMES covers. For the lease
    path: no model is made."""
    set_target = {name: value for name, value in target.items() if value}
    parts = [names[name] or "" for name in CONNECTION_NAMES]
    expected = names["expected_account"]
    account = [json.dumps(expected, sort_keys=True)] if expected else []
    return ("Connection", *parts, json.dumps(set_target, sort_keys=True), *account)


def grant_parts(tenant: str, connection_id: str, grant: Grant, slot: str) -> tuple[str | int, ...]:
    """What the authenticator of a grant's row covers: what its token may be used for, and where. Its tokens
    are sealed, and a later expiry lengthens no token."""
    options = [option.model_dump(mode="json") for option in grant.options]
    facts = (grant.scopes, grant.metadata, grant.access_generation, options)
    content = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return ("connection_grant", tenant, connection_id, slot, grant.generation, grant.token_type, content)


def require_grant(
    ring: KeyRing, tenant: str, connection_id: str, grant: Grant, slot: str, mac: str | None
) -> None:
    """Raise Failure AUTHORITY_BROKEN unless a worker, the API or an operator wrote this grant."""
    if ring.signer(mac, *grant_parts(tenant, connection_id, grant, slot)) is not Signer.AUTHORITY:
        raise authority_broken("connection_grant", connection_id)


def row_mac(ring: KeyRing, model: CheckedModel) -> str:
    """The authenticator of the row of this value.

    Raises Failure KEY_UNAVAILABLE where a gateway may not write it: no process would accept its signature.
    """
    if ring.role is Role.GATEWAY and not _is_for_gateways(model):
        raise Failure(ErrorCode.KEY_UNAVAILABLE, f"A gateway signs no {type(model).__name__} like this one.")
    return ring.sign(*_signed_parts(model))


def authentic(ring: KeyRing, model: type[Model], table: type[Row], row: Values) -> Model:
    """The row's value. Raises Failure AUTHORITY_BROKEN that names it, INTERNAL when it can't be read."""
    value = read_model(model, table, row)
    require_signature(ring, value, table, row)
    return value


def require_signature(ring: KeyRing, model: CheckedModel, table: type[Row], row: Mapping[str, Any]) -> None:
    """Raise Failure AUTHORITY_BROKEN that names the row unless who signed it may write it."""
    require_signed(ring, _signed_parts(model), table, row, gateway_may=_is_for_gateways(model))


def require_signed(
    ring: KeyRing,
    parts: tuple[str | int, ...],
    table: type[Row],
    row: Mapping[str, Any],
    *,
    gateway_may: bool,
) -> None:
    """As `require_signature`, for what a row's authenticator covers."""
    signer = ring.signer(row["mac"], *parts)
    if signer is None or (signer is Signer.GATEWAY and not gateway_may):
        raise authority_broken(table_of(table).name, row["id"])


def _signed_parts(model: CheckedModel) -> tuple[str, ...]:
    if isinstance(model, Connection):
        return connection_parts(vars(model), model.target.model_dump(mode="json"))
    return (type(model).__name__, _content(model, COVERED[type(model)]))


def _is_for_gateways(model: CheckedModel) -> bool:
    may_write = GATEWAY_MAY_WRITE.get(type(model))
    return may_write is not None and may_write(model)


class BrokenRow(NamedTuple):
    """A row that isn't Evergrant's, and the failure with which it is refused."""

    tenant: Tenant
    failure: Failure

    @property
    def table(self) -> str:
        return self.failure.context.get("table", "")

    @property
    def row(self) -> str:
        return self.failure.context.get("row", "")


def authority_broken(
    table: str, row: str, why: str = "wasn't written by Evergrant, or was changed"
) -> Failure:
    """The failure that names the row."""
    return Failure(ErrorCode.AUTHORITY_BROKEN, f"{row} in {table} {why}.", table=table, row=row)


def was_put_back(table: type[Row], row: str) -> Failure:
    """The failure of a row that has ended, and is there as it was before."""
    why = "has ended, as the audit log tells, and was put back as it was before"
    return authority_broken(table_of(table).name, row, why)


async def require_none_put_back(
    connection: DatabaseConnection, table: type[Row], models: Sequence[CheckedModel]
) -> None:
    """Raise Failure AUTHORITY_BROKEN for one of these rows of a tenant that was put back after its end, and
    as `require_as_read`."""
    for id in await put_back(connection, models):
        await require_as_read(connection, table, next(model for model in models if vars(model)["id"] == id))
        raise was_put_back(table, id)


async def require_as_read(connection: DatabaseConnection, table: type[Row], model: CheckedModel) -> None:
    """Raise Failure STORE_CONFLICT when the row has changed since it was read: what contradicts it may be
    newer."""
    if not await is_as_read(connection, table, vars(model)):
        id = vars(model)["id"]
        raise Failure(ErrorCode.STORE_CONFLICT, f"{id} has changed since it was read.", row=id)


async def is_as_read(connection: DatabaseConnection, table: type[Row], read: Mapping[str, Any]) -> bool:
    """Whether the row still has the revision that was read: a later statement, of the same transaction too
    (READ COMMITTED), sees what was committed in between."""
    row = await find_one(connection, table, tenant=read["tenant"], id=read["id"])
    return row is not None and row["revision"] == read["revision"]


def new_destination_mac(ring: KeyRing, integration: Integration, hosts: str | None) -> str:
    """The workers' first authenticator of where an integration's secrets are sent: `<serial>.<mac>`.

    `hosts` are the column of pinned hosts, here and below.

    Grants name the serial, so that a new first authenticator, of another place, isn't that of old grants.
    """
    return _destination_mac(ring, integration, secrets.token_hex(8), hosts)


def accepted_destination_mac(
    ring: KeyRing, integration: Integration, made: str | None, hosts: str | None
) -> str:
    """The authenticator of where its secrets are sent now; its grants stay good."""
    if not made:
        return new_destination_mac(ring, integration, hosts)
    return _destination_mac(ring, integration, _serial(made), hosts)


def moved_destination_mac(
    ring: KeyRing, before: Integration, mac: str, after: Integration, hosts: str | None
) -> str:
    """The authenticator after a worker has changed the endpoints. Raises Failure AUTHORITY_BROKEN."""
    require_destination(ring, before, mac, hosts)
    return _destination_mac(ring, after, _serial(mac), hosts)


def require_destination(ring: KeyRing, integration: Integration, mac: str | None, hosts: str | None) -> None:
    """Raise Failure AUTHORITY_BROKEN unless a worker wrote where this integration's secrets are sent."""
    serial, _, made = (mac or "").partition(".")
    if not ring.is_worker_mac(made, *_destination_parts(integration, serial, hosts)):
        why = "sends its secrets elsewhere than a worker has written"
        raise authority_broken("integration", integration.id, why)


def has_same_destination(before: Integration, after: Integration) -> bool:
    return _content(before, _DESTINATION) == _content(after, _DESTINATION)


def grant_mac(ring: KeyRing, connection: Connection, destination_mac: str, hosts: str | None) -> str:
    """The workers' authenticator of which integration a connection's grants are of, and of their hosts."""
    return ring.worker_mac(*_grant_parts(connection, destination_mac, hosts))


def require_own_destination(
    ring: KeyRing, connection: Connection, mac: str | None, destination_mac: str, hosts: str | None
) -> None:
    """Raise Failure AUTHORITY_BROKEN unless a worker wrote that the grants are of this destination."""
    if not ring.is_worker_mac(mac, *_grant_parts(connection, destination_mac, hosts)):
        why = "holds a grant that is of another integration or another destination"
        raise authority_broken("connection_grant", connection.id, why)


def account_mac(ring: KeyRing, connection: Connection, pin: str | None) -> str:
    """The workers' authenticator of the account that a connection is pinned to; None: of none."""
    return ring.worker_mac(*_account_parts(connection, pin))


def require_own_account(ring: KeyRing, connection: Connection, mac: str | None, pin: str | None) -> None:
    """Raise Failure AUTHORITY_BROKEN unless a worker wrote this pin. A connection without a first grant
    has neither."""
    if mac is None and pin is None and not connection.generation:
        return
    if not ring.is_worker_mac(mac, *_account_parts(connection, pin)):
        why = "isn't the account that a worker has pinned the connection to"
        raise authority_broken("account_identifier", connection.id, why)


def _account_parts(connection: Connection, pin: str | None) -> tuple[str, ...]:
    return ("account", connection.tenant, connection.id, pin or "")


def _destination_mac(ring: KeyRing, integration: Integration, serial: str, hosts: str | None) -> str:
    return f"{serial}.{ring.worker_mac(*_destination_parts(integration, serial, hosts))}"


def _destination_parts(integration: Integration, serial: str, hosts: str | None) -> tuple[str, ...]:
    return ("destination", serial, _content(integration, _DESTINATION), *_hosts_part(hosts))


def _grant_parts(connection: Connection, destination_mac: str, hosts: str | None) -> tuple[str, ...]:
    names = ("grant", connection.tenant, connection.id, connection.integration_id, _serial(destination_mac))
    return (*names, *_hosts_part(hosts))


def _hosts_part(hosts: str | None) -> tuple[str, ...]:
    """None: the row was accepted without hosts, and nothing is sent before they are pinned."""
    return () if hosts is None else (hosts,)


def _serial(destination_mac: str) -> str:
    return destination_mac.partition(".")[0]


def _content(model: CheckedModel, names: set[str]) -> str:
    """One JSON text for the values of these fields."""
    values = model.model_dump(mode="json", include=names, exclude_defaults=True)
    return json.dumps(values, sort_keys=True, separators=(",", ":"))


class AuthenticatedRepository(ModelRepository[Model, Id]):
    """The rows of one table with authenticators: written with every change, checked with every read.

    Pages and batches aren't checked: one broken row must stop neither a list nor a pass over all rows.
    """

    def __init__(self, connection: DatabaseConnection, ring: KeyRing) -> None:
        super().__init__(connection)
        self._ring = ring

    @classmethod
    def tables_below(cls) -> dict[type[IdTable], type[CheckedModel]]:
        """The table of every repository of this kind that has been imported, and the value of its rows."""
        below: dict[type[IdTable], type[CheckedModel]] = {}
        for repository in cls.__subclasses__():
            below |= {getattr(repository, "_table"): getattr(repository, "_model")}  # noqa: B009  # of a class
            below |= repository.tables_below()
        return below

    async def _insert(self, model: Model, **columns: Any) -> bool:
        return await super()._insert(model, mac=row_mac(self._ring, model), **columns)

    async def _change(self, model: Model, expected: int, **columns: Any) -> Model:
        return await super()._change(model, expected, mac=row_mac(self._ring, model), **columns)

    async def _one(self, **equal: Any) -> Model | None:
        row = await find_one(self._connection, self._table, **equal)
        return None if row is None else (await self._current([self._authentic(row)]))[0]

    async def _all(self, query: Executable, parameters: Values | None = None) -> list[Model]:
        rows = await fetch_all(self._connection, query, parameters)
        return await self._current([self._authentic(row) for row in rows])

    async def _current(self, models: list[Model]) -> list[Model]:
        """The rows of one tenant. Raises as `require_none_put_back`."""
        await require_none_put_back(self._connection, self._table, models)
        return models

    async def _page(self, query: Select[Any], by: str, after: str | None, limit: int) -> list[Model]:
        column = col(getattr(self._table, by))
        if after is not None:
            query = query.where(column > after)
        return await self._all_unchecked(query.order_by(column).limit(limit))

    async def _one_unchecked(self, **equal: Any) -> Model | None:
        return await super()._one(**equal)

    async def _all_unchecked(self, query: Executable) -> list[Model]:
        return await super()._all(query)

    def _authentic(self, row: Values) -> Model:
        return authentic(self._ring, self._model, self._table, row)
