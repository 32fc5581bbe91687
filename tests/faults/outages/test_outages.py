"""Outages and late answers on real parts: what is sent, what is kept, who is served when it is over."""

from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.errors import ErrorCode
from tests.fakes.platform.installation import NEVER_ROTATES, Installation
from tests.fakes.providers.scripted_provider import ScriptedProvider, error, status


async def test_a_fleet_stops_calling_a_provider_that_fails(place: Installation, lenient: ScriptedProvider):
    connections = await place.fleet(await place.integration(NEVER_ROTATES), 12)
    before = lenient.count("token")
    lenient.script(*[status(503)] * 100)
    told = [await place.ensure_fresh(connection, 1) for connection in connections]
    assert {it.problem for it in told} == {ErrorCode.PROVIDER_ERROR}
    sent = lenient.count("token") - before
    assert 5 <= sent <= 7, "five to notice it; the others were held back, but for retries that came due"
    assert all(it.retry_after for it in told)
    assert {(await place.row(it)).state for it in connections} == {LifecycleState.ACTIVE}


async def test_refusals_of_single_connections_open_no_breaker(place: Installation, lenient: ScriptedProvider):
    """A dead connection, or one that is answered with an unknown error code, stops no other."""
    connections = await place.fleet(await place.integration(NEVER_ROTATES), 8)
    lenient.script(*[error("invented")] * 7)
    told = [await place.ensure_fresh(connection, 1) for connection in connections]
    assert [it.problem for it in told[:7]] == [ErrorCode.PROVIDER_ERROR] * 7
    assert told[7].generation == 2


async def test_a_rate_limited_subject_blocks_no_other(place: Installation):
    limited, other = await place.fleet(await place.integration(), 2)
    place.idp.script(status(429, {"Retry-After": "600"}))
    told = await place.ensure_fresh(limited, 1)
    assert told.problem is ErrorCode.PROVIDER_RATE_LIMITED
    assert told.retry_after is not None
    assert told.retry_after > 500, "its own schedule keeps to what it was told"
    assert (await place.ensure_fresh(other, 1)).generation == 2
