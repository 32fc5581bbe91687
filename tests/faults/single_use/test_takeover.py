"""Two workers that can't see each other spend one refresh token: the slow one's answer comes last.

The second worker has a journal folder of its own, as on another host.
"""

import asyncio
from pathlib import Path

import pytest

from evergrant_server.core.connections.connection import LifecycleState, RevocationOutcome
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import RefreshRules, Rotation
from tests.fakes.patience import PATIENCE_S
from tests.fakes.platform.installation import TENANT, Installation
from tests.fakes.providers.scripted_provider import (
    ScriptedProvider,
    delay,
    drop_after_commit,
    error,
    hold_answer,
    ok,
    status,
)
from tests.faults.support.activities import Activities, at_temporal

NEVER_ROTATES = RefreshRules(rotation=Rotation.NONE)


def two_hosts(place: Installation, idp: ScriptedProvider, folder: Path) -> tuple[Activities, Activities]:
    """Neither sees the other's journals."""
    allow = (idp.allowance,)
    return Activities(place, allow, folder / "slow"), Activities(place, allow, folder / "quick")


@pytest.mark.parametrize("refused", [False, True])
async def test_a_reply_after_a_takeover_changes_nothing(
    place: Installation, lenient: ScriptedProvider, tmp_path: Path, refused: bool
):
    """The newer grant stays, also when the late reply is a refusal."""
    connection = await place.connect(lenient, NEVER_ROTATES)
    slow, quick = two_hosts(place, lenient, tmp_path)
    gate = asyncio.Event()
    lenient.script(delay(gate, error("invalid_grant")) if refused else hold_answer(gate))
    late = asyncio.create_task(slow.refresh(connection, 1))
    await lenient.until("token", 2)
    assert (await quick.refresh(connection, 1)).generation == 2
    gate.set()
    await late
    row = await place.row(connection)
    assert (row.state, row.generation) == (LifecycleState.ACTIVE, 2)
    assert await place.open_attempts(connection) == 0


async def test_a_reply_after_a_refused_takeover_is_verified_first(
    place: Installation, lenient: ScriptedProvider, tmp_path: Path
):
    connection = await place.connect(lenient, NEVER_ROTATES)
    slow, quick = two_hosts(place, lenient, tmp_path)
    gate = asyncio.Event()
    lenient.script(hold_answer(gate), error("invalid_grant"))
    late = asyncio.create_task(slow.refresh(connection, 1))
    await lenient.until("token", 2)
    await quick.refresh(connection, 1)
    gate.set()
    news = await late
    row = await place.row(connection)
    assert (row.state, news.failure) == (LifecycleState.NEEDS_REAUTH, row.reason)
    assert await place.open_attempts(connection) == 0


async def test_a_refused_second_use_has_the_installed_grant_tried(
    place: Installation, lenient: ScriptedProvider, tmp_path: Path
):
    """The refusal may have ended the family: whether the new token works is found out at once."""
    connection = await place.connect(lenient, NEVER_ROTATES)
    slow, quick = two_hosts(place, lenient, tmp_path)
    first, second = asyncio.Event(), asyncio.Event()
    lenient.script(hold_answer(first), delay(second, error("invalid_grant")))
    slowly = asyncio.create_task(slow.refresh(connection, 1))
    await lenient.until("token", 2)
    again = asyncio.create_task(quick.refresh(connection, 1))
    await lenient.until("token", 3)
    first.set()
    assert (await slowly).generation == 2
    second.set()
    assert (await again).generation == 2
    assert (await place.row(connection)).state is LifecycleState.ACTIVE
    await place.until_signalled(connection, "rotate")


async def test_a_token_in_flight_is_not_sent_again(
    place: Installation, lenient: ScriptedProvider, tmp_path: Path
):
    """Temporal gave the activity up and asks again; the provider would take the token, too."""
    connection = await place.connect(lenient, NEVER_ROTATES)
    worker = Activities(place, (lenient.allowance,), tmp_path / "here")
    gate = asyncio.Event()
    lenient.script(hold_answer(gate))
    first = asyncio.create_task(worker.refresh(connection, 1))
    await lenient.until("token", 2)
    assert (await worker.refresh(connection, 1)).failure is ErrorCode.REFRESH_PENDING
    gate.set()
    assert (await first).generation == 2
    assert (await worker.refresh(connection, 1)).generation == 2, "done already"
    assert lenient.count("token", grant_type="refresh_token") == 1


async def test_a_revocation_and_a_code_exchange_wait_for_a_refresh_in_flight(
    place: Installation, lenient: ScriptedProvider, tmp_path: Path
):
    """The first would miss the token that lands; the second would be overtaken by it."""
    connection = await place.connect(lenient, NEVER_ROTATES)
    worker = Activities(place, (lenient.allowance,), tmp_path / "here")
    gate = asyncio.Event()
    lenient.script(hold_answer(gate))
    refresh = asyncio.create_task(worker.refresh(connection, 1))
    await lenient.until("token", 2)
    integration = await place.integration_of(connection)
    consent = await place.consent(lenient, integration, connection, tell=False)
    with pytest.raises(Failure) as waits:
        await worker.exchange(connection, consent)
    assert waits.value.code is ErrorCode.REFRESH_PENDING
    await place.revoke(connection, tell=False)
    assert (await worker.revoke(connection)).failure is ErrorCode.REFRESH_PENDING
    assert lenient.count("revoke") == 0
    gate.set()
    assert (await refresh).state is LifecycleState.REVOKING
    assert (await worker.revoke(connection)).revocation is RevocationOutcome.CONFIRMED
    assert not any(family.alive for family in lenient.families if family.used or family.access_tokens)


