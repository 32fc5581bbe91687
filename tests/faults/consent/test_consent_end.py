"""A consent's end, and the answer that is on its way: it is waited for, or what it brings is revoked."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from activities.grants import provider_revocation
from activities.grants.token_request import CODE_RULES
from activities.single_use.critical_section import CriticalSections
from activities.single_use.journal_replay import JournaledReply
from activities.single_use.protocol import SingleUseProtocol
from activities.support.context_loader import ProviderContextLoader
from activities.support.provider_context import ProviderContext
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState, RevocationOutcome
from evergrant_server.core.connections.consent import Consent, ConsentKind, DevicePoll
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.connections.grant import TokenSet
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AttemptId
from evergrant_server.core.messages.activities import EndConsent, GrantResult, RequestFirstTokens
from evergrant_server.core.messages.base import Provenance
from evergrant_server.core.secret import Secret
from evergrant_server.core.single_use.attempt import AttemptKind, AttemptOutcome, LateTokens
from evergrant_server.crypto import KeyPurpose
from evergrant_server.journal import Journal
from evergrant_server.store.connections.tables import ConsentRow
from providers.responses.raw_reply import RawReply
from tests.fakes.certificates import loopback_tls
from tests.fakes.clock import SetClock
from tests.fakes.platform.installation import ASKED, TENANT, Installation
from tests.fakes.providers.scripted_provider import Answer as Scripted
from tests.fakes.providers.scripted_provider import ScriptedProvider, delay, hold_answer, ok, raw, status
from tests.faults.consent.test_staged_definition_first_tokens import A_CODE
from tests.faults.consent.test_stuck_states import breaks
from tests.faults.late_tokens.test_late_code_reply import integration
from tests.faults.support.activities import Activities, at_temporal
from tests.unit.activities.single_use.protocol_worker import reservation_of

CODE_LIVES_S = 600
JSON = {"content-type": "application/json"}
PROVENANCE = Provenance(workflow_id="w", run_id="r", event_id=1)


@pytest_asyncio.fixture
async def idp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ScriptedProvider]:
    tls = loopback_tls(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(tls.authorities))
    async with ScriptedProvider(tls=tls) as provider:
        provider.script(A_CODE, at="device")
        yield provider


class Worker(Activities):
    """One of this host's, by a clock that the test moves."""

    def __init__(self, place: Installation, idp: ScriptedProvider, folder: Path) -> None:
        self.clock = SetClock(place.parts.clock.now())
        super().__init__(place, (idp.allowance,), folder / "one-host", clock=self.clock)

    async def end(self, connection: Connection) -> GrantResult | None:
        order = EndConsent(
            tenant=TENANT, connection_id=connection.id, context=ASKED, provenance=PROVENANCE, denied=False
        )
        return await at_temporal().run(self._consent_end.end_consent, order)


class Device:
    """A connection whose subject was shown a code."""

    def __init__(self, place: Installation, idp: ScriptedProvider, folder: Path) -> None:
        self.place = place
        self.idp = idp
        self.folder = folder
        self.worker = Worker(place, idp, folder)
        self.connection: Connection
        self.consent: Consent

    async def begun(self) -> "Device":
        at = await integration(
            self.place,
            self.idp,
            auth_modes=["device_code"],
            token_endpoint=self.idp.url("token"),
            revocation_endpoint=self.idp.url("revoke"),
            device_authorization_endpoint=self.idp.url("device"),
            template_params={},
            post_auth=[],
        )
        connection = await self.place.begin(at)
        self.consent = Consent.without_subject(
            connection,
            ConsentKind.DEVICE,
            ("read",),
            ASKED,
            at=connection.created_at,
            expires_at=connection.consent_deadline,
        )
        async with self.place.store.write() as tx:
            changed = connection.model_copy(update={"flow": Flow.DEVICE_CODE})
            self.connection = await tx.connections.replace(changed, expected=connection.revision)
            await tx.consents.add(self.consent, None)
        assert (await self.worker.poll(self.connection, self.consent)).device_poll is DevicePoll.STARTED
        return self

    def approved(self) -> bytes:
        return json.dumps(self.idp.grant()).encode()

    async def died_with_the_answer(self) -> AttemptId:
        """A neighbour of this host: the subject had approved."""
        journal = Journal(self.folder / "one-host")
        dies = SingleUseProtocol(self.place.store, self.worker.clock, CriticalSections(), journal)
        use = await dies.open(
            AttemptKind.DEVICE_CODE,
            self.connection,
            CODE_RULES,
            token_valid=False,
            credential=self.consent.id,
        )
        order = RequestFirstTokens(
            tenant=TENANT,
            connection_id=self.connection.id,
            context=ASKED,
            provenance=PROVENANCE,
            consent_id=self.consent.id,
            generation=0,
        )
        answer = JournaledReply.for_request(
            order, RawReply(200, JSON, self.approved()), self.worker.clock.now()
        )
        reservation_of(use).write_entry(use.keys.current(KeyPurpose.REFRESH), answer.pack())
        journal.release()
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
        records = await self.place.audited(self.connection)
        (came,) = (it for it in records if it.action is AuditAction.LATE_TOKENS_RECEIVED)
        alive = any(family.alive for family in self.idp.families)
        assert came.detail["revoked"] is not alive
        return not alive


