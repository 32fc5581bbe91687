"""All rows whose authenticator isn't good, and the command that accepts rows as they are.

Walks whole tables in pages: for an operator's command, not for a request. The tables are those of the
repositories that check authenticators.
"""

from collections.abc import AsyncIterator, Collection
from typing import Any

from sqlalchemy import select, tuple_, update
from sqlmodel import col

from evergrant_server.core.access import App, Effect
from evergrant_server.core.connections.account import PIN
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.grant import NARROWED
from evergrant_server.core.errors import Failure
from evergrant_server.core.events import WebhookEvent
from evergrant_server.core.ids import Tenant
from evergrant_server.core.integrations import Integration
from evergrant_server.core.model import CheckedModel
from evergrant_server.crypto import KeyPurpose, KeyRing
from evergrant_server.store.access import AppRow
from evergrant_server.store.authentication import AppTokenRow
from evergrant_server.store.authority.authenticators import (
    AuthenticatedRepository,
    BrokenRow,
    accepted_destination_mac,
    account_mac,
    authentic,
    grant_mac,
    grant_parts,
    is_as_read,
    require_destination,
    require_grant,
    require_own_account,
    require_own_destination,
    row_mac,
    was_put_back,
)
from evergrant_server.store.connections.account_identifiers import AccountIdentifierRow
from evergrant_server.store.connections.grants import grant_of
from evergrant_server.store.connections.tables import (
    FINAL_STATES,
    ConnectionGrantRow,
    ConnectionRow,
    ConsentRow,
)
from evergrant_server.store.database.columns import IdTable, table_of
from evergrant_server.store.database.engine import DatabaseConnection
from evergrant_server.store.database.rows import Values, columns_equal, fetch_all, read_model
from evergrant_server.store.integrations.tables import IntegrationRow
from evergrant_server.store.oauth.requests import (
    AuthorizationRequestRow,
    ClientConsentRow,
    SubjectSessionRow,
)
from evergrant_server.store.oauth.tables import (
    AccessTokenRow,
    AuthorizationCodeRow,
    OAuthClientRow,
    RefreshTokenRow,
    TokenFamilyRow,
)
from evergrant_server.store.permits import PermitRow, Permits, require_denies
from evergrant_server.store.revived_rows import put_back
from evergrant_server.store.store import Store
from evergrant_server.store.webhooks import EventRow

# Not from a list: a table that a repository reads with authenticators is checked, shown and accepted.
_TABLES = {
    **AuthenticatedRepository.tables_below(),
    ConnectionRow: Connection,
    EventRow: WebhookEvent,
}
ALL: dict[type[IdTable], type[CheckedModel]] = dict(
    sorted(_TABLES.items(), key=lambda pair: table_of(pair[0]).name)
)
# as many rows as there are connections, subjects or requests: for `authority verify`, not for `doctor`
_MANY = {
    *(AccessTokenRow, AppTokenRow, AuthorizationCodeRow, AuthorizationRequestRow, ClientConsentRow),
    *(
        ConnectionRow,
        ConsentRow,
        EventRow,
        OAuthClientRow,
        RefreshTokenRow,
        SubjectSessionRow,
        TokenFamilyRow,
    ),
}
CONFIGURATION = {table: model for table, model in ALL.items() if table not in _MANY}
_PAGE_ROWS = 500


async def broken_configuration(store: Store) -> list[BrokenRow]:
    """Each broken row of tenants, apps, permits, people, integrations, definitions, exports, messages."""
    async with store.read() as tx:
        messages = [BrokenRow(message.tenant, message.failure) for message in await tx.outbox.broken()]
    return [row for table in CONFIGURATION async for row in _broken(store, table)] + messages


async def broken_connections(store: Store) -> AsyncIterator[BrokenRow]:
    """Each connection with broken names, each broken consent, each pin of another account, and each grant of
    another destination.

    The last two need the refresh purpose, and are left out without it.
    """
    for table in ALL.keys() - CONFIGURATION.keys():
        async for row in _broken(store, table):
            yield row
    if not store.ring.holds(KeyPurpose.REFRESH):
        return
    async for page in _pins(store):
        for row in page:
            try:
                require_own_account(store.ring, _pinned(row), row["account_mac"], row["pin"])
            except Failure as failure:
                yield BrokenRow(row["tenant"], failure)
    after = ("", "", "")
    while page := await _grants(store, after):
        for row in page:
            try:
                _require_grant(store.ring, row)
            except Failure as failure:
                yield BrokenRow(row["tenant"], failure)
        after = _place_of(page[-1])


