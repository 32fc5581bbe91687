"""A consent's end, and the answer that is on its way: it is waited for, or what it brings is revoked."""

import json
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio

from activities.grants import provider_revocation
from activities.grants.token_request import CODE_RULES
from activities.support.provider_context import ProviderContext, ProviderContextLoader
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState, RevocationOutcome
from evergrant_server.core.connections.consent import Consent, ConsentKind
from evergrant_server.core.connections.device_code import DeviceCode, DevicePoll
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.connections.grant import TokenSet
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AttemptId
from evergrant_server.core.messages.activities import GrantResult, RequestFirstTokens
from evergrant_server.core.secret import Secret
from evergrant_server.core.single_use.attempt import AttemptKind, AttemptOutcome, LateTokens
from evergrant_server.store.connections.consents import Consents
from evergrant_server.store.connections.tables import ConsentRow
from providers.responses.raw_reply import RawReply
from tests.fakes.certificates import LoopbackTls
from tests.fakes.clock import SetClock
from tests.fakes.events.transmitter import id_token
from tests.fakes.failures import fails
from tests.fakes.platform.installation import TENANT, Installation
from tests.fakes.providers.scripted_provider import Answer as Scripted
from tests.fakes.providers.scripted_provider import ScriptedProvider, ok, raw, status
from tests.faults.consent.test_staged_definition_first_tokens import a_code
from tests.faults.consent.test_stuck_states import breaks
from tests.faults.support.activities import Activities, call_for

CODE_LIVES_S = 600
JSON = {"content-type": "application/json"}


@pytest.fixture
def with_worker() -> bool:
    return False


@pytest.fixture
def provider(tls: LoopbackTls) -> ScriptedProvider:
    made = ScriptedProvider(tls=tls)
    made.script(a_code(), at="device")
    return made


class Device:
    """A connection whose subject was shown a code, and a worker by a clock that the test moves."""

    connection: Connection
    consent: Consent

    def __init__(self, place: Installation) -> None:
        self.place, self.idp = place, place.idp
        self.clock = SetClock(place.parts.clock.now())
        self.worker = Activities(place, "one-host", clock=self.clock)

    async def begun(self) -> "Device":
        document = self.place.document(
            auth_modes=["device_code"],
            revocation_endpoint=self.idp.url("revoke"),
            device_authorization_endpoint=self.idp.url("device"),
        )
        begun = await self.place.begin(await self.place.integration_with(document))
        self.connection = await self.place.change(begun, flow=Flow.DEVICE_CODE)
        self.consent = await self.place.unasked(begun, ConsentKind.DEVICE)
        assert (await self.worker.poll(self.connection, self.consent)).device_poll is DevicePoll.STARTED
        return self

    def approved(self, **fields: str) -> bytes:
        return json.dumps({**self.idp.grant(), **fields}).encode()

    async def died_with_the_answer(self, **fields: str) -> AttemptId:
        """A neighbour of this host: the subject had approved."""
        dies = Activities(self.place, "one-host", clock=self.clock)
        use = await dies.single_use.open(
            AttemptKind.DEVICE_CODE,
            self.connection,
            CODE_RULES,
            token_valid=False,
            credential=self.consent.id,
        )
        order = RequestFirstTokens(**call_for(self.connection), consent_id=self.consent.id, generation=0)
        await dies.dies_with(use, order, RawReply(200, JSON, self.approved(**fields)))
        return use.row.id

    async def ends(self, state: LifecycleState) -> None:
        now = self.place.parts.clock.now()
        async with self.place.store.write() as tx:
            current = await tx.connections.get(TENANT, self.connection.id)
            assert current is not None
            denied = state is LifecycleState.DENIED
            ended = current.consent_denied(now) if denied else current.consent_expired(now)
            await tx.connections.replace(ended, expected=current.revision)

    async def turned_away(self) -> bool:
        """Was what came revoked? As the record says, and the provider."""
        (came,) = await self.place.audited(self.connection, AuditAction.LATE_TOKENS_RECEIVED)
        alive = any(family.alive for family in self.idp.families)
        assert came.detail["revoked"] is not alive
        return not alive


