"""Single-use credentials: pauses before the send, and more late answers than one."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from activities.single_use.critical_section import CriticalSections
from activities.single_use.journal_replay import JournaledReply
from activities.single_use.protocol import SingleUseProtocol
from activities.support.context_loader import ProviderContextLoader
from activities.support.provider_context import ProviderContext
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState, RevocationOutcome
from evergrant_server.core.connections.grant import MAIN_SLOT, TokenSet
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId, Tenant
from evergrant_server.core.integrations import RefreshRules, Rotation
from evergrant_server.core.messages.activities import ConnectionCall, RefreshGrant
from evergrant_server.core.messages.base import Provenance
from evergrant_server.core.secret import Secret
from evergrant_server.core.single_use.attempt import LIMITS, AttemptKind, AttemptOutcome, TimeLimits
from evergrant_server.crypto import KeyPurpose
from evergrant_server.journal import Journal
from evergrant_server.store import Store, Transaction, UnwrappedKeys
from providers.requests.sender import Sender
from providers.responses.raw_reply import RawReply
from tests.fakes.platform.installation import ASKED, TENANT, Installation
from tests.fakes.providers.scripted_provider import ScriptedProvider, error
from tests.faults.support.activities import Activities, at_temporal
from tests.unit.activities.single_use.protocol_worker import RecordedOutcome, reservation_of

STRICT = RefreshRules(rotation=Rotation.STRICT)


async def test_send_by_counts_from_before_the_intent(
    place: Installation, idp: ScriptedProvider, tmp_path: Path
):
    """Others count it from the row's `opened_at`: a pause during or after the commit is part of it."""
    connection = await place.connect(idp, STRICT)
    journal = Journal(tmp_path / "another-host")
    limits = TimeLimits(send=timedelta(seconds=0.2))
    single_use = SingleUseProtocol(place.store, place.parts.clock, CriticalSections(), journal, limits)
    use = await single_use.open(AttemptKind.REFRESH, connection, STRICT, token_valid=True)
    await asyncio.sleep(0.3)  # the process is stopped
    left: list[bool] = []

    async def sending() -> RawReply:
        use.check()
        left.append(True)
        return RawReply(200, {}, b"{}")

    provenance = Provenance(workflow_id="w", run_id="r", event_id=1)
    order = ConnectionCall(tenant=TENANT, connection_id=connection.id, context=ASKED, provenance=provenance)
    recorded = RecordedOutcome(journal)
    await single_use.spend(use, order, sending(), recorded)
    assert left == []
    assert recorded.failed == [(ErrorCode.REFRESH_PENDING, AttemptOutcome.NOT_SENT)]
    journal.release()


LATE = RawReply(200, {}, b'{"access_token": "at-late", "token_type": "Bearer", "refresh_token": "rt-late"}')
LOST = Failure(ErrorCode.STORE_UNAVAILABLE, "its answer was lost")


@pytest.mark.parametrize("cut", [LOST, asyncio.CancelledError()], ids=["answer lost", "cut"])
async def test_a_lost_commit_reply_of_an_intent_sends_nothing(
    place: Installation, idp: ScriptedProvider, tmp_path: Path, cut: BaseException
):
    """Nothing was sent: the token isn't waited for until it is over, and its next use is its first."""
    connection = await place.connect(idp, STRICT)

    @asynccontextmanager
    async def unheard(keys: UnwrappedKeys | None = None) -> AsyncIterator[Transaction]:
        async with place.store.write(keys) as tx:
            yield tx
        raise cut

    store = await Store.open(place.parts.settings.database_url, place.parts.ring, place.parts.clock)
    store.write = unheard  # type: ignore[method-assign]  # the commit is real, its answer is lost
    worker = Activities(place, (idp.allowance,), tmp_path / "here")
    single_use = SingleUseProtocol(store, place.parts.clock, CriticalSections(), worker.journal)
    with pytest.raises(type(cut)):
        await single_use.open(AttemptKind.REFRESH, connection, STRICT, token_valid=True)
    await store.close()
    async with place.store.read() as tx:
        stands = await tx.attempts.open_of_any_kind(TENANT, connection.id, MAIN_SLOT)
    assert stands is not None
    assert (await worker.refresh(connection, 1)).generation == 2
    async with place.store.read() as tx:
        ended = await tx.attempts.get(TENANT, stands.id)
    assert ended is not None
    assert ended.outcome is AttemptOutcome.NOT_SENT
    await worker.replayer.sweep()
    assert list(worker.journal.own_paths()) == [], "its room is given back"


