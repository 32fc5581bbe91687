"""Outages and late answers on real parts: what is sent, what is kept, who is served when it is over."""

import asyncio

from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.grant import Origin, TokenSet
from evergrant_server.core.connections.refresh_rules import RefreshRules, Rotation
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.secret import Secret
from evergrant_server.core.single_use.attempt import AttemptKind
from tests.fakes.platform.installation import TENANT, Installation
from tests.fakes.providers.scripted_provider import ScriptedProvider, delay, error, raw, status

NEVER_ROTATES = RefreshRules(rotation=Rotation.NONE)


async def fleet(place: Installation, idp: ScriptedProvider, size: int) -> list[Connection]:
    """Connections of one integration, each with a grant of its own."""
    integration = await place.integration(idp, NEVER_ROTATES)
    found = [await place.begin(integration, subject=f"user-{number}") for number in range(size)]
    for connection in found:
        await place.consent(idp, integration, connection)
    return [await place.until(connection, lambda c: c.state is LifecycleState.ACTIVE) for connection in found]


async def test_a_fleet_leaves_a_provider_alone_that_fails_everybody(
    place: Installation, lenient: ScriptedProvider
):
    connections = await fleet(place, lenient, 12)
    before = lenient.count("token")
    lenient.script(*[status(503)] * 100)
    told = [await place.ensure_fresh(connection, 1) for connection in connections]
    assert {it.problem for it in told} == {ErrorCode.PROVIDER_ERROR}
    sent = lenient.count("token") - before
    assert 5 <= sent <= 7, "five to notice it; the others were held back, but for retries that came due"
    assert all(it.retry_after for it in told)
    assert {(await place.row(it)).state for it in connections} == {LifecycleState.ACTIVE}


async def test_a_refusal_of_one_connection_says_nothing_about_the_others(
    place: Installation, lenient: ScriptedProvider
):
    """A dead connection, or one that is answered with an invented error, stops nobody else."""
    connections = await fleet(place, lenient, 8)
    lenient.script(*[error("invented")] * 7)
    told = [await place.ensure_fresh(connection, 1) for connection in connections]
    assert [it.problem for it in told[:7]] == [ErrorCode.PROVIDER_ERROR] * 7
    assert told[7].generation == 2


async def test_a_late_no_about_a_grant_that_was_replaced_condemns_nobody(
    place: Installation, idp: ScriptedProvider
):
    """An import, a consent or another process brought a newer grant while the provider thought."""
    connection = await place.connect(idp)
    gate = asyncio.Event()
    idp.script(delay(gate, error("invalid_grant")))
    asked = asyncio.create_task(place.ensure_fresh(connection, 1))
    await idp.until("token", 2)
    row, grant = await place.grant(connection)
    fresh = idp.grant()
    tokens = TokenSet(
        access_token=Secret(fresh["access_token"]), refresh_token=Secret(fresh["refresh_token"])
    )
    imported = row.granted(place.parts.clock.now())
    newer = grant.model_copy(update={"generation": imported.generation})
    async with place.store.write() as tx:
        await tx.grants.install(imported, tokens, newer, origin=Origin.NEW, expected=row.revision)
    gate.set()
    answer = await asked
    assert (answer.generation, answer.problem) == (2, None)
    described = await place.parts.link.describe(TENANT, connection.id)
    assert (described.state, described.generation) == (LifecycleState.ACTIVE, 2)
    assert (await place.row(connection)).state is LifecycleState.ACTIVE
    assert AuditAction.NEEDS_REAUTH not in await place.actions(connection)
    assert (await place.ensure_fresh(connection, 2)).generation == 3, "and it goes on from there"


async def test_an_error_with_status_200_leaves_no_attempt_open(place: Installation, idp: ScriptedProvider):
    """It was refused, so a strict provider's token is not spent, and may be used again."""
    connection = await place.connect(idp, RefreshRules(rotation=Rotation.STRICT))
    idp.script(raw(b'{"error": "temporarily_unavailable"}'))
    assert (await place.ensure_fresh(connection, 1)).problem is ErrorCode.PROVIDER_ERROR
    async with place.store.read() as tx:
        assert await tx.attempts.open_of_kind(TENANT, connection.id, "main", AttemptKind.REFRESH) is None
