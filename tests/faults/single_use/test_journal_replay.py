"""A journalled reply is never lost: every worker of that host can replay it, also after others went on."""

import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from activities.single_use.attempt import JournaledReply
from evergrant_server import audit
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.connections.connection import Connection, LifecycleState, RevocationOutcome
from evergrant_server.core.connections.grant import TokenSet
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.messages.activities import RefreshGrant
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.secret import Secret
from evergrant_server.core.single_use.attempt import AttemptKind, TimeLimits
from evergrant_server.crypto import AssociatedData, KeyPurpose, SealingKey, new_sealing_key
from evergrant_server.crypto.keyring import KeyRing, Role
from evergrant_server.store import Store
from providers.requests.sender import Sender
from providers.responses.raw_reply import RawReply
from tests.conformance.store.samples import an_attempt
from tests.fakes.platform.installation import STRICT, TENANT, Installation
from tests.fakes.providers.scripted_provider import error
from tests.faults.support.activities import Activities, at_temporal, call_for


class FailingRing(KeyRing):
    """A key service that can go away."""

    away = False

    def unwrap(self, purpose: KeyPurpose, place: AssociatedData, key_id: str, wrapped: bytes) -> SealingKey:
        if self.away:
            raise Failure(ErrorCode.KEY_UNAVAILABLE, "the key service is away")
        return super().unwrap(purpose, place, key_id, wrapped)


@pytest_asyncio.fixture
async def ring(place: Installation) -> FailingRing:
    ring = FailingRing.open(place.parts.settings.key_path, Role.WORKER)
    assert isinstance(ring, FailingRing)
    return ring


@pytest_asyncio.fixture
async def own_store(place: Installation, ring: FailingRing) -> AsyncIterator[Store]:
    store = await Store.open(place.parts.settings.database_url, ring, place.parts.clock)
    yield store
    await store.close()


async def test_a_key_service_that_goes_away_after_the_answer_costs_nothing(
    place: Installation, own_store: Store, ring: FailingRing
):
    connection = await place.connect(STRICT)
    worker = Activities(place, "here", store=own_store)
    async with place.idp.in_flight(worker.refresh(connection, 1)) as refresh:
        ring.away = True
    assert (await refresh).generation == 2


async def left_behind(place: Installation, connection: Connection, dies: Activities) -> Path:
    """The entry of a worker that is gone, sealed with an unknown key."""
    now = place.parts.clock.now()
    attempt = an_attempt(connection, journal_id=dies.journal.id, opened_at=now, send_by=now)
    async with place.store.write() as tx:
        await tx.attempts.open(attempt)
    path = dies.journal.reserve(attempt).write_entry(new_sealing_key("cky"), b"an answer").path
    dies.journal.release()
    return path


async def test_a_torn_entry_is_set_aside_and_the_connection_goes_on(place: Installation):
    connection = await place.connect(STRICT)
    dies, lives = (Activities(place, "host") for _ in range(2))
    path = await left_behind(place, connection, dies)
    path.write_bytes(path.read_bytes()[:-1][:40])
    assert (await lives.refresh(connection, 1)).failure is ErrorCode.REFRESH_PENDING, "there may be an answer"
    assert await lives.replayer.sweep() == 0
    assert path.with_suffix(".set-aside").exists()
    assert lives.journal.count_waiting() == (0, 1)
    assert (await lives.refresh(connection, 1)).generation == 2, "as for any answer that is lost"


LONG_AGO = TimeLimits(send=-timedelta(minutes=2))
LATE = RawReply(200, {}, b'{"access_token": "at-late", "token_type": "Bearer", "refresh_token": "rt-late"}')


@pytest.mark.parametrize("refused", [0, 1])
async def test_a_refused_late_reply_leaves_the_other_one(place: Installation, refused: int):
    """Two workers sent, and both answers came late: one of them may be the newest token there is."""
    connection = await place.connect(STRICT)
    place.idp.script(error("invalid_grant"))
    await place.ensure_fresh(connection, 1)
    await place.until(connection, lambda it: it.state is LifecycleState.NEEDS_REAUTH)
    kept = [
        await place.keep_late(
            connection,
            TokenSet(access_token=Secret("a"), refresh_token=Secret(f"dead-{number}")),
            from_generation=1,
        )
        for number in range(2)
    ]
    worker = Activities(place)
    news = await worker.verify(connection, kept[refused].attempt_id)
    assert news.failure is ErrorCode.GRANT_REJECTED
    assert news.next_late_attempt == kept[1 - refused].attempt_id, "it is tried next"
    again = await worker.verify(connection, kept[refused].attempt_id)
    assert again.next_late_attempt == news.next_late_attempt, "the first news of it may be lost"
    async with place.store.read() as tx:
        left = await tx.late_tokens.of_connection(TENANT, connection.id)
    assert [it.attempt_id for it in left] == [kept[1 - refused].attempt_id]
    assert (await worker.verify(connection, kept[1 - refused].attempt_id)).next_late_attempt is None


