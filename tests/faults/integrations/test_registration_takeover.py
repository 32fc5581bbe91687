"""A registration under way on another host is waited for, as long as its answer may come."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import IntegrationState
from evergrant_server.store import Store, Transaction, UnwrappedKeys
from tests.fakes.platform.installation import Installation
from tests.faults.integrations.test_registration import registers, wanted  # noqa: F401  # a fixture
from tests.faults.support.activities import Activities
from tests.faults.support.reply_timing import SHORT


async def test_a_registration_on_another_host_is_waited_for(place: Installation):
    """Neither sees the other's journals: a second client at the issuer would stay unused."""
    integration = await wanted(place)
    slow, second = (Activities(place, host) for host in ("slow", "second"))
    async with place.idp.in_flight(slow.discover(integration), at="register") as first:
        again = asyncio.create_task(second.discover(await place.integration_now(integration.id)))
        await place.idp.until("metadata", 2)
        await asyncio.sleep(0.5)
    assert (await first).failure is None
    assert (await again).failure is None
    assert place.idp.count("register") == 1
    assert (await place.integration_now(integration.id)).state is IntegrationState.READY


async def test_a_registration_on_another_host_is_taken_over_when_its_answer_can_t_come_any_more(
    place: Installation,
):
    integration = await wanted(place)
    slow, second = (Activities(place, host, SHORT) for host in ("slow", "second"))
    async with place.idp.in_flight(slow.discover(integration), at="register"):
        assert (await second.discover(await place.integration_now(integration.id))).failure is None
        assert place.idp.count("register") == 2
        ready = await place.integration_now(integration.id)
    assert await place.integration_now(integration.id) == ready


async def test_a_lost_commit_reply_does_not_stop_a_registration(place: Installation):
    """The commit is tried again, and finds the intent: it is its own, and no other worker's. Else its
    initial access token would count as used, and no byte has left."""
    integration = await wanted(place, initial="iat-1")
    store = await Store.open(place.parts.settings.database_url, place.parts.ring, place.parts.clock)
    write, lost = store.write, [Failure(ErrorCode.STORE_UNAVAILABLE, "its answer was lost")]

    @asynccontextmanager
    async def unheard_once(keys: UnwrappedKeys | None = None) -> AsyncIterator[Transaction]:
        async with write(keys) as tx:
            yield tx
        if lost:
            raise lost.pop()

    store.write = unheard_once  # type: ignore[method-assign]  # the commit is real, its answer is lost
    news = await Activities(place, store=store).discover(integration)
    await store.close()
    assert lost == []
    assert news.failure is None
    (sent,) = (call for call in place.idp.calls if call.endpoint == "register")
    assert sent.headers["authorization"] == "Bearer iat-1"


async def test_a_registration_dated_in_the_future_is_waited_for_from_now(place: Installation):
    """The other host's clock was an hour ahead, and it died."""
    integration = await wanted(place)
    async with place.store.write() as tx:
        later = place.parts.clock.now() + timedelta(hours=1)
        ahead = integration.model_copy(update={"registration_sent_at": later})
        await tx.integrations.replace(ahead, expected=integration.revision)
    assert (await Activities(place, "here", SHORT).discover(integration)).failure is None
    assert place.idp.count("register") == 1