@pytest.mark.parametrize("refused", [0, 1])
async def test_a_refused_late_reply_leaves_the_other_one(
    place: Installation, idp: ScriptedProvider, tmp_path: Path, refused: int
):
    """Two workers sent, and both answers came late: one of them may be the newest token there is."""
    connection = await place.connect(idp, STRICT)
    idp.script(error("invalid_grant"))
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
    worker = Activities(place, (idp.allowance,), tmp_path / "here")
    news = await worker.verify(connection, kept[refused].attempt_id)
    assert news.failure is ErrorCode.GRANT_REJECTED
    assert news.next_late_attempt == kept[1 - refused].attempt_id, "it is tried next"
    again = await worker.verify(connection, kept[refused].attempt_id)
    assert again.next_late_attempt == news.next_late_attempt, "the first news of it may be lost"
    async with place.store.read() as tx:
        left = await tx.late_tokens.of_connection(TENANT, connection.id)
    assert [it.attempt_id for it in left] == [kept[1 - refused].attempt_id]
    assert (await worker.verify(connection, kept[1 - refused].attempt_id)).next_late_attempt is None


async def test_nothing_is_sent_for_a_connection_ended_since_it_was_read(
    place: Installation, idp: ScriptedProvider, tmp_path: Path
):
    """A replayed refusal condemned it while a refresh had its token in hand: that closed the attempt
    which stood in the way, and the generation is the same."""
    read = await place.row(await place.connect(idp, STRICT))
    journal = Journal(tmp_path / "one-host")
    single_use = SingleUseProtocol(place.store, place.parts.clock, CriticalSections(), journal)
    async with place.store.write() as tx:
        condemned = read.rejected(ErrorCode.GRANT_REJECTED, place.parts.clock.now())
        await tx.connections.replace(condemned, expected=read.revision)
    with pytest.raises(Failure) as raised:
        await single_use.open(AttemptKind.REFRESH, read, STRICT, token_valid=True)
    assert raised.value.code is ErrorCode.STORE_CONFLICT
    assert await place.open_attempts(read) == 0


async def died_with(
    place: Installation,
    connection: Connection,
    folder: Path,
    reply: RawReply,
    *,
    provisional: bool = False,
    limits: TimeLimits = LIMITS,
) -> Path:
    """The entry of a worker of this host that died with an answer in its journal."""
    journal = Journal(folder)
    dies = SingleUseProtocol(place.store, place.parts.clock, CriticalSections(), journal, limits)
    use = await dies.open(AttemptKind.REFRESH, connection, STRICT, token_valid=True)
    provenance = Provenance(workflow_id="w", run_id="r", event_id=1)
    order = RefreshGrant(
        tenant=TENANT, connection_id=connection.id, context=ASKED, provenance=provenance, generation=1
    )
    answer = JournaledReply.for_request(order, reply, place.parts.clock.now(), provisional=provisional)
    entry = reservation_of(use).write_entry(use.keys.current(KeyPurpose.REFRESH), answer.pack())
    journal.release()
    return entry.path


@pytest.mark.parametrize(
    ("provisional", "state"), [(True, LifecycleState.ACTIVE), (False, LifecycleState.NEEDS_REAUTH)]
)
async def test_a_replay_does_not_trust_a_staged_definitions_refusal(
    place: Installation, idp: ScriptedProvider, tmp_path: Path, provisional: bool, state: LifecycleState
):
    """Its worker died with the answer in its journal, and the definition was rolled back meanwhile."""
    connection = await place.connect(idp, STRICT)
    reply = RawReply(400, {"content-type": "application/json"}, b'{"error": "invalid_grant"}')
    path = await died_with(place, connection, tmp_path / "one-host", reply, provisional=provisional)
    assert await Activities(place, (idp.allowance,), tmp_path / "one-host").replayer.sweep() == 1
    assert (await place.row(connection)).state is state
    assert not path.exists()


async def test_a_replay_sets_an_unreadable_reply_aside(
    place: Installation, idp: ScriptedProvider, tmp_path: Path
):
    """It may hold the only good token, and a repaired definition reads it."""
    connection = await place.connect(idp, STRICT)
    reply = RawReply(200, {"content-type": "text/html"}, b"<p>Here you are</p>")
    path = await died_with(place, connection, tmp_path / "one-host", reply)
    await Activities(place, (idp.allowance,), tmp_path / "one-host").replayer.sweep()
    assert path.with_suffix(".set-aside").exists()


