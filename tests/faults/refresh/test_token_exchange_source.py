"""Another connection's token is exchanged (RFC 8693) for as long as the app that asked may lease it."""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from itertools import count
from typing import Any

import pytest

from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import ConnectionId, new_id
from evergrant_server.core.lifecycle.schedule import jitter
from tests.conformance.store.samples import a_permit, an_app
from tests.fakes.platform.installation import ASKED, TENANT, Installation
from tests.fakes.providers.client_grants import TOKEN_EXCHANGE, OtherGrants
from tests.fakes.providers.scripted_provider import ok
from tests.faults.support.client_grants import request_first_tokens

REFUSED = ErrorCode.SOURCE_NOT_PERMITTED


class World:
    """A source, and the app in whose name its token is exchanged, with one permit."""

    def __init__(self, place: Installation, idp: OtherGrants) -> None:
        self.place, self.idp = place, idp
        now = place.parts.clock.now()
        self.app = an_app(tenant=TENANT, created_at=now)
        read = {"integration": "*", "scope_ceiling": ("read",), "actions": (Action.TOKEN,)}
        self.permit = a_permit(self.app, created_at=now, **read)

    async def begin(self, flow: Flow, **more: Any) -> Connection:
        """What the API writes for a connection without a consent."""
        place, week = self.place, timedelta(days=7)
        begun = await place.begin(id=_soon(), subject="nightly", flow=flow, deadline=week, **more)
        async with place.store.write() as tx:
            await request_first_tokens(tx, begun, ("read",), ASKED)
        place.parts.relay.notify()
        return begun

    async def active(self, flow: Flow, **more: Any) -> Connection:
        begun = await self.begin(flow, **more)
        return await self.place.until(begun, lambda c: c.state is LifecycleState.ACTIVE)

    async def exchanging(self) -> tuple[Connection, Connection]:
        """A source, and a connection whose first token was exchanged for the source's."""
        await self.give()
        source = await self.active(Flow.CLIENT_CREDENTIALS)
        named = {"source": source.id, "source_app": self.app.id}
        return source, await self.active(Flow.TOKEN_EXCHANGE, **named)

    async def give(self) -> None:
        """The app as it should be, with the permit as it should be."""
        async with self.place.store.write() as tx:
            there = await tx.access.app(TENANT, self.app.id)
            if there is None:
                there = await tx.access.put_app(self.app, expected=None)
            if there.disabled:
                await tx.access.put_app(self.app, expected=there.revision)
            permit = await tx.access.permit(TENANT, self.app.id, self.permit.name)
            await tx.access.put_permit(self.permit, expected=permit and permit.revision)

    async def change(self, **changes: Any) -> None:
        async with self.place.store.write() as tx:
            permit = await tx.access.permit(TENANT, self.app.id, self.permit.name)
            assert permit is not None
            await tx.access.put_permit(permit.model_copy(update=changes), expected=permit.revision)

    @property
    def exchanges(self) -> int:
        return self.idp.count("token", grant_type=TOKEN_EXCHANGE)

    async def said(self, connection: Connection, action: AuditAction) -> list[dict[str, Any]]:
        return [it.detail for it in await self.place.audited(connection, action)]


def _soon() -> ConnectionId:
    """One of the first of a fleet to look again, which is spread over a minute by their ids."""
    drawn = (ConnectionId(new_id("con")) for _ in count())
    return next(it for it in drawn if max(jitter(it, 0), jitter(it, 1)) < 0.05)


async def withdrawn(world: World) -> None:
    async with world.place.store.write() as tx:
        permit = await tx.access.permit(TENANT, world.app.id, world.permit.name)
        assert permit is not None
        await tx.access.delete_permit(permit)


async def ceiling_lowered(world: World) -> None:
    await world.change(scope_ceiling=("other",))


async def disabled(world: World) -> None:
    async with world.place.store.write() as tx:
        app = await tx.access.app(TENANT, world.app.id)
        assert app is not None
        await tx.access.put_app(app.model_copy(update={"disabled": True}), expected=app.revision)


@pytest.fixture
def provider() -> OtherGrants:
    return OtherGrants()


