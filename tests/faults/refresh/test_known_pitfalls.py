"""What has hurt others who keep refresh tokens, once each, on real parts."""

import asyncio
from typing import Any

import pytest

from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.grant import Origin
from evergrant_server.core.errors import ErrorCode
from tests.fakes.platform.installation import NEVER_ROTATES, STRICT, Installation
from tests.fakes.providers.scripted_provider import ScriptedProvider, delay, error, ok, raw, status
from tests.fakes.rows import token_set


def refreshes(idp: ScriptedProvider) -> int:
    return idp.count("token", grant_type="refresh_token")


async def rotated_elsewhere(place: Installation, connection: Connection) -> None:
    """Another process of ours has installed a newer grant."""
    row, grant = await place.grant(connection)
    after = row.refreshed(place.parts.clock.now())
    newer = grant.model_copy(update={"generation": after.generation})
    await place.install(newer, token_set(place.idp.grant()), after, Origin.REFRESH)


async def test_a_provider_slower_than_any_lock_is_called_once(place: Installation):
    """A lock with a time limit lets the second caller in while the first one still waits."""
    connection = await place.connect(STRICT)
    slow = asyncio.Event()
    place.idp.script(delay(slow))
    first = asyncio.create_task(place.ensure_fresh(connection, 1))
    await place.idp.until("token", 2)
    others = [asyncio.create_task(place.ensure_fresh(connection, 1)) for _ in range(5)]
    await asyncio.sleep(7)  # longer than the heartbeat's limit, which is what a worker's death looks like
    assert refreshes(place.idp) == 1
    slow.set()
    assert {(await it).generation for it in (first, *others)} == {2}
    assert refreshes(place.idp) == 1


async def test_a_refresh_token_that_the_reply_omits_is_kept(place: Installation, lenient: ScriptedProvider):
    connection = await place.connect(NEVER_ROTATES)
    for absent in ({"refresh_token": None}, {"refresh_token": ""}):
        row = await place.row(connection)
        lenient.script(ok(**absent))
        assert (await place.ensure_fresh(connection, row.generation)).generation == row.generation + 1
    assert (await place.ensure_fresh(connection, 3)).generation == 4
    sent = {it.params["refresh_token"] for it in lenient.calls if "refresh_token" in it.params}
    assert len(sent) == 1


async def test_a_restart_with_an_expired_token_refreshes_once(place: Installation):
    """Temporal has forgotten the connection, and its token is over: the first who asks has it refreshed."""
    place.idp.script(ok(expires_in=1))
    connection = await place.connect(STRICT)
    _, grant = await place.grant(connection)
    await place.terminate(connection)
    assert grant.expires_at is not None
    while place.parts.clock.now() <= grant.expires_at:
        await asyncio.sleep(0.05)
    assert (await place.parts.reconciler.reconcile_all()).started == 1
    answers = await asyncio.gather(*(place.ensure_fresh(connection, 1) for _ in range(5)))
    assert {it.generation for it in answers} == {2}
    assert refreshes(place.idp) == 1


async def test_an_unreadable_lifetime_keeps_the_grant_and_causes_no_retry_storm(
    place: Installation, lenient: ScriptedProvider
):
    connection = await place.connect(NEVER_ROTATES)
    lenient.script(raw(b'{"access_token": "at", "token_type": "bearer", "expires_in": NaN}'))
    assert (await place.ensure_fresh(connection, 1)).problem is ErrorCode.REPLY_UNREADABLE
    for _ in range(5):
        assert (await place.ensure_fresh(connection, 1)).problem is ErrorCode.REPLY_UNREADABLE
    assert refreshes(lenient) == 1
    row = await place.row(connection)
    assert (row.state, row.generation) == (LifecycleState.ACTIVE, 1)


@pytest.mark.parametrize("loser", [error("invalid_grant"), status(400)])
async def test_a_refusal_of_a_replaced_token_does_not_end_the_grant(place: Installation, loser: Any):
    """Another process rotated the token: ours loses, reads the store again, and goes on from there."""
    connection = await place.connect(STRICT)
    async with place.idp.in_flight(place.ensure_fresh(connection, 1), answer=loser) as ours:
        await rotated_elsewhere(place, connection)
    answer = await ours
    assert (answer.generation, answer.problem) == (2, None)
    assert (await place.ensure_fresh(connection, 2)).generation == 3