@pytest_asyncio.fixture
async def device(place: Installation) -> Device:
    return await Device(place).begun()


async def test_of_the_codes_that_two_tries_get_at_once_the_first_to_be_shown_stays(
    place: Installation, monkeypatch: pytest.MonkeyPatch
):
    device, beside, read = Device(place), Activities(place, "other-host"), Consents.device_code
    device.idp.script(a_code("dc-2"), at="device")
    polled: list[GrantResult] = []

    async def overtaken(consents: Consents, consent: Consent) -> DeviceCode | None:
        found = await read(consents, consent)
        if not polled:
            polled.append(GrantResult())
            polled.append(await beside.poll(device.connection, device.consent))
        return found

    monkeypatch.setattr(Consents, "device_code", overtaken)
    await device.begun()
    assert polled[-1].device_poll is DevicePoll.STARTED
    async with place.store.read() as tx:
        shown = await tx.consents.device_code(device.consent)
    assert (device.idp.count("device"), shown and shown.device_code.reveal()) == (2, "dc-1")


async def test_an_expired_device_code_waits_for_the_last_polls_reply(device: Device):
    """The subject had approved in time, and the tokens lie in a journal."""
    await device.died_with_the_answer()
    device.clock.advance(CODE_LIVES_S)
    with pytest.raises(Failure) as waits:
        await device.worker.poll(device.connection, device.consent)
    assert waits.value.code is ErrorCode.REFRESH_PENDING
    assert waits.value.retry_after is not None
    assert (await device.place.row(device.connection)).state is LifecycleState.PENDING_CONSENT
    assert await device.worker.replayer.sweep() == 1
    assert (await device.place.row(device.connection)).state is LifecycleState.ACTIVE
    assert (await device.worker.poll(device.connection, device.consent)).generation == 1


async def test_another_host_does_not_poll_while_a_reply_may_come(device: Device):
    """It may bring the tokens, and the second one would hear that the code is spent."""
    other = Activities(device.place, "another-host")
    async with device.idp.in_flight(
        device.worker.poll(device.connection, device.consent),
        answer=raw(device.approved(), headers={"Content-Type": "application/json"}),
    ) as first:
        with fails(ErrorCode.REFRESH_PENDING):
            await other.poll(device.connection, device.consent)
        assert device.idp.count("token") == 1
    assert (await first).generation == 1
    assert (await other.poll(device.connection, device.consent)).generation == 1


async def test_an_expired_device_code_ends_without_a_pending_reply(device: Device):
    device.clock.advance(CODE_LIVES_S)
    news = await device.worker.poll(device.connection, device.consent)
    assert (news.failure, news.consent_over) == (ErrorCode.CONSENT_EXPIRED, True)


async def test_a_consent_deadline_waits_for_a_pending_reply(device: Device):
    await device.died_with_the_answer()
    with fails(ErrorCode.REFRESH_PENDING):
        await device.worker.end_consent(device.connection)
    await device.worker.replayer.sweep()
    stands = await device.worker.end_consent(device.connection)
    assert stands is not None
    assert stands.state is LifecycleState.ACTIVE


@pytest.mark.parametrize(
    ("state", "said", "revoked"),
    [(LifecycleState.CONSENT_EXPIRED, ok(), True), (LifecycleState.DENIED, status(503), False)],
)
async def test_a_journalled_reply_for_an_ended_consent_is_revoked_once(
    device: Device, state: LifecycleState, said: Scripted, revoked: bool
):
    """No connection can hold these tokens any more: they are revoked, and the audit log records them."""
    attempt_id = await device.died_with_the_answer()
    await device.ends(state)
    device.idp.script(said, at="revoke")
    assert await device.worker.replayer.sweep() == 1
    assert await device.turned_away() is revoked
    assert (await device.place.row(device.connection)).state is state
    async with device.place.store.read() as tx:
        attempt = await tx.attempts.get(TENANT, attempt_id)
    assert attempt is not None
    assert attempt.outcome is AttemptOutcome.SUPERSEDED
    assert device.worker.journal.count_waiting() == (0, 0)
    assert await device.worker.replayer.sweep() == 0
    told = [call.params["token_type_hint"] for call in device.idp.calls if call.endpoint == "revoke"]
    assert told == (["refresh_token", "access_token"] if revoked else ["refresh_token"])


