"""A refresh whose keys can't be had isn't begun; an answer waits in the journal until they are back."""

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
import pytest_asyncio

from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.consent import ConsentStatus
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.crypto.key_services.port import ServicePurpose
from evergrant_server.crypto.keyring import KeyPurpose, Role
from evergrant_server.store import Store
from evergrant_server.wiring.root_keeper import RootKeeper
from tests.fakes.failures import fails
from tests.fakes.key_service import ScriptedKeys, ring_of, wrapped_by
from tests.fakes.patience import eventually
from tests.fakes.platform.installation import STRICT, TENANT, Installation
from tests.faults.support.activities import Activities

LONG = timedelta(minutes=5)


class ServedWorker:
    """A worker without a key file, and the service that wraps its keys."""

    def __init__(self, place: Installation, keys: ScriptedKeys, store: Store, keeper: RootKeeper) -> None:
        self.place, self.keys, self.keeper = place, keys, keeper
        self.worker = Activities(place, "served", store=store)

    async def has_begun(self, connection: Connection) -> bool:
        """Whether an attempt is open, something is reserved, or the provider was asked again."""
        async with self.place.store.read() as tx:
            attempt = await tx.attempts.open_of_any_kind(TENANT, connection.id, "main")
        return attempt is not None or any(
            path.is_file() for path in self.worker.journal.folder.glob("*/*.entry")
        )


@pytest_asyncio.fixture
async def served(place: Installation) -> AsyncIterator[ServedWorker]:
    keys = ScriptedKeys()
    await wrapped_by(keys, place.store)
    url, clock = place.parts.settings.database_url, place.parts.clock
    async with ring_of(keys, url, Role.WORKER, LONG, clock) as (store, keeper):
        await keeper.begin()
        yield ServedWorker(place, keys, store, keeper)


async def test_a_refresh_without_the_refresh_purposes_keys_reserves_and_sends_nothing(
    place: Installation, served: ServedWorker
):
    connection = await place.connect(STRICT)
    served.keys.disabled = {ServicePurpose.REFRESH}
    await served.keeper.look(confirm=True)
    sent = place.idp.refreshes
    assert (await served.worker.refresh(connection, 1)).failure is ErrorCode.KEY_GONE
    assert not await served.has_begun(connection)
    assert place.idp.refreshes == sent
    served.keys.disabled = set()
    await served.keeper.look()
    assert (await served.worker.refresh(connection, 1)).generation == 2


async def test_a_refresh_without_any_key_reserves_and_sends_nothing(
    place: Installation, served: ServedWorker
):
    connection = await place.connect(STRICT)
    served.keys.disabled = set(ServicePurpose)
    await served.keeper.look(confirm=True)
    sent = place.idp.refreshes
    assert (await served.worker.refresh(connection, 1)).failure is ErrorCode.KEY_GONE
    assert not await served.has_begun(connection)
    assert place.idp.refreshes == sent
    served.keys.disabled = set()
    await served.keeper.look()
    assert (await served.worker.refresh(connection, 1)).generation == 2


async def test_an_answer_that_comes_when_every_key_is_gone_waits_in_the_journal(
    place: Installation, served: ServedWorker
):
    connection = await place.connect(STRICT)
    async with place.idp.in_flight(served.worker.refresh(connection, 1)) as refresh:
        served.keys.disabled = set(ServicePurpose)
        await served.keeper.look(confirm=True)
    assert (await refresh).failure is ErrorCode.KEY_GONE
    assert served.worker.journal.count_waiting() == (1, 0)
    served.keys.disabled = set()
    await served.keeper.look()
    assert await served.worker.replayer.sweep() == 1
    assert (await served.worker.refresh(connection, 1)).generation == 2


async def test_a_code_is_exchanged_once_the_service_is_back(place: Installation):
    """A code is good for minutes, and its subject has consented: a service that is away ends no consent."""
    connection = await place.begin()
    consent = await place.consent(connection, tell=False)
    keys = ScriptedKeys()
    await wrapped_by(keys, place.store)
    url, clock = place.parts.settings.database_url, place.parts.clock
    async with ring_of(keys, url, Role.WORKER, timedelta(seconds=1), clock) as (store, keeper):
        await keeper.begin()
        worker = Activities(place, "served", store=store)
        keys.away = True
        await keeper.look(confirm=True)
        await eventually(lambda: lacks_keys(store))
        with fails(ErrorCode.KEY_UNAVAILABLE):  # Temporal tries again
            await worker.exchange(connection, consent)
        assert (await place.consent_of(consent)).status is ConsentStatus.CODE_RECEIVED
        assert place.idp.count("token") == 0
        keys.away = False
        await keeper.look()
        assert (await worker.exchange(connection, consent)).generation == 1


@pytest.mark.parametrize("purpose", [ServicePurpose.INTAKE, ServicePurpose.REFRESH, ServicePurpose.AUTHORITY])
async def test_a_key_that_was_taken_away_by_mistake_ends_no_consent(
    place: Installation, served: ServedWorker, purpose: ServicePurpose
):
    connection = await place.begin()
    consent = await place.consent(connection, tell=False)
    served.keys.disabled = {purpose}
    await served.keeper.look(confirm=True)
    with fails(ErrorCode.KEY_GONE):  # Temporal tries again
        await served.worker.exchange(connection, consent)
    assert (await place.consent_of(consent)).status is ConsentStatus.CODE_RECEIVED
    assert place.idp.count("token") == 0
    served.keys.disabled = set()
    await served.keeper.look()
    assert (await served.worker.exchange(connection, consent)).generation == 1


async def lacks_keys(store: Store) -> bool:
    try:
        store.ring.require(KeyPurpose.REFRESH)
    except Failure:
        return True
    return False
