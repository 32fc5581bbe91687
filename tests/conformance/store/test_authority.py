"""Rows that say who may do what, and where secrets go: changed by any other hand, they are broken."""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, insert, update

from evergrant_server.core.access import Action
from evergrant_server.core.connections.account import PIN, Account
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.grant import Origin, TokenSet
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.export import Export
from evergrant_server.core.ids import ExportId, new_id
from evergrant_server.core.integrations import Endpoints, Integration
from evergrant_server.core.secret import Secret
from evergrant_server.core.workloads.issuer import TrustedIssuer
from evergrant_server.crypto import KeyRing, Role
from evergrant_server.store import LeaseRows, Store, Transaction
from evergrant_server.store.access import AppRow
from evergrant_server.store.authority import scan
from evergrant_server.store.authority.scan import accept, broken_configuration, broken_connections
from evergrant_server.store.connections.account_identifiers import AccountIdentifierRow
from evergrant_server.store.connections.tables import ConnectionRow
from evergrant_server.store.database.columns import Row
from evergrant_server.store.database.rows import Values, columns_equal, find_one
from evergrant_server.store.exports import ExportRow
from evergrant_server.store.integrations.definitions import DefinitionRow
from evergrant_server.store.integrations.tables import IntegrationRow
from evergrant_server.store.permits import PermitRow
from evergrant_server.store.trusted_issuers import TrustedIssuerRow
from tests.conformance.store.samples import (
    ACME,
    GITHUB,
    a_connection,
    a_grant,
    a_permit,
    an_app,
    built,
    granted,
    some_tokens,
)
from tests.fakes.clock import SetClock
from tests.fakes.databases import NOW
from tests.fakes.failures import fails
from tests.fakes.rows import a_definition

EVIL = {"token_endpoint": "https://evil.example/token"}
APP = an_app(id="app_0000000000000000000000", return_to=("https://app.example/done",))
PERMIT = a_permit(APP, id="per_0000000000000000000000", subjects=("user-1",), actions=(Action.TOKEN,))
DEFINITION = a_definition(ACME, {"name": "acme", "share": 0.1}, NOW, id="def_0000000000000000000000")
EXPORT = built(
    Export,
    {},
    id="exp_0000000000000000000000",
    recipient={"kty": "OKP"},
    by="app:a",
    trace_id="",
    expires_at=NOW,
)
ISSUER = built(
    TrustedIssuer,
    {},
    id="iss_0000000000000000000000",
    name="ci",
    kind="oidc",
    issuer="https://issuer.example",
    keys=({"kid": "one"},),
    keys_at=NOW - timedelta(hours=9),
)
NAMED = a_connection(id="con_0000000000000000000000")


async def filled(store: Store) -> Connection:
    """One good row of every kind, and a connection with a grant."""
    async with store.write() as tx:
        await tx.integrations.put(GITHUB, None, expected=None)
        await tx.access.put_app(APP, expected=None)
        await tx.access.put_permit(PERMIT, expected=None)
        await tx.definitions.add(DEFINITION)
        await tx.exports.add(EXPORT)
        await tx.trusted_issuers.put(ISSUER, expected=None)
    return await granted(store, id=NAMED.id)


async def broken(store: Store) -> set[str]:
    """The rows that the operator's command names."""
    configured = [it.row for it in await broken_configuration(store)]
    return {*configured, *[it.row async for it in broken_connections(store)]}


async def by_hand(store: Store, table: type[Row], id: str, **values: Any) -> None:
    async with store.write() as tx:
        await tx.connection.execute(update(table).where(columns_equal(table, id=id)).values(values))


Read = Callable[[Transaction], Awaitable[object]]


def by_app(tx: Transaction) -> Awaitable[object]:
    return tx.access.app(ACME, APP.id)


def by_permits(tx: Transaction) -> Awaitable[object]:
    return tx.access.permits(ACME, APP.id)


def by_integration(tx: Transaction) -> Awaitable[object]:
    return tx.integrations.by_name(ACME, "github")


def by_definition(tx: Transaction) -> Awaitable[object]:
    return tx.definitions.serving(ACME, "acme")


def by_export(tx: Transaction) -> Awaitable[object]:
    return tx.exports.get(ACME, ExportId(EXPORT.id))


def by_connection(tx: Transaction) -> Awaitable[object]:
    return tx.connections.get_authentic(ACME, NAMED.id)


