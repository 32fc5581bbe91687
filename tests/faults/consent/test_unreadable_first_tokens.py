"""A consent's tokens that a definition can't read: kept, read once it is repaired, and never forgotten."""

import asyncio
from functools import partial
from pathlib import Path

import pytest

from evergrant_server.audit.external_revocation import apply_external_event
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.consent import Consent, ConsentStatus
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.messages.activities import GrantResult
from evergrant_server.core.provider_events.external_revocation import Certainty, ProviderReport, ReportSource
from evergrant_server.core.single_use.attempt import TimeLimits
from providers.definition.registry import Registry
from tests.fakes.patience import PATIENCE_S
from tests.fakes.platform.installation import ASKED, TENANT, Installation
from tests.fakes.providers.scripted_provider import ScriptedProvider, error, hold_answer, ok, raw
from tests.faults.integrations.test_secret_rotation import rotate
from tests.faults.single_use.test_unreadable_tokens import repaired
from tests.faults.support.activities import Activities
from tests.faults.support.reply_timing import SHORT, left, outcome

JSON = {"Content-Type": "application/json"}
UNREAD = ok(token_type="of another kind")


@pytest.fixture
def here(place: Installation, idp: ScriptedProvider, tmp_path: Path) -> Activities:
    return Activities(place, (idp.allowance,), tmp_path / "here")


async def consented(place: Installation, idp: ScriptedProvider, connection: Connection) -> Consent:
    return await place.consent(idp, await place.integration_of(connection), connection, tell=False)


async def unread(
    place: Installation, idp: ScriptedProvider, here: Activities, connection: Connection
) -> Consent:
    consent = await consented(place, idp, connection)
    idp.script(UNREAD)
    assert (await here.exchange(connection, consent)).failure is ErrorCode.REPLY_UNREADABLE
    return consent


async def test_unreadable_tokens_of_a_new_consent_replace_a_working_grant_after_the_repair(
    place: Installation, idp: ScriptedProvider, here: Activities
):
    """For more scopes, say. The provider may have ended the grant before with it."""
    connection = await place.connect(idp)
    consent = await unread(place, idp, here, connection)
    assert (await place.row(connection)).generation == 1
    place.parts.registry._specs["generic"] = repaired(place.parts.registry.get("generic"))
    assert await here.replayer.retry_set_aside() == 1
    row = await place.row(connection)
    assert (row.state, row.generation) == (LifecycleState.ACTIVE, 2)
    assert (await place.consent_of(consent)).status is ConsentStatus.DONE
    await known(place, connection, 2)
    assert (await place.ensure_fresh(connection, 2)).generation == 3


async def known(place: Installation, connection: Connection, generation: int) -> None:
    """Wait until its workflow has heard of it."""
    async with asyncio.timeout(PATIENCE_S):
        while (await place.parts.link.describe(TENANT, connection.id)).generation < generation:
            await asyncio.sleep(0.05)


async def test_an_expiring_token_after_one_without_expiry_is_scheduled(
    place: Installation, idp: ScriptedProvider, here: Activities
):
    """Nothing else would ever tell its workflow that something is due."""
    idp.script(raw(b'{"access_token": "at-1", "token_type": "Bearer"}', 200, JSON))
    connection = await place.connect(idp)
    await unread(place, idp, here, connection)
    place.parts.registry._specs["generic"] = repaired(place.parts.registry.get("generic"))
    assert await here.replayer.retry_set_aside() == 1
    await known(place, connection, 2)
    assert (await place.ensure_fresh(connection, 2)).generation == 3


@pytest.mark.parametrize(
    ("before", "state"), [(False, LifecycleState.NEEDS_REAUTH), (True, LifecycleState.ACTIVE)]
)
async def test_first_tokens_read_after_the_grant_ended_are_verified(
    place: Installation, idp: ScriptedProvider, here: Activities, before: bool, state: LifecycleState
):
    """A security event says so of what there was before it, and nothing of a later consent."""
    connection = await place.connect(idp)
    if before:
        await ended_elsewhere(place, connection)
    await unread(place, idp, here, connection)
    if not before:
        await ended_elsewhere(place, connection)
        for family in idp.families:
            family.alive = False
    place.parts.registry._specs["generic"] = repaired(place.parts.registry.get("generic"))
    assert await here.replayer.retry_set_aside() == 1
    if state is LifecycleState.NEEDS_REAUTH:
        await idp.until("token", 3)  # the refresh that verifies
    await place.until(connection, lambda row: row.state is state)
    assert (await place.row(connection)).generation == (2 if before else 1)


async def ended_elsewhere(place: Installation, connection: Connection) -> None:
    row = await place.row(connection)
    news = ProviderReport(
        source=ReportSource.INTROSPECTION, kind="ended", certainty=Certainty.ENDED, generation=row.generation
    )
    async with place.store.write() as tx:
        await apply_external_event(tx, row, news, ASKED, place.parts.clock.now())
    await place.until(connection, lambda it: it.state is LifecycleState.NEEDS_REAUTH)


