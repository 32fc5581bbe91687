"""An error that keeps coming back: who has to repair it, told by what the store knows of other refreshes."""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from evergrant_server import audit
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.integrations import Endpoints, Integration, RefreshRules, Rotation
from evergrant_server.core.single_use.recurring_errors import RECURS_FOR, RECURS_FOR_ALONE
from tests.fakes.platform.skipped_time import TENANT, LoneWorker, lone_worker
from tests.fakes.providers.scripted_server import Call, ScriptedServer, drop_after_commit

NEXT_TRY = timedelta(hours=15)  # the longest pause between two tries after a refusal
LONG = timedelta(days=8)
EMPTY, NAMELESS, INVALID_REQUEST = (
    (400, b""),
    (400, b'{"message": "no"}'),
    (400, b'{"error": "invalid_request"}'),
)
INVENTED, CLIENT, DOWN = (400, b'{"error": "invented"}'), (401, b'{"error": "invalid_client"}'), (500, b"")
GONE, PAGE = (404, b"<html>"), (400, b"<html>Request blocked")

Reply = tuple[int, bytes]


class PlainServer(ScriptedServer):
    """Its refresh tokens stay good, until it is told what to say to one of them, or to all."""

    def __init__(self) -> None:
        super().__init__("", None)
        self.says: dict[str, Reply] = {}
        self.says_to_all: Reply | None = None
        self.lasts_s = 3600
        self.rotates = False
        self.active: dict[str, bool] = {}  # what introspection says of a token; others are unknown to it

    def _act(self, call: Call) -> Any:
        token = call.params.get("refresh_token") or call.params.get("token", "")
        if call.endpoint == "introspect":
            return 200, {}, {"active": self.active.get(token, False)}
        reply = self.says_to_all or self.says.get(token)
        if reply is not None:
            return reply[0], {}, reply[1]
        said = {"access_token": "at-2", "token_type": "bearer", "expires_in": self.lasts_s}
        return 200, {}, {**said, "refresh_token": f"{token}+"} if self.rotates else said


@pytest_asyncio.fixture
async def server() -> AsyncIterator[PlainServer]:
    async with PlainServer() as server:
        yield server


@pytest_asyncio.fixture
async def place(server: PlainServer, tmp_path: Path) -> AsyncIterator[LoneWorker]:
    async with lone_worker(tmp_path, server.allowance) as place:
        yield place


STRICT = RefreshRules(rotation=Rotation.STRICT)


async def the_integration(
    place: LoneWorker, server: PlainServer, refresh: RefreshRules = STRICT, **changes: Any
) -> Integration:
    endpoints = {"issuer": server.issuer, "token_endpoint": server.url("token")}
    return await place.integration(
        refresh=refresh,
        endpoints=Endpoints(**endpoints, **changes),
        issuer=server.issuer,
    )


async def worked(place: LoneWorker, integration: Integration, subject: str = "user-1") -> Connection:
    """A connection whose first refresh has worked, an hour ago."""
    connection = await place.connected(integration, subject)
    assert (await place.refresh(connection)).failure is None
    place.clock.advance(3600)
    return await place.row(connection)


async def refresh_all(place: LoneWorker, *connections: Connection, limit: timedelta) -> list[Connection]:
    """Each refreshes whenever its timer fires."""
    until, refreshing = place.clock.now() + limit, list(connections)
    while refreshing:
        now = place.clock.now()
        first = min(refreshing, key=lambda it: place.due_at(it) or now)
        due = place.due_at(first) or now
        place.clock.advance(max((min(due, until) - now).total_seconds(), 0))
        if due > until:
            break
        await place.refresh(first)
        if (await place.row(first)).state is not LifecycleState.ACTIVE:
            refreshing.remove(first)
    return [await place.row(it) for it in connections]


def ended(connection: Connection) -> tuple[LifecycleState, ErrorCode | None]:
    return connection.state, connection.reason


ACTIVE = (LifecycleState.ACTIVE, None)
REFUSED = (LifecycleState.NEEDS_REAUTH, ErrorCode.REFRESH_REFUSED)
KEEPS_FAILING = (LifecycleState.NEEDS_REAUTH, ErrorCode.REFRESH_KEEPS_FAILING)
UNKNOWN = (LifecycleState.NEEDS_REAUTH, ErrorCode.OUTCOME_UNKNOWN)