async def test_cancelling_the_activity_does_not_cut_the_critical_section(
    place: Installation, idp: ScriptedProvider, tmp_path: Path
):
    connection = await place.connect(idp)
    worker = Activities(place, (idp.allowance,), tmp_path / "here")
    gate, env = asyncio.Event(), at_temporal()
    idp.script(hold_answer(gate))
    refresh = asyncio.create_task(worker.refresh(connection, 1, env))
    await idp.until("token", 2)
    env.cancel()
    with pytest.raises(asyncio.CancelledError):
        await refresh
    gate.set()
    assert (await place.until(connection, lambda c: c.generation == 2)).state is LifecycleState.ACTIVE


async def test_a_token_spent_by_a_dead_worker_is_sent_once_more_then_outcome_unknown(
    place: Installation, idp: ScriptedProvider, tmp_path: Path
):
    connection = await place.connect(idp, RefreshRules(rotation=Rotation.STRICT))
    journals = tmp_path / "one-host"
    dies, goes_on = (Activities(place, (idp.allowance,), journals) for _ in range(2))
    idp.script(drop_after_commit())
    assert (await dies.refresh(connection, 1)).failure is ErrorCode.PROVIDER_UNREACHABLE
    assert (await goes_on.refresh(connection, 1)).failure is ErrorCode.REFRESH_PENDING
    dies.journal.release()
    assert (await goes_on.refresh(connection, 1)).failure is ErrorCode.OUTCOME_UNKNOWN
    row = await place.row(connection)
    assert (row.state, row.reason) == (LifecycleState.NEEDS_REAUTH, ErrorCode.OUTCOME_UNKNOWN)


async def test_a_second_send_keeps_the_date_of_the_first(
    place: Installation, lenient: ScriptedProvider, tmp_path: Path
):
    connection = await place.connect(lenient, NEVER_ROTATES)
    worker = Activities(place, (lenient.allowance,), tmp_path / "here")
    lenient.script(drop_after_commit())
    await worker.refresh(connection, 1)
    async with place.store.read() as tx:
        first = await tx.attempts.open_of_any_kind(TENANT, connection.id, "main")
    assert first is not None
    assert (await worker.refresh(connection, 1)).obtained_at == first.opened_at


async def test_a_token_is_dated_by_the_send_that_brought_it(
    place: Installation, idp: ScriptedProvider, tmp_path: Path
):
    """It would seem over when it comes, and is not due again at once: callers would go without it."""
    idp.script(ok(expires_in=1))
    connection = await place.connect(idp, RefreshRules(rotation=Rotation.STRICT))
    here = Activities(place, (idp.allowance,), tmp_path / "here")
    await asyncio.sleep(1.1)
    idp.script(status(500), status(500), ok(expires_in=2))
    for _ in range(2):
        assert (await here.refresh(connection, 1)).failure is ErrorCode.PROVIDER_ERROR
    await asyncio.sleep(2.1)
    sent_after = place.parts.clock.now()
    assert (await here.refresh(connection, 1)).generation == 2
    assert (await place.grant(connection))[1].obtained_at >= sent_after


async def test_repeated_500s_do_not_end_the_grant(place: Installation, idp: ScriptedProvider, tmp_path: Path):
    """A 500 doesn't say whether the token is spent. Sending again does, once no client can wait for a reply:
    what it could lose is lost already (strict rotation, an expired access token)."""
    idp.script(ok(expires_in=1))
    connection = await place.connect(idp)
    here = Activities(place, (idp.allowance,), tmp_path / "here")
    async with asyncio.timeout(PATIENCE_S):
        while (await place.grant(connection))[1].is_valid(place.parts.clock.now()):
            await asyncio.sleep(0.05)
    idp.script(*[status(500)] * 5)
    for _ in range(5):
        assert (await here.refresh(connection, 1)).failure is ErrorCode.PROVIDER_ERROR
        assert (await place.row(connection)).state is LifecycleState.ACTIVE
    assert (await here.refresh(connection, 1)).generation == 2


async def test_a_refusal_after_a_lost_commit_is_outcome_unknown(
    place: Installation, idp: ScriptedProvider, tmp_path: Path
):
    idp.script(ok(expires_in=1))
    connection = await place.connect(idp)
    here = Activities(place, (idp.allowance,), tmp_path / "here")
    async with asyncio.timeout(PATIENCE_S):
        while (await place.grant(connection))[1].is_valid(place.parts.clock.now()):
            await asyncio.sleep(0.05)
    idp.script(drop_after_commit(), status(500), status(500))
    for _ in range(3):
        await here.refresh(connection, 1)
    assert (await here.refresh(connection, 1)).failure is ErrorCode.OUTCOME_UNKNOWN
    row = await place.row(connection)
    assert (row.state, row.reason) == (LifecycleState.NEEDS_REAUTH, ErrorCode.OUTCOME_UNKNOWN)