@pytest.fixture
def world(place: Installation, idp: OtherGrants) -> World:
    return World(place, idp)


@pytest.mark.parametrize("withdraw", [withdrawn, ceiling_lowered, disabled])
async def test_without_the_right_to_lease_the_source_nothing_is_exchanged(
    world: World, withdraw: Callable[[World], Awaitable[None]]
):
    """Nothing is sent, the connection stays as it is, and with the right it works again."""
    source, connection = await world.exchanging()
    await withdraw(world)
    assert (await world.place.ensure_fresh(connection, 1)).problem is REFUSED
    assert (await world.place.ensure_fresh(connection, 1)).problem is REFUSED, "looked at again slowly"
    assert world.exchanges == 1, "the first token's own"
    row = await world.place.row(connection)
    assert (row.state, row.generation, row.failures) == (LifecycleState.ACTIVE, 1, 1)
    assert row.last_failure is REFUSED
    named = {"source": source.id, "source_app": world.app.id}
    assert await world.said(connection, AuditAction.REFRESH_FAILED) == [{"reason": REFUSED, **named}]
    await world.give()
    await world.place.look_again(connection)
    assert (await world.place.ensure_fresh(connection, 1)).generation == 2
    assert world.exchanges == 2
    assert (await world.place.row(connection)).last_failure is None


async def test_a_withdrawn_permit_is_retried_like_any_failure_of_an_admin(world: World):
    _, connection = await world.exchanging()
    await withdrawn(world)
    await world.place.ensure_fresh(connection, 1)
    now = world.place.parts.clock.now()
    told = await world.place.described(connection)
    assert told is not None
    assert (told.state, told.reason, told.repairer) == (LifecycleState.ACTIVE, REFUSED, "permit_admin")
    assert told.next_at is not None
    assert timedelta(minutes=14) < told.next_at - now < timedelta(minutes=16)


async def test_a_source_beyond_the_scope_ceiling_is_not_exchanged(world: World):
    """Its subject has consented to more since; the app's ceiling says read."""
    source, connection = await world.exchanging()
    world.idp.script(ok(scope="read write"))
    await world.place.ensure_fresh(source, 1)
    assert (await world.place.grant(source))[1].scopes == ("read", "write")
    assert (await world.place.ensure_fresh(connection, 1)).problem is REFUSED
    assert world.exchanges == 1


async def test_without_a_source_app_nothing_is_exchanged(world: World):
    """A row of before it was kept: it waits for an app that asks."""
    source, connection = await world.exchanging()
    await world.place.change(connection, source_app=None)
    assert (await world.place.ensure_fresh(connection, 1)).problem is REFUSED
    assert world.exchanges == 1
    (said,) = await world.said(connection, AuditAction.REFRESH_FAILED)
    assert (said["source"], said["source_app"]) == (source.id, "none")


async def test_a_first_token_waits_for_the_permit(world: World):
    await world.give()
    source = await world.active(Flow.CLIENT_CREDENTIALS)
    await withdrawn(world)
    connection = await world.begin(Flow.TOKEN_EXCHANGE, source=source.id, source_app=world.app.id)
    waits = await world.place.until(connection, lambda c: c.reason is not None)
    assert (waits.state, waits.reason, world.exchanges) == (LifecycleState.PENDING_CONSENT, REFUSED, 0)
    (said,) = await world.said(connection, AuditAction.CONSENT_FAILED)
    assert (said["source"], said["source_app"]) == (source.id, world.app.id)
    await world.give()
    await world.place.look_again(connection)
    await world.place.until(connection, lambda c: c.state is LifecycleState.ACTIVE)
    assert world.exchanges == 1


async def test_without_the_permit_the_source_is_not_refreshed(world: World):
    source, connection = await world.exchanging()
    row, grant = await world.place.grant(source)
    over = grant.model_copy(update={"expires_at": grant.obtained_at})
    await world.place.restore((row, over))
    await withdrawn(world)
    asked = world.idp.count("token")
    assert (await world.place.ensure_fresh(connection, 1)).problem is REFUSED
    assert world.idp.count("token") == asked
    assert (await world.place.row(source)).generation == source.generation