@pytest.mark.parametrize("reply", [EMPTY, NAMELESS])
async def test_a_refusal_without_a_usable_error_is_asked_again_and_then_the_subjects(
    place: LoneWorker, server: PlainServer, reply: Reply
):
    connection = await worked(place, await the_integration(place, server))
    server.says["rt-user-1"] = reply
    first = await place.refresh(connection)
    assert (first.failure, first.unknown_error) == (ErrorCode.PROVIDER_ERROR, True)
    assert ended(await place.row(connection)) == ACTIVE
    place.clock.advance(5)
    await place.refresh(connection)
    assert ended(await place.row(connection)) == ACTIVE, "five seconds later is no second time"
    row = await place.refresh_until(connection, timedelta(minutes=10))
    assert ended(row) == REFUSED
    assert server.count("token") == 4
    async with place.store.read() as tx:
        assert await tx.grants.refresh_token(row) is not None, "until a new consent"
        told = await audit.newest_record(tx, TENANT, row.id, AuditAction.NEEDS_REAUTH)
    assert told is not None
    assert told.detail["reason"] == ErrorCode.REFRESH_REFUSED


async def test_another_connections_refreshes_show_that_the_request_is_good(
    place: LoneWorker, server: PlainServer
):
    integration = await the_integration(place, server)
    await worked(place, integration, "other")
    connection = await place.connected(integration)
    server.says["rt-user-1"] = EMPTY
    assert ended(await place.refresh_until(connection, timedelta(minutes=10))) == REFUSED


async def test_an_invalid_request_ends_no_grant_within_the_hour(place: LoneWorker, server: PlainServer):
    """It is said of limits and of faults too: Kakao's KOE237, CILogon, Zoom."""
    connection = await worked(place, await the_integration(place, server))
    server.says["rt-user-1"] = INVALID_REQUEST
    row = await place.refresh_until(connection, timedelta(hours=1))
    assert (ended(row), row.last_failure) == (ACTIVE, ErrorCode.PROVIDER_ERROR)


async def test_an_invalid_request_that_never_worked_is_the_admins(place: LoneWorker, server: PlainServer):
    connection = await place.connected(await the_integration(place, server))
    server.says_to_all = INVALID_REQUEST
    row = await place.refresh_until(connection, LONG)
    assert (ended(row), row.last_failure) == (ACTIVE, ErrorCode.CLIENT_REJECTED)


async def test_an_invalid_request_after_a_change_of_the_client_is_the_admins(
    place: LoneWorker, server: PlainServer
):
    integration = await the_integration(place, server)
    connection = await worked(place, integration)
    changed = integration.model_copy(update={"changed_at": place.clock.now()})
    async with place.store.write() as tx:
        await tx.integrations.replace(changed, expected=integration.revision)
    server.says_to_all = INVALID_REQUEST
    row = await place.refresh_until(connection, timedelta(days=2))
    assert (ended(row), row.last_failure) == (ACTIVE, ErrorCode.CLIENT_REJECTED)


@pytest.mark.parametrize("active", [False, True], ids=["inactive", "active"])
async def test_introspection_is_asked_before_the_refresh_token_is_sent_again(
    place: LoneWorker, server: PlainServer, active: bool
):
    url = server.url("introspect")
    connection = await worked(place, await the_integration(place, server, introspection_endpoint=url))
    place.clock.advance(-120)  # its access token is still valid, and so is asked about
    server.says["rt-user-1"], server.active["rt-user-1"] = EMPTY, active
    before = server.count("token")
    row = await place.refresh_until(connection, timedelta(hours=5))
    sent = server.count("token") - before
    assert (ended(row), sent == 2) == ((ACTIVE, False) if active else (REFUSED, True))


@pytest.mark.parametrize(
    ("reply", "span"),
    [
        (INVENTED, RECURS_FOR),
        (CLIENT, RECURS_FOR_ALONE),
        (DOWN, RECURS_FOR_ALONE),
        (GONE, RECURS_FOR_ALONE),
        (PAGE, RECURS_FOR),
    ],
    ids=["invented", "client", "500", "404", "a gateway's page"],
)
async def test_an_error_that_other_connections_dont_meet_is_the_subjects_in_the_end(
    place: LoneWorker, server: PlainServer, reply: Reply, span: timedelta
):
    integration = await the_integration(place, server)
    connection, other = [await worked(place, integration, name) for name in ("user-1", "other")]
    server.says["rt-user-1"] = reply
    server.lasts_s = 4 * 3600
    row, _ = await refresh_all(place, connection, other, limit=span - timedelta(hours=1))
    assert ended(row) == ACTIVE
    row, well = await refresh_all(place, connection, other, limit=NEXT_TRY + timedelta(hours=9))
    assert (ended(row), ended(well)) == (KEEPS_FAILING, ACTIVE)
    async with place.store.read() as tx:
        assert await tx.attempts.open_of_any_kind(TENANT, row.id, "main") is None