async def by_pin(tx: Transaction) -> object:
    current = await tx.connections.get(ACME, NAMED.id)
    assert current is not None
    await tx.account_identifiers.own_account(current)
    return current


def by_issuer(tx: Transaction) -> Awaitable[object]:
    return tx.trusted_issuers.by_name(ACME, "ci")


CASES: dict[str, tuple[type[Row], str, dict[str, Any], Read]] = {
    "an app's return_to": (AppRow, APP.id, {"return_to": ["https://evil.example/"]}, by_app),
    "an app without an authenticator": (AppRow, APP.id, {"mac": None}, by_app),
    "a permit's subjects": (PermitRow, PERMIT.id, {"subjects": ["*"]}, by_permits),
    "a permit's effect": (PermitRow, PERMIT.id, {"effect": "deny"}, by_permits),
    "a permit's provider": (PermitRow, PERMIT.id, {"provider": "slack"}, by_permits),
    "a permit's sources": (PermitRow, PERMIT.id, {"sources": ["0.0.0.0/0"]}, by_permits),
    "a permit's end": (PermitRow, PERMIT.id, {"expires_at": NOW}, by_permits),
    "a permit's insistence": (PermitRow, PERMIT.id, {"exact_scopes": True}, by_permits),
    "a permit's methods": (PermitRow, PERMIT.id, {"methods": ["GET"]}, by_permits),
    "a permit's paths": (PermitRow, PERMIT.id, {"paths": ["/a"]}, by_permits),
    "a permit's tools": (PermitRow, PERMIT.id, {"tools": ["*"]}, by_permits),
    "a permit's actions": (PermitRow, PERMIT.id, {"actions": ["token", "admin"]}, by_permits),
    "an integration's binding": (IntegrationRow, GITHUB.id, {"binding": "app_first"}, by_integration),
    "an integration's endpoints": (IntegrationRow, GITHUB.id, {"endpoints": EVIL}, by_integration),
    "a definition's document": (DefinitionRow, DEFINITION.id, {"document": EVIL}, by_definition),
    "an issuer's keys": (TrustedIssuerRow, ISSUER.id, {"keys": [{"kid": "mine"}]}, by_issuer),
    "when an issuer's keys were read": (TrustedIssuerRow, ISSUER.id, {"keys_at": NOW}, by_issuer),
    "an export's recipient": (ExportRow, EXPORT.id, {"recipient": {"kty": "EC"}}, by_export),
    "a connection's subject": (ConnectionRow, NAMED.id, {"subject": "user-2"}, by_connection),
    "a connection's integration": (ConnectionRow, NAMED.id, {"integration_id": "int_9"}, by_connection),
    "a connection's source": (ConnectionRow, NAMED.id, {"source": "con_9"}, by_connection),
    "a connection's account": (
        ConnectionRow,
        NAMED.id,
        {"expected_account": {"sub": "e" * 32}},
        by_connection,
    ),
    "a pin's authenticator": (ConnectionRow, NAMED.id, {"account_mac": None}, by_pin),
}


@pytest.mark.parametrize("table", dict.fromkeys(it[0] for it in CASES.values()), ids=lambda it: it.__name__)
async def test_a_row_changed_by_hand_is_refused_and_named_until_it_is_accepted(
    store: Store, table: type[Row]
):
    await filled(store)
    assert await broken(store) == set()
    for case, (of_table, id, values, read) in CASES.items():
        if of_table is not table:
            continue
        await by_hand(store, table, id, **values)
        async with store.read() as tx:
            with fails(ErrorCode.AUTHORITY_BROKEN, id):
                await read(tx)
        assert await broken(store) == {id}, case
        assert await accept(store, {id}) == [id], case
        assert await broken(store) == set(), case
        async with store.read() as tx:
            assert await read(tx), case