async def test_the_name_of_the_account_stays_with_a_consent_that_no_browser_carried(device: Device):
    who = {"iss": device.idp.issuer, "aud": device.idp.client_id, "email": "ann@example.org"}
    await device.died_with_the_answer(id_token=id_token("ann", **who, email_verified=True))
    await device.worker.replayer.sweep()
    connection = await device.place.row(device.connection)
    assert connection.state is LifecycleState.ACTIVE
    async with device.place.store.read() as tx:
        consent = await tx.consents.newest_granted(connection)
        assert consent is not None
        assert (await tx.consents.account(consent)).came == "ann@example.org"


async def test_a_refused_id_token_after_the_end_leaves_no_tokens(device: Device):
    """No workflow is left that could revoke them later."""
    await device.died_with_the_answer(id_token=id_token("ann", iss="https://another.example", aud="another"))
    await device.ends(LifecycleState.CONSENT_EXPIRED)
    assert await device.worker.replayer.sweep() == 1
    assert await device.turned_away()


async def test_a_late_reply_during_a_revocation_is_revoked_with_it_however_often_that_takes(device: Device):
    """Its consent was sent twice, and refused the second time; the provider is away when the reply comes."""
    attempt_id = await device.died_with_the_answer()
    async with device.place.store.write() as tx:
        attempt = await tx.attempts.get(TENANT, attempt_id)
        assert attempt is not None
        await tx.attempts.close(attempt, AttemptOutcome.SUPERSEDED, device.clock.now())
    await device.place.revoke(device.connection, tell=False)
    device.idp.script(status(503), at="revoke")
    assert await device.worker.replayer.sweep() == 1
    for _ in range(2):
        await device.worker.revoke(device.connection)
    assert (await device.place.row(device.connection)).revocation is RevocationOutcome.CONFIRMED
    assert [it.alive for it in device.idp.families] == [False]


async def test_a_reply_in_flight_when_its_consent_ends_is_revoked(device: Device):
    """It ends with a word of its own, and not as something unexpected."""
    async with device.idp.in_flight(
        device.worker.poll(device.connection, device.consent),
        answer=raw(device.approved(), headers={"Content-Type": "application/json"}),
    ) as poll:
        await device.ends(LifecycleState.CONSENT_EXPIRED)
    news = await poll
    assert (news.failure, news.consent_over) == (ErrorCode.CONSENT_EXPIRED, True)
    assert await device.turned_away()
    assert await device.place.open_attempts(device.connection) == 0


async def kept_late(device: Device, *chains: str) -> LateTokens:
    """With the tokens of further slots beside it."""
    given = device.idp.grant()
    beside = {name: device.idp.grant() for name in chains}
    tokens = TokenSet(
        access_token=Secret("at-late"),
        refresh_token=Secret(given["refresh_token"]),
        further={
            name: TokenSet(access_token=Secret("at"), refresh_token=Secret(it["refresh_token"]))
            for name, it in beside.items()
        },
    )
    return await device.place.keep_late(device.connection, tokens)


async def test_every_slot_of_a_late_reply_ends_with_its_consent(device: Device):
    await kept_late(device, "user")
    assert await device.worker.end_consent(device.connection) is None
    assert await device.turned_away()
    assert [it.alive for it in device.idp.families] == [False, False]


async def test_every_slot_of_a_late_reply_is_revoked_with_its_connection(device: Device):
    await kept_late(device, "user")
    await device.place.revoke(device.connection, tell=False)
    assert (await device.worker.revoke(device.connection)).revocation is RevocationOutcome.CONFIRMED
    assert [it.alive for it in device.idp.families] == [False, False]