async def test_a_lost_commit_reply_of_a_code_exchange_keeps_its_grant(
    place: Installation, idp: ScriptedProvider, tmp_path: Path
):
    """It is tried again, and finds that its attempt has ended: by its own commit."""
    integration = await place.integration(idp)
    connection = await place.begin(integration)
    consent = await place.consent(idp, integration, connection, tell=False)
    store = await Store.open(place.parts.settings.database_url, place.parts.ring, place.parts.clock)
    write, lost = store.write, [LOST]

    @asynccontextmanager
    async def unheard_once(keys: UnwrappedKeys | None = None) -> AsyncIterator[Transaction]:
        async with write(keys) as tx:
            yield tx
        if keys is not None and lost:  # an answer is committed with keys that were held before it
            raise lost.pop()

    store.write = unheard_once  # type: ignore[method-assign]  # the commit is real, its answer is lost
    worker = Activities(place, (idp.allowance,), tmp_path / "here", store=store)
    news = await worker.exchange(connection, consent)
    await store.close()
    assert lost == []
    assert (news.failure, news.state, news.generation) == (None, LifecycleState.ACTIVE, 1)
    assert await worker.replayer.sweep() == 0, "its entry is dropped"


async def test_a_code_exchange_overtaken_by_a_replay_returns_its_grant(
    place: Installation, idp: ScriptedProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Asked again by Temporal, a worker has read the consent; then its code is gone."""
    integration = await place.integration(idp)
    connection = await place.begin(integration)
    consent = await place.consent(idp, integration, connection, tell=False)
    first, again = (Activities(place, (idp.allowance,), tmp_path / "one-host") for _ in range(2))
    take, overtaken = ProviderContextLoader.load, [True]

    async def overtaken_once(
        holder: ProviderContextLoader, tenant: Tenant, id: ConnectionId
    ) -> ProviderContext:
        if overtaken:
            overtaken.clear()
            assert (await first.exchange(connection, consent)).generation == 1
        return await take(holder, tenant, id)

    monkeypatch.setattr(ProviderContextLoader, "load", overtaken_once)
    news = await again.exchange(connection, consent)
    assert (news.failure, news.state, news.generation) == (None, LifecycleState.ACTIVE, 1)
    assert idp.count("token") == 1


async def test_tokens_that_land_during_the_revocation_are_revoked(
    place: Installation, idp: ScriptedProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Its host was away for longer than replies are waited for, and comes back at this moment."""
    connection = await place.connect(idp, STRICT)
    long_ago = TimeLimits(send=-timedelta(minutes=2))
    await died_with(place, connection, tmp_path / "far", LATE, limits=long_ago)
    async with place.store.write() as tx:
        asked = (await place.row(connection)).revocation_requested("asked", place.parts.clock.now())
        await tx.connections.replace(asked, expected=asked.revision)
    here, revoke = Activities(place, (idp.allowance,), tmp_path / "here"), Sender.revoke

    async def lands_first(sender: Sender, *args: Any, **more: Any) -> RawReply:
        await Activities(place, (idp.allowance,), tmp_path / "far").replayer.sweep()
        return await revoke(sender, *args, **more)

    monkeypatch.setattr(Sender, "revoke", lands_first)
    news = await here.revoke(connection)
    assert (news.failure, news.retry_after) == (ErrorCode.REFRESH_PENDING, 3)
    row = await place.row(connection)
    assert (row.state, row.generation) == (LifecycleState.REVOKING, 2)
    assert (await here.revoke(connection)).revocation is RevocationOutcome.CONFIRMED
    recorded = [call.params["token"] for call in idp.calls if call.endpoint == "revoke"]
    assert recorded[2:] == ["rt-late", "at-late"]


async def test_tokens_that_land_after_the_revocation_are_revoked(
    place: Installation, idp: ScriptedProvider, tmp_path: Path
):
    """Its host was away and the wait for the reply had ended; the process still has the reply."""
    connection = await place.connect(idp, STRICT)
    long_ago = TimeLimits(send=-timedelta(minutes=2))
    far = Activities(place, (idp.allowance,), tmp_path / "far", long_ago)
    use = await far.single_use.open(AttemptKind.REFRESH, connection, STRICT, token_valid=True)
    await place.revoke(connection)
    await place.until(connection, lambda row: row.state is LifecycleState.REVOKED)
    provenance = Provenance(workflow_id="w", run_id="r", event_id=1)
    order = RefreshGrant(
        tenant=TENANT, connection_id=connection.id, context=ASKED, provenance=provenance, generation=1
    )
    answer = JournaledReply.for_request(order, LATE, place.parts.clock.now())
    news = await at_temporal().run(far._refresh.replay, use, answer)
    assert news.state is LifecycleState.REVOKED
    recorded = [call.params["token"] for call in idp.calls if call.endpoint == "revoke"]
    assert recorded[-2:] == ["rt-late", "at-late"]
    (said,) = await place.records(AuditAction.LATE_TOKENS_RECEIVED)
    assert (said.detail["state"], said.detail["revoked"]) == (LifecycleState.REVOKED, True)