async def accept(store: Store, ids: Collection[str] | None = None) -> list[str]:
    """Write the authenticators of these rows as they are now (None: of all); returns their ids.

    Integrations come before the grants of their connections. Needs the refresh purpose.
    """
    accepted = [row for table in ALL for row in await _accept_table(store, table, ids)]
    after = ("", "", "")
    while page := await _grants(store, after, ids):
        async with store.write() as tx:
            for row in page:
                await _accept_grant(tx.connection, store.ring, row)
        after = _place_of(page[-1])
    async for page in _pins(store, ids):
        async with store.write() as tx:
            for row in page:
                made = account_mac(store.ring, _pinned(row), row["pin"])
                await _write(tx.connection, row, account_mac=made)
    return accepted + await _accept_messages(store, ids)


async def _accept_messages(store: Store, ids: Collection[str] | None = None) -> list[str]:
    """As `accept`, for messages of the outbox that wait or were refused."""
    async with store.write() as tx:
        return await tx.outbox.accept(ids)


async def _accept_table(store: Store, table: type[IdTable], ids: Collection[str] | None) -> list[str]:
    accepted: list[str] = []
    after = ("", "")
    while page := await _page(store, table, after, ids):
        async with store.write() as tx:
            for row in page:
                value = read_model(ALL[table], table, row)
                await _accept(tx.connection, store.ring, table, value, row)
        accepted += [row["id"] for row in page]
        after = (page[-1]["tenant"], page[-1]["id"])
    return accepted


async def _denies(store: Store, apps: list[Values]) -> dict[str, list[str]]:
    """The ids of these apps' permits that deny, by the app's id."""
    permit = table_of(PermitRow).c
    deny = (permit.effect == Effect.DENY.value) & permit.app_id.in_([row["id"] for row in apps])
    denies: dict[str, list[str]] = {}
    async with store.read() as tx:
        for row in await fetch_all(tx.connection, select(permit.app_id, permit.id).where(deny)):
            denies.setdefault(row["app_id"], []).append(row["id"])
    return denies


async def _broken(store: Store, table: type[IdTable]) -> AsyncIterator[BrokenRow]:
    """The rows of a table that aren't good, each still as it was read."""
    after = ("", "")
    while page := await _page(store, table, after):
        denies = await _denies(store, page) if table is AppRow else {}
        good: dict[Tenant, list[CheckedModel]] = {}
        broken: list[tuple[Values, Failure]] = []
        for row in page:
            try:
                value = authentic(store.ring, ALL[table], table, row)
                made = row.get("destination_mac")
                if isinstance(value, App):
                    require_denies(value, denies.get(value.id, ()))
                if isinstance(value, Integration) and made and store.ring.holds(KeyPurpose.REFRESH):
                    require_destination(store.ring, value, made, row["pinned_hosts"])
                good.setdefault(row["tenant"], []).append(value)
            except Failure as failure:
                broken.append((row, failure))
        rows = {(row["tenant"], row["id"]): row for row in page}
        async with store.read() as tx:
            for tenant, models in good.items():
                ended = await put_back(tx.connection, models)
                broken += [(rows[tenant, id], was_put_back(table, id)) for id in ended]
            still = [
                BrokenRow(row["tenant"], failure)
                for row, failure in broken
                if await is_as_read(tx.connection, table, row)
            ]
        for row in still:
            yield row
        after = (page[-1]["tenant"], page[-1]["id"])


async def _page(
    store: Store, table: type[IdTable], after: tuple[str, str], ids: Collection[str] | None = None
) -> list[Values]:
    key = (col(table.tenant), col(table.id))
    query = select(table).where(tuple_(*key) > tuple_(*after)).order_by(*key).limit(_PAGE_ROWS)
    if ids is not None:
        query = query.where(col(table.id).in_(ids))
    async with store.read() as tx:
        return await fetch_all(tx.connection, query)


def _require_grant(ring: KeyRing, row: Values) -> None:
    slot = row["slot"]
    require_grant(ring, row["tenant"], row["connection_id"], grant_of(row), slot, row["mac"])
    if not slot.startswith(NARROWED):
        mac, hosts = row["destination_mac"], row["pinned_hosts"]
        require_own_destination(ring, _owner(row), mac, row["made"] or "", hosts)