async def test_unreadable_first_tokens_are_installed_after_the_repair(
    place: Installation, idp: ScriptedProvider, here: Activities, monkeypatch: pytest.MonkeyPatch
):
    connection = await place.begin(await place.integration(idp))
    await unread(place, idp, here, connection)
    get = Registry.get  # the worker has a catalogue of its own
    monkeypatch.setattr(Registry, "get", lambda self, name: repaired(get(self, name)))
    assert await here.replayer.retry_set_aside() == 1
    await place.until(connection, lambda row: row.state is LifecycleState.ACTIVE)
    async with asyncio.timeout(PATIENCE_S):
        while (await place.parts.link.describe(TENANT, connection.id)).state is not LifecycleState.ACTIVE:
            await asyncio.sleep(0.05)
    assert (await place.ensure_fresh(connection, 1)).generation == 2
    assert idp.count("token", grant_type="authorization_code") == 1


async def test_a_revocation_names_a_code_reply_set_aside(
    place: Installation, idp: ScriptedProvider, here: Activities, tmp_path: Path
):
    connection = await place.begin(await place.integration(idp))
    await unread(place, idp, here, connection)
    (aside,) = (tmp_path / "here").glob("*/*.set-aside")
    await place.revoke(connection)
    await place.until(connection, lambda row: row.state is LifecycleState.REVOKED)
    (said,) = await place.records(AuditAction.REVOKED)
    assert said.detail["unread_attempt"] == aside.stem


async def test_a_newer_grant_discards_the_unreadable_first_tokens(
    place: Installation, idp: ScriptedProvider, here: Activities
):
    connection = await place.connect(idp)
    consent = await unread(place, idp, here, connection)
    assert (await place.ensure_fresh(connection, 1)).generation == 2
    place.parts.registry._specs["generic"] = repaired(place.parts.registry.get("generic"))
    assert await here.replayer.retry_set_aside() == 1
    assert (await place.row(connection)).generation == 2
    assert (await place.consent_of(consent)).status is ConsentStatus.FAILED


async def taken_over(
    place: Installation,
    idp: ScriptedProvider,
    connection: Connection,
    folder: Path,
    limits: TimeLimits = SHORT,
) -> tuple[asyncio.Event, "asyncio.Task[GrantResult]"]:
    """A host spends the code and another one is refused; the first one's answer comes with the event."""
    slow, quick = (Activities(place, (idp.allowance,), folder / it, limits) for it in ("slow", "quick"))
    consent, gate = await consented(place, idp, connection), asyncio.Event()
    idp.script(hold_answer(gate), error("invalid_grant"))
    exchange = await left(idp, partial(slow.exchange, connection, consent))
    with pytest.raises(Failure):
        await quick.exchange(connection, consent)
    assert (await outcome(partial(quick.exchange, connection, consent))).failure is ErrorCode.OUTCOME_UNKNOWN
    return gate, exchange


async def came_late(place: Installation) -> list[tuple[str, bool]]:
    records = await place.records(AuditAction.LATE_TOKENS_RECEIVED)
    return [(it.detail["state"], it.detail["revoked"]) for it in records]


async def test_a_late_code_reply_during_a_revocation_is_revoked(
    place: Installation, idp: ScriptedProvider, tmp_path: Path
):
    connection = await place.begin(await place.integration(idp))
    gate, exchange = await taken_over(place, idp, connection, tmp_path)
    await place.revoke(connection, tell=False)
    gate.set()
    await exchange
    assert await came_late(place) == [(LifecycleState.REVOKING, True)]
    assert not any(it.alive for it in idp.families)


async def test_a_late_code_reply_beside_a_working_grant_is_recorded(
    place: Installation, idp: ScriptedProvider, tmp_path: Path
):
    """Revoking it might end that grant, too."""
    connection = await place.connect(idp)
    gate, exchange = await taken_over(place, idp, connection, tmp_path)
    gate.set()
    await exchange
    assert await came_late(place) == [(LifecycleState.ACTIVE, False)]
    assert (await place.ensure_fresh(connection, 1)).generation == 2


async def test_a_late_reply_is_verified_with_either_secret(
    place: Installation, idp: ScriptedProvider, tmp_path: Path
):
    """Ours was rotated first, and no refresh has noticed that the provider takes the old one yet."""
    connection = await place.begin(await place.integration(idp))
    gate, exchange = await taken_over(place, idp, connection, tmp_path)
    await rotate(place, await place.integration_of(connection), "new-secret")
    gate.set()
    await exchange
    row = await place.until(connection, lambda it: it.state is LifecycleState.ACTIVE)
    assert row.generation == 1