@pytest.mark.parametrize("moved_to", [None, "f" * 32], ids=["lifted", "moved"])
async def test_a_pin_that_was_lifted_or_moved_by_hand_is_refused_until_it_is_accepted(
    store: Store, moved_to: str | None
):
    """No refresh makes it good again, and a refresh isn't stopped by it."""
    connection = await filled(store)
    pinned = TokenSet(access_token=Secret("at-2"), account=Account(id="ann", name="ann"))
    connection = await renewed(store, connection, Origin.NEW, pinned)
    pin = columns_equal(AccountIdentifierRow, connection_id=NAMED.id, name=PIN)
    assert await broken(store) == set()
    async with store.write() as tx:
        assert await tx.account_identifiers.own_account(connection) is not None
        statement = update(AccountIdentifierRow).values(identifier_hash=moved_to)
        await tx.connection.execute((statement if moved_to else delete(AccountIdentifierRow)).where(pin))
    connection = await renewed(store, connection, Origin.REFRESH)
    assert await broken(store) == {NAMED.id}
    async with store.read() as tx:
        with fails(ErrorCode.AUTHORITY_BROKEN, NAMED.id):
            await tx.account_identifiers.own_account(connection)
    assert await accept(store, {NAMED.id}) == [NAMED.id]
    assert await broken(store) == set()
    async with store.read() as tx:
        assert await tx.account_identifiers.own_account(connection) == moved_to


async def test_a_pin_of_a_connection_without_a_grant_was_put_in_by_hand(store: Store):
    await filled(store)
    other = a_connection(subject="user-2")
    async with store.write() as tx:
        await tx.connections.add(other)
        assert await tx.account_identifiers.own_account(other) is None
        planted = {"tenant": ACME, "connection_id": other.id, "name": PIN, "revision": 1}
        planted |= {"integration_id": GITHUB.id, "identifier_hash": "f" * 32}
        await tx.connection.execute(insert(AccountIdentifierRow).values(planted))
        with fails(ErrorCode.AUTHORITY_BROKEN, other.id):
            await tx.account_identifiers.own_account(other)


async def test_a_connection_with_an_expected_account_is_leased(store: Store):
    """Its expectation is a name like its subject: changed by hand, nothing is leased."""
    connection = await granted(store, id=NAMED.id, expected_account={"sub": "d" * 32})
    assert await LeaseRows(store).load(ACME, connection.id)
    await by_hand(store, ConnectionRow, NAMED.id, expected_account=None)
    with fails(ErrorCode.AUTHORITY_BROKEN, NAMED.id):
        await LeaseRows(store).load(ACME, connection.id)


