"""Refreshes ahead of time near the limit of their provider: postponed, while callers are served."""

import asyncio
from typing import Any

import pytest
from temporalio.activity import ActivityCancellationDetails

from evergrant_server.core.messages.connection import EnsureFresh, Rotate
from evergrant_server.core.messages.names import SignalName
from evergrant_server.core.single_use.pacing import LONGEST_S, LONGEST_TURN_S
from providers.definition.schema_request import TokenLimit
from tests.fakes.platform.installation import ASKED, NEVER_ROTATES, TENANT, Installation
from tests.fakes.providers.scripted_provider import Answer, hold_answer, status
from tests.faults.support.activities import Activities, at_temporal

EMPTY = Answer(headers={"RateLimit": '"hour";r=0;t=1800', "RateLimit-Policy": '"hour";q=100;w=3600'})


def limit(place: Installation, monkeypatch: pytest.MonkeyPatch, **stated: Any) -> None:
    """What the definition of the connections' provider says."""
    spec = place.parts.registry.get("generic")
    token_limit = TokenLimit.model_validate(stated)
    limited = spec.model_copy(update={"token_limit": token_limit})
    monkeypatch.setitem(place.parts.registry._specs, "generic", limited)


async def test_two_workers_keep_to_one_limit_and_callers_have_the_rest(
    place: Installation, monkeypatch: pytest.MonkeyPatch
):
    limit(place, monkeypatch, requests=4, window_s=3600, per="client")
    fleet = await place.fleet(await place.integration(NEVER_ROTATES), 5)
    here, there = Activities(place), Activities(place, "there")
    assert (await there.refresh(fleet[0], 1, ahead=True)).generation == 2
    told = await asyncio.gather(*(here.refresh(it, 1, ahead=True) for it in fleet[1:]))
    later = [it.postponed_s for it in told if it.generation == 1 and it.failure is None]
    assert sorted(it.generation or 0 for it in told) == [1, 1, 2, 2], "those under way count already"
    assert all(0 < (it or 0) <= LONGEST_TURN_S for it in later)
    left = [connection for connection, it in zip(fleet[1:], told, strict=True) if it.generation == 1]
    assert (await there.refresh(left[0], 1, ahead=True)).postponed_s
    assert [(await place.row(it)).failures for it in left] == [0, 0], "nothing is wrong"
    assert [(await here.refresh(it, 1)).generation for it in left] == [2, 2], "callers wait for them"
    assert place.idp.refreshes == 5


async def test_a_limit_of_each_user_postpones_nothing(place: Installation, monkeypatch: pytest.MonkeyPatch):
    limit(place, monkeypatch, requests=1, window_s=3600, per="user")
    fleet = await place.fleet(await place.integration(NEVER_ROTATES), 3)
    worker = Activities(place)
    place.idp.script(EMPTY, EMPTY, EMPTY)
    assert [(await worker.refresh(it, 1, ahead=True)).generation for it in fleet] == [2, 2, 2]


async def test_a_reply_that_says_that_nothing_is_left_postpones_the_others(place: Installation):
    fleet = await place.fleet(await place.integration(NEVER_ROTATES), 3)
    other = await place.connect(NEVER_ROTATES)
    worker = Activities(place)
    place.idp.script(EMPTY)
    assert (await worker.refresh(fleet[0], 1, ahead=True)).generation == 2
    later = await worker.refresh(fleet[1], 1, ahead=True)
    assert (later.generation, later.failure) == (1, None)
    assert LONGEST_S * 0.5 < (later.postponed_s or 0) <= LONGEST_S, "half an hour is not believed"
    assert (await worker.refresh(other, 1, ahead=True)).generation == 2, "another integration"
    assert (await worker.refresh(fleet[2], 1)).generation == 2, "a caller waits"
    assert (await worker.refresh(fleet[1], 1, ahead=True)).generation == 2, (
        "it was served: the limit is one's own"
    )


async def test_a_refusal_to_serve_is_the_circuit_breakers(place: Installation):
    fleet = await place.fleet(await place.integration(NEVER_ROTATES), 2)
    worker = Activities(place)
    place.idp.script(status(429, dict(EMPTY.headers) | {"Retry-After": "60"}))
    assert (await worker.refresh(fleet[0], 1, ahead=True)).failure == "provider_rate_limited"
    assert (await worker.refresh(fleet[1], 1, ahead=True)).generation == 2


async def test_a_workflow_goes_on_by_itself_and_its_caller_at_once(place: Installation):
    """From the reply of one connection to the timer of another, in real workflows; a rotation is for now."""
    first, other, leaked = await place.fleet(await place.integration(NEVER_ROTATES), 3)
    place.idp.script(EMPTY)
    assert (await place.ensure_fresh(first, 1)).generation == 2
    ahead = EnsureFresh(seen_generation=1, context=ASKED, ahead=True)
    for _ in range(2):
        told = await place.parts.link.ensure_fresh(TENANT, other.id, ahead, timeout=60)
        assert told.declined, "the lease is served with the token that is still valid"
        assert (told.generation, told.problem) == (1, None)
        assert LONGEST_S * 0.5 < (told.retry_after or 0) <= LONGEST_S
    assert "postponed" in (await place.described(other)).next_step
    await place.workflow(leaked).signal(SignalName.ROTATE, Rotate(reason="leak suspected", context=ASKED))
    await place.until(leaked, lambda it: it.generation == 2)
    assert (await place.ensure_fresh(other, 1)).generation == 2
    assert "postponed" not in (await place.described(other)).next_step


async def test_a_refresh_that_has_begun_ends_although_its_workflow_cancels_it(place: Installation):
    connection = await place.connect()
    worker, gate, env = Activities(place), asyncio.Event(), at_temporal()
    place.idp.script(hold_answer(gate))
    running = asyncio.create_task(worker.refresh(connection, 1, env, ahead=True))
    await place.idp.until("token", 2)
    env.cancel()
    await asyncio.sleep(0)
    gate.set()
    assert (await running).generation == 2
    assert place.idp.refreshes == 1


async def test_a_time_out_ends_it_and_not_its_critical_section(place: Installation):
    connection = await place.connect()
    worker, gate, env = Activities(place), asyncio.Event(), at_temporal()
    place.idp.script(hold_answer(gate))
    running = asyncio.create_task(worker.refresh(connection, 1, env))
    await place.idp.until("token", 2)
    env.cancel(ActivityCancellationDetails(timed_out=True))
    with pytest.raises(asyncio.CancelledError):
        await running
    gate.set()
    await place.until(connection, lambda it: it.generation == 2)