@pytest.mark.parametrize(
    "reply",
    [EMPTY, pytest.param(INVENTED, marks=pytest.mark.soak), pytest.param(DOWN, marks=pytest.mark.soak)],
    ids=["empty", "invented", "500"],
)
async def test_an_error_that_every_connection_meets_asks_no_subject(
    place: LoneWorker, server: PlainServer, reply: Reply
):
    """And once it is over, what it left behind starts the day again."""
    integration = await the_integration(place, server)
    fleet = [await worked(place, integration, name) for name in ("user-1", "other")]
    server.says_to_all = reply
    rows = await refresh_all(place, *fleet, limit=LONG)
    assert [ended(it) for it in rows] == [ACTIVE, ACTIVE]
    server.says_to_all, server.says["rt-user-1"] = None, INVENTED
    row, well = await refresh_all(place, *fleet, limit=RECURS_FOR)
    # a 500 may have spent the token, and the other's refresh shows that the provider is well
    assert (ended(row), ended(well)) == (UNKNOWN if reply == DOWN else ACTIVE, ACTIVE)


async def test_a_refusal_of_all_that_come_due_one_by_one_asks_one_subject_until_a_refresh_works(
    place: LoneWorker, server: PlainServer
):
    """A secret that was changed at the provider alone, where it answers that with an empty 400."""
    integration = await the_integration(place, server)
    first, second, third = [await worked(place, integration, name) for name in ("a", "b", "c")]
    server.says_to_all = EMPTY
    assert ended(await place.refresh_until(first, timedelta(minutes=10))) == REFUSED
    place.clock.advance(600)
    assert ended(await place.refresh_until(second, timedelta(hours=12))) == ACTIVE
    assert ended(await place.refresh_until(third, timedelta(hours=12))) == ACTIVE
    server.says_to_all, server.says["rt-b"] = None, EMPTY
    assert (await place.refresh(third)).failure is None
    assert ended(await place.refresh_until(second, NEXT_TRY * 2)) == REFUSED, "the client's requests work"


async def test_a_refusal_that_no_other_refresh_explains_is_the_subjects_after_a_week(
    place: LoneWorker, server: PlainServer
):
    connection = await place.connected(await the_integration(place, server))
    server.says_to_all = INVENTED
    began = place.clock.now()
    assert ended(await place.refresh_until(connection, RECURS_FOR_ALONE)) == ACTIVE
    assert ended(await place.refresh_until(connection, NEXT_TRY)) == KEEPS_FAILING
    assert place.clock.now() - began <= RECURS_FOR_ALONE + NEXT_TRY


@pytest.mark.parametrize("reply", [CLIENT, DOWN], ids=["client", "500"])
async def test_the_only_connection_waits_for_its_provider_and_its_admin(
    place: LoneWorker, server: PlainServer, reply: Reply
):
    connection = await place.connected(await the_integration(place, server))
    server.says_to_all = reply
    assert ended(await place.refresh_until(connection, LONG)) == ACTIVE
    server.says_to_all = INVENTED  # and the first thing that it says when it is back
    await place.refresh_until(connection, timedelta(hours=3))
    server.says_to_all = None
    assert ended(await place.refresh_until(connection, timedelta(days=1))) == ACTIVE
    assert (await place.row(connection)).generation > 1


# --- after a lost answer ------------------------------------------------------------------

TWO_MINUTES = timedelta(minutes=2)
FORBIDDEN, TIMED_OUT, PASSING = (
    (403, b'{"error": "of_no_definition"}'),
    (408, b""),
    (400, b'{"error": "temporarily_unavailable"}'),
)


async def lost_answer(place: LoneWorker, server: PlainServer, integration: Integration) -> Connection:
    """A connection the answer to whose first refresh was lost, after a use that worked where `integration`
    doesn't say whether its provider rotates."""
    connection = await place.connected(integration)
    place.clock.advance(3600)
    server.script(drop_after_commit())
    lost = await place.refresh(connection)
    assert (lost.failure, lost.answer_lost) == (ErrorCode.PROVIDER_UNREACHABLE, True)
    return connection