async def died_with(connection: Connection, host: Activities, reply: RawReply, **more: bool) -> Path:
    """The entry of a worker of this host that died with an answer in its journal."""
    use = await host.single_use.open(AttemptKind.REFRESH, connection, STRICT, token_valid=True)
    return await host.dies_with(use, RefreshGrant(**call_for(connection), generation=1), reply, **more)


@pytest.mark.parametrize(
    ("provisional", "state"), [(True, LifecycleState.ACTIVE), (False, LifecycleState.NEEDS_REAUTH)]
)
async def test_a_replay_does_not_trust_a_staged_definitions_refusal(
    place: Installation, provisional: bool, state: LifecycleState
):
    """Its worker died with the answer in its journal, and the definition was rolled back meanwhile."""
    connection = await place.connect(STRICT)
    reply = RawReply(400, {"content-type": "application/json"}, b'{"error": "invalid_grant"}')
    path = await died_with(connection, Activities(place, "one-host"), reply, provisional=provisional)
    assert await Activities(place, "one-host").replayer.sweep() == 1
    assert (await place.row(connection)).state is state
    assert not path.exists()


@pytest.mark.parametrize("torn", [False, True])
async def test_a_reply_whose_worker_died_before_it_renamed_the_file_is_replayed(
    place: Installation, torn: bool
):
    """It lay complete in the file of its reservation, and was swept with it."""
    connection = await place.connect(STRICT)
    dies, lives = (Activities(place, "one-host") for _ in range(2))
    reply = RawReply(200, {}, json.dumps(place.idp.grant()).encode())
    entry = await died_with(connection, dies, reply)
    reserved = entry.rename(entry.with_suffix(".room"))
    if torn:
        reserved.write_bytes(reserved.read_bytes()[:-1])
    else:
        waits = await lives.refresh(connection, 1)
        assert waits.failure is ErrorCode.REFRESH_PENDING, "it isn't asked for again"
    assert await lives.replayer.sweep() == (0 if torn else 1)
    assert (await place.row(connection)).generation == (1 if torn else 2)
    assert not reserved.exists()
    assert lives.journal.count_waiting() == (0, 0)


async def test_tokens_that_land_during_the_revocation_are_revoked(
    place: Installation, monkeypatch: pytest.MonkeyPatch
):
    """Its host was away for longer than replies are waited for, and comes back at this moment."""
    connection = await place.connect(STRICT)
    await died_with(connection, Activities(place, "far", LONG_AGO), LATE)
    await place.revoke(connection, tell=False)
    here, send = Activities(place), Sender.send

    async def lands_first(sender: Sender, *args: Any, **more: Any) -> RawReply:
        await Activities(place, "far").replayer.sweep()
        return await send(sender, *args, **more)

    monkeypatch.setattr(Sender, "send", lands_first)
    news = await here.revoke(connection)
    assert (news.failure, news.retry_after) == (ErrorCode.REFRESH_PENDING, 3)
    row = await place.row(connection)
    assert (row.state, row.generation) == (LifecycleState.REVOKING, 2)
    assert (await here.revoke(connection)).revocation is RevocationOutcome.CONFIRMED
    recorded = [call.params["token"] for call in place.idp.calls if call.endpoint == "revoke"]
    assert recorded[2:] == ["rt-late", "at-late"]


async def test_tokens_that_land_after_the_revocation_are_revoked(place: Installation):
    """Its host was away and the wait for the reply had ended; the process still has the reply."""
    connection = await place.connect(STRICT)
    far = Activities(place, "far", LONG_AGO)
    use = await far.single_use.open(AttemptKind.REFRESH, connection, STRICT, token_valid=True)
    await place.revoked(connection)
    order = RefreshGrant(**call_for(connection), generation=1)
    answer = JournaledReply.for_request(order, LATE, place.parts.clock.now())
    news = await at_temporal().run(far.replayer._replays[AttemptKind.REFRESH], use, answer)
    assert news.state is LifecycleState.REVOKED
    recorded = [call.params["token"] for call in place.idp.calls if call.endpoint == "revoke"]
    assert recorded[-2:] == ["rt-late", "at-late"]
    (said,) = await place.records(AuditAction.LATE_TOKENS_RECEIVED)
    assert (said.detail["state"], said.detail["revoked"]) == (LifecycleState.REVOKED, True)


async def test_the_reply_of_an_erased_connection_is_dropped(place: Installation):
    """Its host was away when the connection was erased; one that a backup lacks stays, and is named."""
    erased, unknown = await place.connect(STRICT), await place.connect(STRICT)
    far = [await died_with(connection, Activities(place, "far"), LATE) for connection in (erased, unknown)]
    entry = AuditEntry(
        tenant=TENANT,
        at=place.parts.clock.now(),
        action=AuditAction.CONNECTION_ERASED,
        object=erased.id,
        context=RequestContext(by="app:admin"),
    )
    async with place.store.write() as tx:
        for connection in (erased, unknown):
            await tx.personal_rows.erase_connection(TENANT, connection.id)
        await audit.append(tx, entry)
    await Activities(place, "far").replayer.sweep()
    assert [path.exists() for path in far] == [False, True]
