"""A client secret is rotated: no request fails, whichever of the two the provider knows.

RFC 6749 section 5.2: invalid_client is about us, so it has spent neither a code nor a refresh token.
"""

import asyncio
from datetime import timedelta

import pytest

from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.integrations import Integration
from evergrant_server.core.secret import Secret
from tests.fakes.patience import eventually
from tests.fakes.platform.installation import STRICT, Installation
from tests.fakes.providers.scripted_provider import error, status


async def rotate(place: Installation, integration: Integration, secret: str, overlap_s: float = 3600) -> None:
    """What `POST …/rotate-secret` writes."""
    until = place.parts.clock.now() + timedelta(seconds=overlap_s)
    current = await place.integration_now(integration.id)
    async with place.store.write() as tx:
        await tx.integrations.rotate_secret(current, Secret(secret), until=until, expected=current.revision)


async def test_refreshes_work_before_and_after_the_provider_changes_the_secret(place: Installation):
    connection = await place.connect(STRICT)
    await rotate(place, await place.integration_of(connection), "new-secret")
    assert (await place.ensure_fresh(connection, 1)).generation == 2
    assert (await place.integration_of(connection)).secret_refused_at is not None
    place.idp.client_secret = "new-secret"
    assert (await place.ensure_fresh(connection, 2)).generation == 3
    assert (await place.integration_of(connection)).secret_refused_at is None
    assert (await place.ensure_fresh(connection, 3)).generation == 4
    said = [it for it in await place.actions(connection) if it.startswith("integration.")]
    assert said == [AuditAction.SECRET_REFUSED, AuditAction.SECRET_ACCEPTED]


async def test_the_accepted_secret_is_tried_first(place: Installation):
    connection = await place.connect(STRICT)
    await rotate(place, await place.integration_of(connection), "mistyped")
    await place.ensure_fresh(connection, 1)
    before = place.idp.count("token")
    await place.ensure_fresh(connection, 2)
    assert place.idp.count("token") == before + 1


async def test_an_outage_decides_nothing_about_the_other_secret(place: Installation):
    connection = await place.connect(STRICT)
    await rotate(place, await place.integration_of(connection), "new-secret")
    place.idp.script(error("invalid_client", 401), status(503))
    await place.ensure_fresh(connection, 1)
    assert place.idp.count("token", grant_type="refresh_token") == 2
    assert (await place.integration_of(connection)).secret_refused_at is None


async def test_a_401_without_a_name_that_asks_for_a_client_has_the_other_secret_tried(place: Installation):
    connection = await place.connect(STRICT)
    await rotate(place, await place.integration_of(connection), "new-secret")
    place.idp.script(status(401, {"WWW-Authenticate": 'Basic realm="clients"'}))
    assert (await place.ensure_fresh(connection, 1)).generation == 2
    assert (await place.integration_of(connection)).secret_refused_at is not None
    bearer = status(401, {"WWW-Authenticate": 'Bearer realm="api"'})
    before = place.idp.count("token")
    place.idp.script(bearer)
    assert (await place.ensure_fresh(connection, 2)).problem is ErrorCode.PROVIDER_ERROR
    assert place.idp.count("token") == before + 1, "that was about no client"


async def test_a_code_survives_a_refused_secret(place: Installation):
    integration = await place.integration(STRICT)
    await rotate(place, integration, "new-secret")
    connection = await place.begin(integration)
    await place.consent(connection)
    assert (await place.until(connection, lambda c: c.state is LifecycleState.ACTIVE)).generation == 1


async def test_a_revocation_is_confirmed_with_the_other_secret(place: Installation):
    connection = await place.connect(STRICT)
    await rotate(place, await place.integration_of(connection), "new-secret")
    await place.revoked(connection)


async def test_after_the_overlap_the_secret_before_is_not_tried(place: Installation):
    connection = await place.connect(STRICT)
    await rotate(place, await place.integration_of(connection), "mistyped", overlap_s=-1)
    assert (await place.ensure_fresh(connection, 1)).problem is ErrorCode.CLIENT_REJECTED
    assert place.idp.count("token") == 2  # the code, and one refresh


@pytest.mark.soak
async def test_under_load_no_refresh_fails_while_the_secret_changes_on_both_sides(place: Installation):
    """Ours first, the provider's in the middle: 0 failures, and the last ones need one call each."""
    integration = await place.integration(STRICT)
    connections = await place.fleet(integration, 8)

    async def keeps_refreshing(connection: Connection) -> list[ErrorCode | None]:
        return [(await place.ensure_fresh(connection, seen)).problem for seen in range(1, 6)]

    running = [asyncio.create_task(keeps_refreshing(connection)) for connection in connections]
    await rotate(place, integration, "new-secret")
    await eventually(lambda: place.integration_of(connections[0]), lambda it: it.secret_refused_at)
    place.idp.client_secret = "new-secret"
    problems = [problem for said in await asyncio.gather(*running) for problem in said]
    assert problems == [None] * 40
    assert (await place.ensure_fresh(connections[0], 6)).generation == 7
    assert (await place.integration_of(connections[0])).secret_refused_at is None
