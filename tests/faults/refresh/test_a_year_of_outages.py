"""A year of one connection with an outage a month, by real activities and a server that rotates strictly: no
subject is asked in vain."""

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.integrations import Endpoints, RefreshRules, Rotation
from tests.fakes.platform.skipped_time import LoneWorker, lone_worker
from tests.fakes.providers.scripted_server import Answer, Call, ScriptedServer, drop, raw, status

MONTH, LONGEST = timedelta(days=30), timedelta(days=4)  # a lost answer is waited for while the token is valid
# What each month's outage answers, in turns: nothing is served, and no token spent.
OUTAGES: tuple[tuple[Answer, ...], ...] = (
    (drop(),),
    (status(503),),
    (status(500),),
    (status(429, {"Retry-After": "60"}),),
    (raw(b"<html>Request blocked", 400),),
    (raw(b'{"error": "temporarily_unavailable"}', 400),),
    (raw(b'{"error": "invalid_request", "error_description": "too many requests"}', 400),),
    (raw(b'{"error": "invalid_request", "reason": "Internal Error"}', 400),),
    (status(503), raw(b"<html>", 404), status(500)),
    (drop(), status(503), status(408)),
    (raw(b'{"error": "invalid_request"}', 400), status(503)),
    (raw(b'{"error": "unavailable_for_now"}', 403),),
)


class Rotating(ScriptedServer):
    """Each refresh token works once, and lasts three days."""

    def __init__(self) -> None:
        super().__init__("", None)
        self.current, self.refreshes, self.spent = "rt-user-1", 0, 0

    def _act(self, call: Call) -> Any:
        if call.params.get("refresh_token") != self.current:
            self.spent += 1
            return 400, {}, {"error": "invalid_request"}
        self.refreshes += 1
        self.current = f"rt-{self.refreshes}"
        reply = {"access_token": f"at-{self.refreshes}", "token_type": "bearer", "expires_in": 3 * 86_400}
        return 200, {}, {**reply, "refresh_token": self.current}


@pytest_asyncio.fixture
async def server() -> AsyncIterator[Rotating]:
    async with Rotating() as server:
        yield server


@pytest_asyncio.fixture
async def place(server: Rotating, tmp_path: Path) -> AsyncIterator[LoneWorker]:
    async with lone_worker(tmp_path, server.allowance) as place:
        yield place


@pytest.mark.soak
async def test_a_year_with_an_outage_a_month_asks_no_subject_in_vain(place: LoneWorker, server: Rotating):
    integration = await place.integration(
        refresh=RefreshRules(rotation=Rotation.STRICT),
        endpoints=Endpoints(issuer=server.issuer, token_endpoint=server.url("token")),
        issuer=server.issuer,
    )
    connection = await place.connected(integration)
    waits: list[timedelta] = []
    for outage in OUTAGES:
        row = await place.refresh_until(connection, MONTH - LONGEST)
        assert row.state is LifecycleState.ACTIVE
        waits.append(await outlived(place, server, connection, outage))
    assert max(waits) <= LONGEST, "served again as soon as that after an outage"
    assert (server.spent, server.refreshes > 100) == (0, True)
    # and at the end the grant is revoked, in an outage
    server.current = "revoked"
    server.script(status(503))
    await place.refresh(connection)
    row = await place.refresh_until(connection, timedelta(days=8))
    assert (row.state, row.reason) == (LifecycleState.NEEDS_REAUTH, ErrorCode.REFRESH_KEEPS_FAILING)


async def outlived(
    place: LoneWorker, server: Rotating, connection: Any, outage: tuple[Answer, ...]
) -> timedelta:
    """Refresh through twelve hours of this outage; how long after its end the next one worked."""
    before = (await place.row(connection)).generation
    ends: datetime = place.clock.now() + timedelta(hours=12)
    number = 0
    while place.clock.now() < ends:
        server.script(outage[number % len(outage)])
        number += 1
        await place.refresh(connection)
        assert (await place.row(connection)).state is LifecycleState.ACTIVE
        due = place.due_at(connection)
        assert due is not None
        place.clock.advance(max((due - place.clock.now()).total_seconds(), 1))
    while (await place.row(connection)).generation == before:
        await place.refresh(connection)
        due = place.due_at(connection)
        assert due is not None
        if (await place.row(connection)).generation == before:
            place.clock.advance(max((due - place.clock.now()).total_seconds(), 1))
    return place.clock.now() - ends
