"""Outages and late answers on real parts: what is sent, what is kept, who is served when it is over."""

from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.integrations import RefreshRules, Rotation
from tests.fakes.platform.installation import TENANT, Installation
from tests.fakes.providers.scripted_provider import ScriptedProvider, error, raw, status

NEVER_ROTATES = RefreshRules(rotation=Rotation.NONE)


async def fleet(place: Installation, idp: ScriptedProvider, size: int) -> list[Connection]:
    """Connections of one integration, each with a grant of its own."""
    integration = await place.integration(idp, NEVER_ROTATES)
    found = [await place.begin(integration, subject=f"user-{number}") for number in range(size)]
    for connection in found:
        await place.consent(idp, integration, connection)
    return [await place.until(connection, lambda c: c.state is LifecycleState.ACTIVE) for connection in found]


async def test_a_fleet_stops_calling_a_provider_that_fails(place: Installation, lenient: ScriptedProvider):
    connections = await fleet(place, lenient, 12)
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
    connections = await fleet(place, lenient, 8)
    lenient.script(*[error("invented")] * 7)
    told = [await place.ensure_fresh(connection, 1) for connection in connections]
    assert [it.problem for it in told[:7]] == [ErrorCode.PROVIDER_ERROR] * 7
    assert told[7].generation == 2


async def test_an_error_with_status_200_leaves_no_attempt_open(place: Installation, idp: ScriptedProvider):
    """It was refused, so a strict provider's token is not spent, and may be used again."""
    connection = await place.connect(idp, RefreshRules(rotation=Rotation.STRICT))
    idp.script(raw(b'{"error": "temporarily_unavailable"}'))
    assert (await place.ensure_fresh(connection, 1)).problem is ErrorCode.PROVIDER_ERROR
    async with place.store.read() as tx:
        assert await tx.attempts.open_of_any_kind(TENANT, connection.id, "main") is None