async def test_a_store_outage_at_a_consents_end_leaves_no_late_tokens(
    device: Device, monkeypatch: pytest.MonkeyPatch
):
    await kept_late(device)
    take, away = ProviderContextLoader.load, [Failure(ErrorCode.STORE_UNAVAILABLE)]

    async def blinks(self: ProviderContextLoader, *which: Any) -> ProviderContext:
        if away:
            raise away.pop()
        return await take(self, *which)

    monkeypatch.setattr(ProviderContextLoader, "load", blinks)
    with fails(ErrorCode.STORE_UNAVAILABLE):
        await device.worker.end_consent(device.connection)
    assert await device.worker.end_consent(device.connection) is None
    assert await device.turned_away()


async def test_an_unexpected_error_while_revoking_late_tokens_is_not_retried_forever(
    device: Device, monkeypatch: pytest.MonkeyPatch
):
    await device.died_with_the_answer()
    await device.ends(LifecycleState.CONSENT_EXPIRED)

    async def broken(*_: Any) -> RevocationOutcome:
        raise ValueError("at-late")

    monkeypatch.setattr(provider_revocation, "revoke_at_provider", broken)
    assert await device.worker.replayer.sweep() == 1
    assert not await device.turned_away()
    assert device.worker.journal.count_waiting() == (0, 0)


async def test_a_device_code_with_a_broken_seal_ends_its_consent(device: Device):
    async with device.place.store.write() as tx:
        await breaks(tx, ConsentRow, "sealed_device", id=device.consent.id)
    news = await device.worker.poll(device.connection, device.consent)
    assert (news.failure, news.consent_over) == (ErrorCode.SEAL_BROKEN, True)


async def test_a_deadline_that_a_newer_link_has_postponed_is_no_end_and_a_denial_is(device: Device):
    known = device.connection.consent_deadline
    later = known + timedelta(hours=1)
    await device.place.change(device.connection, consent_deadline=later)
    stands = await device.worker.end_consent(device.connection, known)
    assert stands == GrantResult(state=LifecycleState.PENDING_CONSENT, consent_deadline=later)
    assert (await device.place.row(device.connection)).state is LifecycleState.PENDING_CONSENT
    assert await device.worker.end_consent(device.connection, denied=True) is None
    assert (await device.place.row(device.connection)).state is LifecycleState.DENIED


async def test_a_workflow_of_an_earlier_version_ends_the_consent_at_the_deadline_that_it_knows(
    device: Device,
):
    later = device.connection.consent_deadline + timedelta(hours=1)
    await device.place.change(device.connection, consent_deadline=later)
    assert await device.worker.end_consent(device.connection) is None
    assert (await device.place.row(device.connection)).state is LifecycleState.CONSENT_EXPIRED


@pytest.mark.parametrize(("said", "revoked"), [(ok(), True), (status(503), False)])
async def test_a_late_reply_is_revoked_at_its_consents_deadline(
    device: Device, said: Scripted, revoked: bool
):
    """It waited to be verified, and its provider said neither yes nor no."""
    await kept_late(device)
    device.idp.script(said, at="revoke")
    assert await device.worker.end_consent(device.connection) is None
    assert (await device.place.row(device.connection)).state is LifecycleState.CONSENT_EXPIRED
    assert await device.turned_away() is revoked
    async with device.place.store.read() as tx:
        assert await tx.late_tokens.of_connection(TENANT, device.connection.id) == []
    told = device.idp.count("revoke")
    assert await device.worker.end_consent(device.connection) is None
    assert device.idp.count("revoke") == told, "once"


async def test_a_late_reply_verified_after_its_consent_ended_is_revoked(device: Device):
    late = await kept_late(device)
    async with device.idp.in_flight(device.worker.verify(device.connection, late.attempt_id)) as verified:
        await device.ends(LifecycleState.CONSENT_EXPIRED)
    assert (await verified).failure is ErrorCode.CONSENT_EXPIRED
    assert await device.turned_away()
    assert await device.place.open_attempts(device.connection) == 0
