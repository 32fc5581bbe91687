"""An admin repairs a wrong client secret: whose turn it is where the server has ended a grant for that."""

from datetime import timedelta

import pytest

from evergrant_server.core.errors import ErrorCode
from tests.fakes.platform.skipped_time import LoneWorker
from tests.faults.refresh.test_recurring_errors import (
    ACTIVE,
    CLIENT,
    DOWN,
    EMPTY,
    INVALID_REQUEST,
    INVENTED,
    NAMELESS,
    REFUSED,
    PlainServer,
    Reply,
    ended,
    place,
    server,
    the_integration,
    worked,
)

__all__ = ["place", "server"]


@pytest.mark.parametrize("reply", [EMPTY, NAMELESS, INVALID_REQUEST, INVENTED])
async def test_a_token_that_a_wrong_secret_has_ended_is_the_subjects_after_the_repair(
    place: LoneWorker, server: PlainServer, reply: Reply
):
    """glewlwyd ends a grant whose refresh token comes with a wrong secret; nothing else shows it."""
    integration = await the_integration(place, server)
    connection = await worked(place, integration)
    server.says_to_all = CLIENT
    await place.refresh_until(connection, timedelta(hours=3))
    assert ended(await place.row(connection)) == ACTIVE
    server.says_to_all = reply
    await place.repaired(integration, "right", connection)
    assert ended(await place.refresh_until(connection, timedelta(minutes=2))) == REFUSED


async def test_a_refusal_without_a_repair_is_not_the_subjects(place: LoneWorker, server: PlainServer):
    """A provider that comes back may refuse our client first, and everything for a while after that."""
    connection = await worked(place, await the_integration(place, server))
    server.says_to_all = CLIENT
    await place.refresh(connection)
    server.says_to_all = INVENTED
    assert ended(await place.refresh_until(connection, timedelta(hours=12))) == ACTIVE


async def test_a_repair_that_helps_asks_nobody(place: LoneWorker, server: PlainServer):
    integration = await the_integration(place, server)
    connection = await worked(place, integration)
    server.says_to_all = CLIENT
    await place.refresh_until(connection, timedelta(hours=3))
    server.says_to_all = DOWN
    await place.repaired(integration, "right", connection)
    await place.refresh_until(connection, timedelta(minutes=10))
    server.says_to_all = None
    row = await place.refresh_until(connection, timedelta(hours=5))
    assert ended(row) == ACTIVE
    assert row.generation > 2


@pytest.mark.parametrize("reply", [EMPTY, INVENTED])
async def test_a_server_that_names_no_error_has_the_admin_asked_first(
    place: LoneWorker, server: PlainServer, reply: Reply
):
    """glewlwyd answers everything with an empty 400: first what was changed is suspected, then the token."""
    integration = await the_integration(place, server)
    connection = await worked(place, integration)
    integration = await place.repaired(integration, "wrong", connection)
    server.says_to_all = reply
    await place.refresh_until(connection, timedelta(minutes=2))
    row = await place.row(connection)
    assert (ended(row), row.last_failure) == (ACTIVE, ErrorCode.CLIENT_REJECTED)
    await place.refresh_until(connection, timedelta(hours=2))
    assert ended(await place.row(connection)) == ACTIVE
    await place.repaired(integration, "right", connection)
    assert ended(await place.refresh_until(connection, timedelta(minutes=2))) == REFUSED
