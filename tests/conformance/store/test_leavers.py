"""Offboardings that begin while their person is being connected."""

import asyncio
from datetime import timedelta

from sqlalchemy import text

from evergrant_server.access import leavers
from evergrant_server.access.leavers import LeaverOrder
from evergrant_server.core.connections.incidents import Incident
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.people.leavers import NamedPerson
from evergrant_server.store import Store, Transaction
from tests.conformance.store.samples import ACME, NOW, a_connection
from tests.fakes.patience import eventually

_WAITING = text("SELECT count(*) FROM pg_locks WHERE NOT granted")


async def begin(store: Store, subject: str) -> Incident:
    order = LeaverOrder(
        tenant=ACME,
        person=NamedPerson(subject=subject),
        reason="HR-7",
        grace=timedelta(days=1),
        wait=timedelta(hours=1),
        sponsor=None,
        context=RequestContext(by="operator"),
        at=NOW,
    )
    async with store.write() as tx:
        return await leavers.begin(tx, order)


async def has_begun_or_waits(beginning: asyncio.Task[Incident], tx: Transaction) -> bool:
    waiting = (await tx.connection.execute(_WAITING)).scalar_one()
    return beginning.done() or waiting > 0


async def test_a_connection_that_is_being_made_when_its_person_leaves_is_held(store: Store):
    connection = a_connection()
    async with store.write() as tx:
        assert not await tx.leavers.is_leaving(ACME, connection.integration, connection.subject)
        beginning = asyncio.create_task(begin(store, connection.subject))
        if tx.connection.dialect.name == "postgresql":
            await eventually(lambda: has_begun_or_waits(beginning, tx), bool)
        await tx.connections.add(connection)
    incident = await beginning
    assert incident.selected == 1
    async with store.write() as tx:
        made = await tx.connections.get(ACME, connection.id)
        assert made is not None
        assert made.held_by == incident.id
        assert await tx.leavers.is_leaving(ACME, connection.integration, connection.subject)
