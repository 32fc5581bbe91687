"""What has hurt others who keep refresh tokens, once each, on real parts."""

import asyncio
import contextlib
from typing import Any

import pytest

from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.grant import Origin, TokenSet
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import RefreshRules, Rotation
from evergrant_server.core.secret import Secret
from tests.fakes.platform.installation import Installation
from tests.fakes.providers.scripted_provider import ScriptedProvider, delay, error, ok, raw, status

NEVER_ROTATES = RefreshRules(rotation=Rotation.NONE)
STRICT = RefreshRules(rotation=Rotation.STRICT)


def refreshes(idp: ScriptedProvider) -> int:
    return idp.count("token", grant_type="refresh_token")


async def rotated_elsewhere(place: Installation, connection: Connection, idp: ScriptedProvider) -> None:
    """Another process of ours has installed a newer grant."""
    row, grant = await place.grant(connection)
    new = idp.grant()
    tokens = TokenSet(access_token=Secret(new["access_token"]), refresh_token=Secret(new["refresh_token"]))
    after = row.refreshed(place.parts.clock.now())
    newer = grant.model_copy(update={"generation": after.generation})
    async with place.store.write() as tx:
        await tx.grants.install(after, tokens, newer, origin=Origin.REFRESH, expected=row.revision)


async def test_a_provider_slower_than_any_lock_is_called_once(place: Installation, idp: ScriptedProvider):
    """A lock with a time limit lets the second caller in while the first one still waits."""
    connection = await place.connect(idp, STRICT)
    slow = asyncio.Event()
    idp.script(delay(slow))
    first = asyncio.create_task(place.ensure_fresh(connection, 1))
    await idp.until("token", 2)
    others = [asyncio.create_task(place.ensure_fresh(connection, 1)) for _ in range(5)]
    await asyncio.sleep(7)  # longer than the heartbeat's limit, which is what a worker's death looks like
    assert refreshes(idp) == 1
    slow.set()
    assert {(await it).generation for it in (first, *others)} == {2}
    assert refreshes(idp) == 1


async def test_a_refresh_token_that_the_reply_omits_is_kept(place: Installation, lenient: ScriptedProvider):
    connection = await place.connect(lenient, NEVER_ROTATES)
    for absent in ({"refresh_token": None}, {"refresh_token": ""}):
        row = await place.row(connection)
        lenient.script(ok(**absent))
        assert (await place.ensure_fresh(connection, row.generation)).generation == row.generation + 1
    assert (await place.ensure_fresh(connection, 3)).generation == 4
    sent = {it.params["refresh_token"] for it in lenient.calls if "refresh_token" in it.params}
    assert len(sent) == 1


async def test_a_restart_with_an_expired_token_refreshes_once(place: Installation, idp: ScriptedProvider):
    """Temporal has forgotten the connection, and its token is over: the first who asks has it refreshed."""
    idp.script(ok(expires_in=1))
    connection = await place.connect(idp, STRICT)
    _, grant = await place.grant(connection)
    await place.terminate(connection)
    assert grant.expires_at is not None
    while place.parts.clock.now() <= grant.expires_at:
        await asyncio.sleep(0.05)
    assert (await place.parts.reconciler.reconcile_all()).started == 1
    answers = await asyncio.gather(*(place.ensure_fresh(connection, 1) for _ in range(5)))
    assert {it.generation for it in answers} == {2}
    assert refreshes(idp) == 1


@pytest.mark.parametrize("said", ["0", "NaN"])
async def test_an_unreadable_lifetime_keeps_the_grant_and_causes_no_retry_storm(
    place: Installation, lenient: ScriptedProvider, said: str
):
    """Zero would make a token that is due at once, for ever."""
    connection = await place.connect(lenient, NEVER_ROTATES)
    lenient.script(
        raw(b'{"access_token": "at", "token_type": "bearer", "expires_in": ' + said.encode() + b"}")
    )
    assert (await place.ensure_fresh(connection, 1)).problem is ErrorCode.REPLY_UNREADABLE
    for _ in range(5):
        assert (await place.ensure_fresh(connection, 1)).problem is ErrorCode.REPLY_UNREADABLE
    assert refreshes(lenient) == 1
    row = await place.row(connection)
    assert (row.state, row.generation) == (LifecycleState.ACTIVE, 1)


@pytest.mark.parametrize("loser", [error("invalid_grant"), status(400)])
async def test_a_refusal_of_a_replaced_token_does_not_end_the_grant(
    place: Installation, idp: ScriptedProvider, loser: Any
):
    """Another process rotated the token: ours loses, reads the store again, and goes on from there."""
    connection = await place.connect(idp, STRICT)
    gate = asyncio.Event()
    idp.script(delay(gate, loser))
    ours = asyncio.create_task(place.ensure_fresh(connection, 1))
    await idp.until("token", 2)
    await rotated_elsewhere(place, connection, idp)
    gate.set()
    answer = await ours
    assert (answer.generation, answer.problem) == (2, None)
    assert (await place.ensure_fresh(connection, 2)).generation == 3


async def test_a_dead_grant_is_sent_once_for_any_number_of_callers(
    place: Installation, idp: ScriptedProvider
):
    """60,000 failing refreshes a day from one dead connection: here it is one."""
    connection = await place.connect(idp)
    for family in idp.families:
        family.alive = False
    told = await place.ensure_fresh(connection, 1)
    assert told.problem is ErrorCode.GRANT_REJECTED
    for _ in range(20):
        with contextlib.suppress(Failure):  # the update's validator says no, which costs no event
            await place.ensure_fresh(connection, 1)
    assert refreshes(idp) == 1
    row = await place.row(connection)
    assert (row.state, row.reason) == (LifecycleState.NEEDS_REAUTH, ErrorCode.GRANT_REJECTED)
    assert AuditAction.NEEDS_REAUTH in await place.actions(connection)