async def test_a_grant_that_is_refreshed_while_rows_are_accepted_stays_good(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    connection = await filled(store)
    read_page = scan._grants

    async def refreshed_meanwhile(*of: Any) -> list[Values]:
        page = await read_page(*of)
        if page:
            await renewed(store, connection, Origin.REFRESH)
        return page

    monkeypatch.setattr(scan, "_grants", refreshed_meanwhile)
    await accept(store)
    monkeypatch.undo()
    assert await broken(store) == set()


async def test_a_lease_row_with_another_subject_is_refused(store: Store):
    await filled(store)
    await by_hand(store, ConnectionRow, NAMED.id, subject="user-2")
    with fails(ErrorCode.AUTHORITY_BROKEN, NAMED.id):
        await LeaseRows(store).load_by_names(ACME, "github", "user-2")


async def test_a_copied_row_is_no_row_of_ours(store: Store):
    """The authenticator of one permit isn't that of another app's."""
    await filled(store)
    other = an_app(name="other")
    async with store.write() as tx:
        await tx.access.put_app(other, expected=None)
        row = await find_one(tx.connection, PermitRow, tenant=ACME, id=PERMIT.id)
        await tx.connection.execute(
            insert(PermitRow).values({**(row or {}), "id": new_id("per"), "app_id": other.id})
        )
        with fails(ErrorCode.AUTHORITY_BROKEN):
            await tx.access.permits(ACME, other.id)


async def test_a_broken_row_stops_neither_a_list_nor_its_own_replacement(store: Store):
    await filled(store)
    await by_hand(store, AppRow, APP.id, disabled=True)
    await by_hand(store, PermitRow, PERMIT.id, subjects=["*"])
    await by_hand(store, ConnectionRow, NAMED.id, subject="user-2")
    async with store.write() as tx:
        assert len(await tx.access.apps(ACME)) == len(await tx.connections.page(ACME)) == 1
        app, permit = (
            await tx.access.app_to_replace(ACME, APP.name),
            await tx.access.permit(ACME, APP.id, "read"),
        )
        assert app is not None
        assert permit is not None
        await tx.access.put_app(app.model_copy(update={"disabled": False}), expected=app.revision)
        await tx.access.put_permit(
            permit.model_copy(update={"subjects": ("user-3",)}), expected=permit.revision
        )
        assert await tx.access.app(ACME, APP.id)
        assert [it.subjects for it in await tx.access.permits(ACME, APP.id)] == [("user-3",)]


async def test_a_connection_that_is_revoking_is_not_checked(store: Store):
    """Nothing stops a revocation."""
    connection = await filled(store)
    async with store.write() as tx:
        revoking = connection.revocation_requested("left", NOW)
        await tx.connections.replace(revoking, expected=connection.revision)
    await by_hand(store, ConnectionRow, NAMED.id, subject="user-2")
    async with store.read() as tx:
        assert await tx.connections.get_authentic(ACME, NAMED.id)


async def test_no_later_change_of_a_connection_makes_its_names_good_again(store: Store):
    connection = await filled(store)
    await by_hand(store, ConnectionRow, NAMED.id, subject="user-2")
    async with store.write() as tx:
        found = await tx.connections.get(ACME, NAMED.id)
        assert found is not None
        await tx.connections.replace(found.token_reported(), expected=connection.revision)
        with fails(ErrorCode.AUTHORITY_BROKEN):
            await tx.connections.get_authentic(ACME, NAMED.id)


# --- where refresh tokens are sent: a key that the API lacks ----------------------------------------------


async def required(store: Store, connection: Connection) -> None:
    """What a worker asks before it sends a refresh token."""
    async with store.read() as tx:
        assert await tx.context_rows.connection(ACME, connection.id) is not None


async def moved(store: Store, **changes: Any) -> Integration:
    """An integration that says so, with all authenticators of this store's role."""
    async with store.write() as tx:
        integration = await tx.integrations.get(ACME, GITHUB.id)
        assert integration is not None
        after = integration.model_copy(update=changes)
        return await tx.integrations.replace(after, expected=integration.revision)


async def renewed(
    store: Store, connection: Connection, origin: Origin, tokens: TokenSet | None = None
) -> Connection:
    """Its next grant."""
    after, tokens = connection.granted(NOW), tokens or some_tokens()
    async with store.write() as tx:
        return await tx.grants.install(
            after, tokens, a_grant(after.generation), origin=origin, expected=connection.revision
        )


async def test_a_worker_moves_the_endpoints_and_the_grants_with_them(store: Store):
    connection = await filled(store)
    await moved(store, endpoints=Endpoints(token_endpoint="https://new.example/token"))
    await required(store, connection)
    await required(store, await renewed(store, connection, Origin.NEW))
    assert await broken(store) == set()


async def test_the_api_can_not_have_a_refresh_token_sent_elsewhere(
    store: Store, database_url: str, key_path: Path, clock: SetClock
):
    """A compromised API has the other keys, and writes what it likes."""
    connection = await filled(store)
    api = await Store.open(database_url, KeyRing.open(key_path, Role.API), clock)
    try:
        evil = Endpoints(token_endpoint="https://evil.example/token")
        await moved(api, endpoints=evil)
        with fails(ErrorCode.AUTHORITY_BROKEN, NAMED.id):
            await required(store, connection)
        assert await broken(store) == {NAMED.id}
        await granted(store, id=new_id("con"), subject="accomplice")  # a worker writes the new place
        with fails(ErrorCode.AUTHORITY_BROKEN, NAMED.id):
            await required(store, connection)
        with fails(ErrorCode.AUTHORITY_BROKEN, NAMED.id):  # nor are its tokens revoked there
            await renewed(store, connection, Origin.NEW)
        refreshed = await renewed(store, connection, Origin.REFRESH)  # its answer was under way
        with fails(ErrorCode.AUTHORITY_BROKEN, NAMED.id):
            await required(store, refreshed)
    finally:
        await api.close()


async def test_a_grant_is_not_sent_to_another_integration(store: Store):
    """Also when the connection's row says so with a good authenticator."""
    connection = await filled(store)
    other = GITHUB.model_copy(update={"id": new_id("int"), "name": "evil"})
    async with store.write() as tx:
        await tx.integrations.put(other, None, expected=None)
    await granted(store, id=new_id("con"), integration_id=other.id, integration=other.name)
    turned = connection.model_copy(update={"integration_id": other.id, "label": "turned"})
    async with store.write() as tx:
        await tx.connections.replace_names(turned, expected=connection.revision)
    with fails(ErrorCode.AUTHORITY_BROKEN, NAMED.id):
        await required(store, connection)
