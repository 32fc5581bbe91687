"""Connections that begin while their integration is deleted, or moves to another server."""

import asyncio

from evergrant_server.api.integrations.changes import changed_integration
from evergrant_server.api.integrations.models import IntegrationBody
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.integrations import Integration
from evergrant_server.core.secret import Secret
from evergrant_server.store import Store
from providers.definition.registry import Registry
from tests.conformance.store.samples import ACME, a_connection, an_integration
from tests.fakes.databases import NOW
from tests.fakes.failures import fails


async def an_integration_of(store: Store) -> Integration:
    async with store.write() as tx:
        return await tx.integrations.put(an_integration(), Secret("s-1"), expected=None)


async def deleted(store: Store, integration: Integration) -> None:
    async with store.write() as tx:
        await tx.integrations.delete(ACME, integration.id)


async def test_an_integration_is_not_deleted_under_a_connection_that_begins(store: Store):
    """A connection without its integration could never be refreshed or revoked."""
    made = await an_integration_of(store)
    async with store.write() as tx:
        await tx.integrations.lock_for_use(made)
        deleting = asyncio.create_task(deleted(store, made))
        _, waits = await asyncio.wait((deleting,), timeout=0.5)
        connection = a_connection(integration_id=made.id)
        await tx.connections.add(connection)
    assert waits
    with fails(ErrorCode.INTEGRATION_IN_USE):
        await deleting
    async with store.write() as tx:
        await tx.connections.replace(connection.consent_denied(NOW), expected=1)
    await deleted(store, made)
    with fails(ErrorCode.NOT_FOUND):
        await deleted(store, made)


async def test_a_connection_does_not_begin_at_an_integration_that_is_being_deleted(store: Store):
    made = await an_integration_of(store)

    async def begin() -> None:
        async with store.write() as tx:
            await tx.integrations.lock_for_use(made)

    async with store.write() as tx:
        await tx.integrations.delete(ACME, made.id)
        beginning = asyncio.create_task(begin())
        await asyncio.wait((beginning,), timeout=0.5)
    with fails(ErrorCode.NOT_FOUND):
        await beginning


async def test_an_integration_does_not_move_under_a_connection_that_begins(store: Store):
    """Its refresh token would be sent to another server."""
    made = await an_integration_of(store)

    spec = Registry.load().serving("gitlab", [])

    async def move() -> Integration:
        async with store.write() as tx:
            body = IntegrationBody(provider="gitlab", client_id="c", client_secret=Secret("s-2"))
            return await changed_integration(tx, spec, body, None, made, NOW)

    async with store.write() as tx:
        await tx.integrations.lock_for_use(made)
        moving = asyncio.create_task(move())
        _, waits = await asyncio.wait((moving,), timeout=0.5)
        await tx.connections.add(a_connection(integration_id=made.id))
    assert waits
    with fails(ErrorCode.INVALID_REQUEST, "Connections are live"):
        await moving


async def test_a_connection_does_not_begin_at_an_integration_that_moves(store: Store):
    made = await an_integration_of(store)

    async def begin() -> None:
        async with store.write() as tx:
            await tx.integrations.lock_for_use(made)

    async with store.write() as tx:
        await tx.integrations.lock_against_use(made)
        beginning = asyncio.create_task(begin())
        await asyncio.wait((beginning,), timeout=0.5)
        await tx.integrations.put(made.__replace__(issuer="https://b"), None, expected=made.revision)
    with fails(ErrorCode.STORE_CONFLICT):
        await beginning