@pytest.mark.parametrize(
    "reply",
    [EMPTY, NAMELESS, INVALID_REQUEST, INVENTED, FORBIDDEN],
    ids=["empty", "nameless", "invalid_request", "invented", "403"],
)
async def test_two_refusals_after_a_lost_answer_ask_the_subject_within_two_minutes(
    place: LoneWorker, server: PlainServer, reply: Reply
):
    """At a server that rotates, whatever it calls a spent token, also for the only connection there is."""
    connection = await lost_answer(place, server, await the_integration(place, server))
    server.says["rt-user-1"] = reply
    first = await place.refresh(connection)
    assert (first.failure, first.unknown_error) == (ErrorCode.PROVIDER_ERROR, True)
    assert ended(await place.refresh_until(connection, TWO_MINUTES)) == UNKNOWN
    assert server.count("token") == 3


@pytest.mark.parametrize("witness", [True, False], ids=["another works", "alone"])
async def test_refusals_after_an_outage_of_hours_are_as_quick_but_a_500_needs_a_witness(
    place: LoneWorker, server: PlainServer, witness: bool
):
    """What comes back may refuse everything at first."""
    integration = await the_integration(place, server)
    connection = await worked(place, integration)
    other = await place.connected(integration, "other")
    server.says_to_all = DOWN
    assert ended(await place.refresh_until(connection, timedelta(hours=6))) == ACTIVE
    server.says_to_all, server.says["rt-user-1"] = None, INVALID_REQUEST
    await place.refresh(connection)
    place.clock.advance(1)
    if witness:
        await place.refresh(other)
    assert ended(await place.refresh_until(connection, TWO_MINUTES)) == (UNKNOWN if witness else ACTIVE)


async def test_while_others_fail_as_well_a_lost_answer_decides_nothing(
    place: LoneWorker, server: PlainServer
):
    integration = await the_integration(place, server)
    other = await place.connected(integration, "other")
    connection = await lost_answer(place, server, integration)
    server.says_to_all = EMPTY
    await place.refresh(connection)
    place.clock.advance(1)
    await place.refresh(other)
    assert ended(await place.refresh_until(connection, TWO_MINUTES)) == ACTIVE
    server.says_to_all = None
    server.says["rt-user-1"] = EMPTY
    assert (await place.refresh(other)).failure is None
    assert ended(await place.refresh_until(connection, timedelta(hours=1))) == UNKNOWN


@pytest.mark.parametrize(
    "reply", [TIMED_OUT, PASSING, PAGE, CLIENT], ids=["408", "passing", "a gateway's page", "client"]
)
async def test_what_says_nothing_of_the_token_after_a_lost_answer_ends_no_grant(
    place: LoneWorker, server: PlainServer, reply: Reply
):
    connection = await lost_answer(place, server, await the_integration(place, server))
    server.says["rt-user-1"] = reply
    assert ended(await place.refresh_until(connection, timedelta(hours=12))) == ACTIVE
    del server.says["rt-user-1"]
    assert ended(await place.refresh_until(connection, timedelta(hours=12))) == ACTIVE
    assert (await place.row(connection)).generation > 1


async def test_a_refusal_from_before_the_answer_was_lost_counts_not(place: LoneWorker, server: PlainServer):
    connection = await worked(place, await the_integration(place, server))
    server.says["rt-user-1"] = INVENTED
    await place.refresh(connection)
    server.script(drop_after_commit())
    place.clock.advance(60)
    await place.refresh(connection)
    await place.refresh(connection)
    assert ended(await place.row(connection)) == ACTIVE
    assert ended(await place.refresh_until(connection, TWO_MINUTES)) == UNKNOWN


@pytest.mark.parametrize(("rotates", "end"), [(True, UNKNOWN), (False, ACTIVE)], ids=["rotates", "does not"])
async def test_where_the_definition_doesnt_say_it_the_store_knows_whether_a_server_rotates(
    place: LoneWorker, server: PlainServer, rotates: bool, end: tuple[LifecycleState, ErrorCode | None]
):
    integration = await the_integration(place, server, refresh=RefreshRules(rotation=Rotation.UNKNOWN))
    server.rotates = rotates
    await worked(place, integration, "other")
    connection = await lost_answer(place, server, integration)
    server.says["rt-user-1"] = INVENTED
    assert ended(await place.refresh_until(connection, TWO_MINUTES * 2)) == end