@pytest_asyncio.fixture
async def device(place: Installation, idp: ScriptedProvider, tmp_path: Path) -> Device:
    return await Device(place, idp, tmp_path).begun()


async def test_an_expired_device_code_waits_for_the_last_polls_reply(device: Device):
    """The subject had approved in time, and the tokens lie in a journal."""
    await device.died_with_the_answer()
    device.worker.clock.advance(CODE_LIVES_S)
    with pytest.raises(Failure) as waits:
        await device.worker.poll(device.connection, device.consent)
    assert waits.value.code is ErrorCode.REFRESH_PENDING
    assert waits.value.retry_after is not None
    assert (await device.place.row(device.connection)).state is LifecycleState.PENDING_CONSENT
    assert await device.worker.replayer.sweep() == 1
    assert (await device.place.row(device.connection)).state is LifecycleState.ACTIVE
    assert (await device.worker.poll(device.connection, device.consent)).generation == 1


async def test_another_host_does_not_poll_while_a_reply_may_come(device: Device, tmp_path: Path):
    """It may bring the tokens, and the second one would hear that the code is spent."""
    other = Activities(device.place, (device.idp.allowance,), tmp_path / "another-host")
    gate = asyncio.Event()
    device.idp.script(delay(gate, raw(device.approved(), headers={"Content-Type": "application/json"})))
    first = asyncio.create_task(device.worker.poll(device.connection, device.consent))
    await device.idp.until("token", 1)
    with pytest.raises(Failure) as waits:
        await other.poll(device.connection, device.consent)
    assert waits.value.code is ErrorCode.REFRESH_PENDING
    assert device.idp.count("token") == 1
    gate.set()
    assert (await first).generation == 1
    assert (await other.poll(device.connection, device.consent)).generation == 1


async def test_an_expired_device_code_ends_without_a_pending_reply(device: Device):
    device.worker.clock.advance(CODE_LIVES_S)
    news = await device.worker.poll(device.connection, device.consent)
    assert (news.failure, news.consent_over) == (ErrorCode.CONSENT_EXPIRED, True)


async def test_a_consent_deadline_waits_for_a_pending_reply(device: Device):
    await device.died_with_the_answer()
    with pytest.raises(Failure) as waits:
        await device.worker.end(device.connection)
    assert waits.value.code is ErrorCode.REFRESH_PENDING
    await device.worker.replayer.sweep()
    stands = await device.worker.end(device.connection)
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


async def test_a_reply_in_flight_when_its_consent_ends_is_revoked(device: Device):
    """It ends with a word of its own, and not as something unexpected."""
    gate = asyncio.Event()
    device.idp.script(delay(gate, raw(device.approved(), headers={"Content-Type": "application/json"})))
    poll = asyncio.create_task(device.worker.poll(device.connection, device.consent))
    await device.idp.until("token", 1)
    await device.ends(LifecycleState.CONSENT_EXPIRED)
    gate.set()
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
    assert await device.worker.end(device.connection) is None
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
    with pytest.raises(Failure) as again:
        await device.worker.end(device.connection)
    assert again.value.code is ErrorCode.STORE_UNAVAILABLE
    assert await device.worker.end(device.connection) is None
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


@pytest.mark.parametrize(("said", "revoked"), [(ok(), True), (status(503), False)])
async def test_a_late_reply_is_revoked_at_its_consents_deadline(
    device: Device, said: Scripted, revoked: bool
):
    """It waited to be verified, and its provider said neither yes nor no."""
    await kept_late(device)
    device.idp.script(said, at="revoke")
    assert await device.worker.end(device.connection) is None
    assert (await device.place.row(device.connection)).state is LifecycleState.CONSENT_EXPIRED
    assert await device.turned_away() is revoked
    async with device.place.store.read() as tx:
        assert await tx.late_tokens.of_connection(TENANT, device.connection.id) == []
    told = device.idp.count("revoke")
    assert await device.worker.end(device.connection) is None
    assert device.idp.count("revoke") == told, "once"


async def test_a_late_reply_verified_after_its_consent_ended_is_revoked(device: Device):
    late = await kept_late(device)
    gate = asyncio.Event()
    device.idp.script(hold_answer(gate))
    verified = asyncio.create_task(device.worker.verify(device.connection, late.attempt_id))
    await device.idp.until("token", 1)
    await device.ends(LifecycleState.CONSENT_EXPIRED)
    gate.set()
    assert (await verified).failure is ErrorCode.CONSENT_EXPIRED
    assert await device.turned_away()
    assert await device.place.open_attempts(device.connection) == 0
