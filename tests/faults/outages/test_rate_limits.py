"""A provider that limits each user: a limited user stops no other user's refreshes."""

from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.integrations import Integration
from tests.fakes.platform.installation import Installation
from tests.fakes.providers.scripted_provider import ScriptedProvider, status


async def granted(
    place: Installation, idp: ScriptedProvider, integration: Integration, subject: str
) -> Connection:
    connection = await place.begin(integration, subject=subject)
    await place.consent(idp, integration, connection)
    return await place.until(connection, lambda it: it.state is LifecycleState.ACTIVE)


async def test_a_rate_limited_subject_blocks_no_other(place: Installation, idp: ScriptedProvider):
    integration = await place.integration(idp)
    limited = await granted(place, idp, integration, "user-1")
    other = await granted(place, idp, integration, "user-2")
    idp.script(status(429, {"Retry-After": "600"}))
    told = await place.ensure_fresh(limited, 1)
    assert told.problem is ErrorCode.PROVIDER_RATE_LIMITED
    assert told.retry_after is not None
    assert told.retry_after > 500, "its own schedule keeps to what it was told"
    assert (await place.ensure_fresh(other, 1)).generation == 2