def _place_of(grant: Values) -> tuple[str, str, str]:
    return grant["tenant"], grant["connection_id"], grant["slot"]


async def _grants(
    store: Store, after: tuple[str, str, str], ids: Collection[str] | None = None
) -> list[Values]:
    """Grants of connections that haven't ended, with their connection's and integration's columns."""
    g, c, i = (table_of(table).c for table in (ConnectionGrantRow, ConnectionRow, IntegrationRow))
    key = (g.tenant, g.connection_id, g.slot)
    query = (
        select(table_of(ConnectionGrantRow), c.integration_id, i.destination_mac.label("made"))
        .join_from(table_of(ConnectionGrantRow), table_of(ConnectionRow))
        .join(table_of(IntegrationRow), (i.tenant == c.tenant) & (i.id == c.integration_id))
        .where(tuple_(*key) > tuple_(*after), c.state.not_in(FINAL_STATES))
        .order_by(*key)
        .limit(_PAGE_ROWS)
    )
    if ids is not None:
        query = query.where(g.connection_id.in_(ids))
    async with store.read() as tx:
        return await fetch_all(tx.connection, query)


async def _pins(store: Store, ids: Collection[str] | None = None) -> AsyncIterator[list[Values]]:
    """Pages of connections that are neither revoking nor ended, with their pins."""
    c, pin = table_of(ConnectionRow).c, table_of(AccountIdentifierRow).c
    same = (pin.tenant == c.tenant) & (pin.connection_id == c.id) & (pin.name == PIN)
    query = (
        select(table_of(ConnectionRow), pin.identifier_hash.label("pin"))
        .join_from(table_of(ConnectionRow), table_of(AccountIdentifierRow), same, isouter=True)
        .where(c.state.not_in((*FINAL_STATES, LifecycleState.REVOKING)))
        .order_by(c.tenant, c.id)
        .limit(_PAGE_ROWS)
    )
    if ids is not None:
        query = query.where(c.id.in_(ids))
    after = ("", "")
    while True:
        async with store.read() as tx:
            page = await fetch_all(tx.connection, query.where(tuple_(c.tenant, c.id) > tuple_(*after)))
        if not page:
            return
        yield page
        after = (page[-1]["tenant"], page[-1]["id"])


def _pinned(row: Values) -> Connection:
    names = {name: row[name] for name in ("tenant", "id", "generation")}
    return Connection.model_construct(None, **names)


async def _write(connection: DatabaseConnection, row: Values, **made: Any) -> None:
    mine = columns_equal(ConnectionRow, tenant=row["tenant"], id=row["id"], revision=row["revision"])
    await connection.execute(update(ConnectionRow).where(mine).values(made))


def _owner(row: Values) -> Connection:
    names: dict[str, Any] = {"tenant": row["tenant"], "integration_id": row["integration_id"]}
    return Connection.model_construct(id=row["connection_id"], **names)


async def _accept(
    connection: DatabaseConnection, ring: KeyRing, table: type[IdTable], value: CheckedModel, row: Values
) -> None:
    made: Values = {}
    if isinstance(value, App):
        denies = tuple(sorted(await Permits(connection, ring).denies(value.tenant, value.id)))
        value, made["denies"] = value.__replace__(denies=denies), list(denies)
    made["mac"] = row_mac(ring, value)
    if isinstance(value, Integration):
        hosts = row["pinned_hosts"]
        made["destination_mac"] = accepted_destination_mac(ring, value, row["destination_mac"], hosts)
    mine = columns_equal(table, tenant=row["tenant"], id=row["id"], revision=row["revision"])
    await connection.execute(update(table).where(mine).values(made))


async def _accept_grant(connection: DatabaseConnection, ring: KeyRing, row: Values) -> None:
    key = {name: row[name] for name in ("tenant", "connection_id", "slot", "revision")}
    parts = grant_parts(row["tenant"], row["connection_id"], grant_of(row), row["slot"])
    made: Values = {"mac": ring.sign(*parts)}
    if not row["slot"].startswith(NARROWED):
        made["destination_mac"] = grant_mac(ring, _owner(row), row["made"], row["pinned_hosts"])
    await connection.execute(
        update(ConnectionGrantRow).where(columns_equal(ConnectionGrantRow, **key)).values(made)
    )
