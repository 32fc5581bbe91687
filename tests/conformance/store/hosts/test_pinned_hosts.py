"""The hosts at which grants were made, which only a worker's host can write."""

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.grant import Origin
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.integrations import NOTHING_PINNED, PinnedHosts
from evergrant_server.crypto import KeyRing, Role
from evergrant_server.store import Store
from evergrant_server.store.authority.authenticators import grant_mac
from evergrant_server.store.authority.scan import broken_configuration, broken_connections
from evergrant_server.store.connections.tables import ConnectionGrantRow
from evergrant_server.store.database.rows import find_one
from evergrant_server.store.integrations.tables import IntegrationRow
from tests.conformance.store.samples import ACME, GITHUB, a_connection, a_grant, added, some_tokens
from tests.fakes.clock import SetClock
from tests.fakes.databases import NOW
from tests.fakes.failures import fails

PINS = PinnedHosts(("login.github.com",), ("login.github.com", "api.github.com"))


async def installed(
    store: Store, connection: Connection, origin: Origin, hosts: PinnedHosts = NOTHING_PINNED
) -> Connection:
    """Its next grant."""
    after, expected = connection.granted(NOW), connection.revision
    async with store.write() as tx:
        grant = a_grant(after.generation)
        return await tx.grants.install(
            after, some_tokens(), grant, origin=origin, expected=expected, hosts=hosts
        )


async def pinned(store: Store, subject: str = "user-1") -> Connection:
    """A connection whose grant was made at these hosts."""
    connection = await added(store, a_connection(subject=subject))
    return await installed(store, connection, Origin.NEW, PINS)


async def broken(store: Store) -> set[str]:
    found = {it.row for it in await broken_configuration(store)}
    return found | {it.row async for it in broken_connections(store)}


async def pins_of(store: Store, connection: Connection) -> PinnedHosts:
    async with store.read() as tx:
        rows = await tx.context_rows.connection(ACME, connection.id)
    assert rows is not None
    return rows.pins


async def put_github(store: Store) -> None:
    async with store.write() as tx:
        await tx.integrations.put(GITHUB, None, expected=None)


async def test_a_refresh_keeps_the_hosts_of_its_grant_and_a_new_grant_pins_its_own(store: Store):
    await put_github(store)
    connection = await pinned(store)
    written = PinnedHosts(("login.github.com",), ("api.github.com", "login.github.com"))
    assert await pins_of(store, connection) == written
    connection = await installed(store, connection, Origin.REFRESH)
    assert await pins_of(store, connection) == written
    connection = await installed(store, connection, Origin.NEW)  # made nowhere: sent nowhere
    assert await pins_of(store, connection) == PinnedHosts((), written.integration)
    assert await broken(store) == set()


@pytest.mark.parametrize("table", [ConnectionGrantRow, IntegrationRow])
async def test_hosts_that_were_pinned_by_hand_are_refused_and_named(
    store: Store, table: type[ConnectionGrantRow] | type[IntegrationRow]
):
    await put_github(store)
    connection = await pinned(store)
    for hosts in ("evil.example login.github.com", None):
        async with store.write() as tx:
            await tx.connection.execute(update(table).values(pinned_hosts=hosts))
        name = GITHUB.id if table is IntegrationRow else connection.id
        with fails(ErrorCode.AUTHORITY_BROKEN, name):
            await pins_of(store, connection)
        assert name in await broken(store)


async def test_an_operator_accepts_a_host_for_every_grant_of_an_integration(
    store: Store, database_url: str, key_path: Path, clock: SetClock
):
    await put_github(store)
    first, second = await pinned(store), await pinned(store, "user-2")
    ended = await pinned(store, "user-3")
    async with store.write() as tx:
        over = ended.model_copy(update={"state": LifecycleState.REVOKED})
        await tx.connections.replace(over, expected=ended.revision)
    async with store.read() as tx:
        ((integration, hosts),) = await tx.pinned_hosts.page()
        assert (integration.id, hosts) == (GITHUB.id, ("api.github.com", "login.github.com"))
        assert await tx.pinned_hosts.page(integration.id) == []
        assert await tx.pinned_hosts.granted(integration) == sorted([first.id, second.id])
        assert await tx.pinned_hosts.granted(integration, max(first.id, second.id)) == []
        assert await tx.pinned_hosts.count_granted(integration) == 2
    api = await Store.open(database_url, KeyRing.open(key_path, Role.API), clock)
    try:
        async with api.write() as tx:
            with fails(ErrorCode.AUTHORITY_BROKEN):
                await tx.pinned_hosts.accept(GITHUB.id, ["evil.example"])
    finally:
        await api.close()
    async with store.write() as tx:
        await tx.pinned_hosts.accept(GITHUB.id, ["new.example"])
    accepted = ("api.github.com", "login.github.com", "new.example")
    for connection in (first, second):
        assert await pins_of(store, connection) == PinnedHosts(("login.github.com",), accepted)
    assert await broken(store) == set()


async def test_another_place_of_the_integration_begins_without_hosts(store: Store):
    """The API can remove them with the authenticator; the grants of before are of another serial."""
    await put_github(store)
    connection = await pinned(store)
    async with store.write() as tx:
        await tx.connection.execute(update(IntegrationRow).values(destination_mac=None, pinned_hosts=None))
    with fails(ErrorCode.AUTHORITY_BROKEN, connection.id):
        await pins_of(store, connection)
    await pinned(store, "user-2")
    with fails(ErrorCode.AUTHORITY_BROKEN, connection.id):
        await pins_of(store, connection)


async def test_connections_that_were_not_sent_anywhere_are_found_by_page(store: Store):
    await put_github(store)
    waits, other = await pinned(store), await pinned(store, "user-2")
    for connection, code in ((waits, ErrorCode.HOST_NOT_ACCEPTED), (other, ErrorCode.PROVIDER_ERROR)):
        async with store.write() as tx:
            failed = connection.model_copy(update={"failures": 1, "last_failure": code})
            await tx.connections.replace(failed, expected=connection.revision)
    async with store.read() as tx:
        ((found, hosts, facts),) = await tx.pinned_hosts.refused()
        assert await tx.pinned_hosts.refused((ACME, found.id)) == []
    assert (found.id, facts) == (waits.id, {"team": {"id": 7}})
    assert set(hosts) == {"login.github.com", "api.github.com"}


async def test_a_grant_that_is_made_while_rows_are_pinned_keeps_its_own_hosts(store: Store):
    if store.is_sqlite:
        pytest.skip("on SQLite one transaction writes at a time")
    await put_github(store)
    connection = await pinned(store)
    async with store.read() as tx:
        ((integration, _),) = await tx.pinned_hosts.page()
        row = await find_one(tx.connection, IntegrationRow, id=GITHUB.id)
    assert row is not None
    mac = grant_mac(store.ring, connection, row["destination_mac"], None)
    unpinned = {"pinned_hosts": None, "destination_mac": mac}
    async with store.write() as tx:
        await tx.connection.execute(update(ConnectionGrantRow).values(unpinned))

    async def granted_meanwhile(*_: Any) -> tuple[str, ...]:
        await installed(store, connection, Origin.NEW, PINS)
        return ("other.example",)

    async with store.write() as tx:
        await tx.pinned_hosts.pin_grants(integration, "", granted_meanwhile)
    assert (await pins_of(store, connection)).grant == PINS.grant
    assert await broken(store) == set()
