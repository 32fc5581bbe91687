"""The control request: a refusal is compared with that of a token that can't exist, within its limits."""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from evergrant_server import audit
from evergrant_server.core.audit import INSTALLATION, AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.integrations import Endpoints, Integration, RefreshRules, Rotation
from evergrant_server.core.messages.activities import GrantResult
from evergrant_server.core.single_use.control_request import FOR_HOST_EVERY, FOR_INTEGRATION_EVERY
from providers.definition.registry import Registry
from tests.fakes.platform.skipped_time import TENANT, LoneWorker, lone_worker
from tests.fakes.providers.scripted_server import Call, ScriptedServer

Reply = tuple[int, bytes]
UNKNOWN: Reply = (400, b'{"error": "invalid_request", "request_id": "6f9619ff-8b86-d011-b42d-00c04fc964ff"}')
ALSO_UNKNOWN: Reply = (
    400,
    b'{"error": "invalid_request", "request_id": "11111111-8b86-d011-b42d-00c04fc964ff"}',
)
INVENTED: Reply = (403, b'{"error": "of_no_definition"}')
GRANTED: Reply = (200, b'{"access_token": "at-x", "refresh_token": "rt-x", "token_type": "bearer"}')
TWO_MINUTES, HOUR, DAY = timedelta(minutes=2), timedelta(hours=1), timedelta(days=1)
ACTIVE, PROBABLY_OVER = (
    (LifecycleState.ACTIVE, None),
    (LifecycleState.NEEDS_REAUTH, ErrorCode.GRANT_PROBABLY_OVER),
)


class KnowsItsTokens(ScriptedServer):
    """Serves the refresh tokens of its subjects, but for those it is told to refuse, and none but its own."""

    def __init__(self) -> None:
        super().__init__("", None)
        self.says: dict[str, Reply] = {}
        self.to_unknown: Reply = UNKNOWN
        self.revoked: list[str] = []

    def _act(self, call: Call) -> Any:
        token = call.params.get("refresh_token") or call.params.get("token", "")
        if call.endpoint == "revoke":
            self.revoked.append(token)
            return 200, {}, b""
        known = token.removeprefix("rt-") in ("user-1", "user-2", "other")
        reply = self.says.get(token, None if known else self.to_unknown)
        if reply is not None:
            return reply[0], {"Content-Type": "application/json"}, reply[1]
        return 200, {}, {"access_token": "at-2", "token_type": "bearer", "expires_in": 3600}

    @property
    def made_up(self) -> list[str]:
        """Tokens that it never issued."""
        sent = [call.params.get("refresh_token", "") for call in self.calls if call.endpoint == "token"]
        return [token for token in sent if token not in ("rt-user-1", "rt-user-2", "rt-other")]


@pytest_asyncio.fixture
async def server() -> AsyncIterator[KnowsItsTokens]:
    async with KnowsItsTokens() as server:
        yield server


@pytest_asyncio.fixture
async def place(server: KnowsItsTokens, tmp_path: Path) -> AsyncIterator[LoneWorker]:
    async with lone_worker(tmp_path, server.allowance) as place:
        yield place


async def working(
    place: LoneWorker, server: KnowsItsTokens, **changes: Any
) -> tuple[Integration, Connection]:
    """An integration, and another connection whose refreshes work."""
    endpoints = Endpoints(
        issuer=server.issuer,
        token_endpoint=server.url("token"),
        revocation_endpoint=server.url("revoke"),
    )
    rules = RefreshRules(rotation=Rotation.NONE)
    integration = await place.integration(
        **{"refresh": rules, "endpoints": endpoints, "issuer": server.issuer, **changes}
    )
    companion = await place.connected(integration, "other")
    await witness(place, companion)
    return integration, companion


async def witness(place: LoneWorker, companion: Connection) -> None:
    """The other connection's refresh works, and neither just before nor just after anything else."""
    place.clock.advance(1)
    assert (await place.refresh(companion)).failure is None
    place.clock.advance(1)


async def refused_twice(
    place: LoneWorker,
    server: KnowsItsTokens,
    integration: Integration,
    reply: Reply = UNKNOWN,
    subject: str = "user-1",
) -> Connection:
    connection = await place.connected(integration, subject)
    place.clock.advance(3600)
    server.says[f"rt-{subject}"] = reply
    await place.refresh(connection)
    await again(place, connection)
    return connection


async def again(place: LoneWorker, connection: Connection) -> GrantResult:
    """The next try, when its timer fires."""
    due = place.due_at(connection)
    assert due is not None
    place.clock.advance(max((due - place.clock.now()).total_seconds(), 0))
    return await place.refresh(connection)


def ended(connection: Connection) -> tuple[LifecycleState, ErrorCode | None]:
    return connection.state, connection.reason


async def newest(place: LoneWorker, action: AuditAction, about: str) -> dict[str, Any]:
    async with place.store.read() as tx:
        record = await audit.newest_record(tx, TENANT, about, action)
    return {} if record is None else record.detail


async def test_an_equal_answer_beside_a_witness_ends_the_grant_within_two_minutes(
    place: LoneWorker, server: KnowsItsTokens
):
    integration, companion = await working(place, server)
    began = place.clock.now() + HOUR
    connection = await refused_twice(place, server, integration)
    await witness(place, companion)
    server.to_unknown = ALSO_UNKNOWN  # another request id
    result = await again(place, connection)
    assert (result.failure, result.last_try) == (ErrorCode.GRANT_PROBABLY_OVER, True)
    assert ended(await place.row(connection)) == PROBABLY_OVER
    assert place.clock.now() - began <= TWO_MINUTES
    (sent,) = server.made_up
    call = next(call for call in server.calls if call.params.get("refresh_token") == sent)
    before = next(call for call in server.calls if call.params.get("refresh_token") == "rt-user-1")
    assert set(call.params) == set(before.params)
    asked = await newest(place, AuditAction.CONTROL_REQUESTED, integration.id)
    answered = await newest(place, AuditAction.CONTROL_ANSWERED, integration.id)
    assert (asked["connection"], answered["outcome"]) == (connection.id, "refused")
    assert await newest(place, AuditAction.CONTROL_COMPARED, connection.id) == {"equal": True, "sent": True}
    assert sent not in str(answered)


async def test_a_last_try_a_day_later_that_works_brings_the_connection_back(
    place: LoneWorker, server: KnowsItsTokens
):
    integration, companion = await working(place, server)
    connection = await refused_twice(place, server, integration)
    await witness(place, companion)
    await again(place, connection)
    due = place.due_at(connection)
    assert due == place.clock.now() + DAY
    place.clock.advance(DAY.total_seconds())
    del server.says["rt-user-1"]
    assert (await place.verify(connection)).failure is None
    row = await place.row(connection)
    assert (ended(row), row.generation) == (ACTIVE, 2)


@pytest.mark.parametrize("reply", [UNKNOWN, INVENTED], ids=["the same", "another"])
async def test_a_last_try_that_is_refused_is_the_last(
    place: LoneWorker, server: KnowsItsTokens, reply: Reply
):
    integration, companion = await working(place, server)
    connection = await refused_twice(place, server, integration)
    await witness(place, companion)
    await again(place, connection)
    server.says["rt-user-1"] = reply
    place.clock.advance(DAY.total_seconds())
    await place.verify(connection)
    assert ended(await place.row(connection)) == PROBABLY_OVER
    assert place.due_at(connection) is None
    async with place.store.read() as tx:
        assert await tx.late_tokens.of_connection(TENANT, connection.id) == []
        assert await tx.grants.refresh_token(connection) is not None, "until a new consent"


async def test_an_unequal_answer_proves_nothing_and_isnt_asked_for_again(
    place: LoneWorker, server: KnowsItsTokens
):
    integration, companion = await working(place, server)
    connection = await refused_twice(place, server, integration)
    await witness(place, companion)
    server.to_unknown = (400, b'{"error": "invalid_grant"}')
    await again(place, connection)
    assert ended(await place.row(connection)) == ACTIVE
    assert await newest(place, AuditAction.CONTROL_COMPARED, connection.id) == {"equal": False, "sent": True}
    place.clock.advance(2 * 86_400)
    await witness(place, companion)
    await place.refresh(connection)
    assert len(server.made_up) == 1


async def test_without_a_witness_since_the_newest_refusal_nothing_is_sent(
    place: LoneWorker, server: KnowsItsTokens
):
    integration, companion = await working(place, server)
    await witness(place, companion)
    connection = await refused_twice(place, server, integration)
    await again(place, connection)
    assert ended(await place.row(connection)) == ACTIVE
    assert server.made_up == []


@pytest.mark.parametrize(
    "reply",
    [
        (500, b""),
        (503, b""),
        (429, b""),
        (408, b""),
        (400, b"<html>Request blocked"),
        (400, b'{"error": "temporarily_unavailable"}'),
        (401, b'{"error": "invalid_client"}'),
    ],
    ids=["500", "503", "429", "408", "a page", "a known word", "a client's"],
)
async def test_never_for_what_isnt_an_unknown_refusal(
    place: LoneWorker, server: KnowsItsTokens, reply: Reply
):
    integration, companion = await working(place, server)
    connection = await refused_twice(place, server, integration, reply)
    await witness(place, companion)
    await again(place, connection)
    assert ended(await place.row(connection)) == ACTIVE
    assert server.made_up == []


KAKAO = b'{"error": "invalid_request", "error_code": "KOE237", "error_description": "exceeded"}'
CILOGON = b'{"error": "invalid_request", "error_description": "unable to update claims on token refresh"}'
ZOOM = b'{"error": "invalid_request", "reason": "Internal Error"}'


@pytest.mark.parametrize("body", [KAKAO, CILOGON, ZOOM], ids=["Kakao", "CILogon", "Zoom"])
@pytest.mark.parametrize("of_all", [True, False], ids=["of all", "of one token"])
async def test_an_invalid_request_that_passes_ends_no_grant(
    place: LoneWorker, server: KnowsItsTokens, body: bytes, of_all: bool
):
    """Of all: no other connection is a witness. Of one token: one that doesn't exist is refused otherwise.
    Zoom's words are known as a fault's, and aren't compared."""
    integration, companion = await working(place, server)
    connection = await refused_twice(place, server, integration, (400, body))
    server.to_unknown = (400, b'{"error": "invalid_grant"}')
    if of_all:
        server.says["rt-other"] = (400, body)
        place.clock.advance(1)
        await place.refresh(companion)
    else:
        await witness(place, companion)
    assert ended(await place.refresh_until(connection, 6 * HOUR)) == ACTIVE
    assert len(server.made_up) == (0 if of_all or body == ZOOM else 1)
    server.says.clear()
    row = await place.refresh_until(connection, 6 * HOUR)
    assert (ended(row), row.generation > 1) == (ACTIVE, True)


async def test_two_different_refusals_arent_the_same_twice(place: LoneWorker, server: KnowsItsTokens):
    integration, companion = await working(place, server)
    connection = await refused_twice(place, server, integration)
    server.says["rt-user-1"] = INVENTED
    await witness(place, companion)
    await again(place, connection)
    assert server.made_up == []


async def test_a_kept_answer_decides_for_the_next_connection_and_nothing_is_sent(
    place: LoneWorker, server: KnowsItsTokens
):
    integration, companion = await working(place, server)
    first = await refused_twice(place, server, integration)
    await witness(place, companion)
    await again(place, first)
    second = await refused_twice(place, server, integration, subject="user-2")
    await witness(place, companion)
    await again(place, second)
    assert ended(await place.row(second)) == PROBABLY_OVER
    assert len(server.made_up) == 1
    assert await newest(place, AuditAction.CONTROL_COMPARED, second.id) == {"equal": True, "sent": False}


async def test_once_a_day_for_an_integration_and_once_an_hour_for_a_host(
    place: LoneWorker, server: KnowsItsTokens
):
    server.to_unknown = (503, b"")  # it proves nothing, and uses the limit
    neighbour, friend = await working(place, server, name="crm-2")
    next_door = await refused_twice(place, server, neighbour, subject="user-2")
    integration, companion = await working(place, server)
    connection = await refused_twice(place, server, integration)
    await witness(place, companion)
    await again(place, connection)
    assert (len(server.made_up), ended(await place.row(connection))) == (1, ACTIVE)
    answered = await newest(place, AuditAction.CONTROL_ANSWERED, integration.id)
    assert answered["outcome"] == "unanswered"
    host = server.url("token").split("/")[2]
    async with place.store.read() as tx:
        asked = await audit.newest_record(tx, INSTALLATION, host, AuditAction.CONTROL_REQUESTED)
    assert asked is not None
    await witness(place, friend)
    await again(place, next_door)
    assert len(server.made_up) == 1, "an hour for the host"
    place.clock.advance(FOR_HOST_EVERY.total_seconds())
    server.to_unknown = UNKNOWN
    await witness(place, companion)
    await place.refresh(connection)
    assert len(server.made_up) == 1, "a day for the integration"
    place.clock.advance(FOR_INTEGRATION_EVERY.total_seconds())
    await witness(place, companion)
    await place.refresh(connection)
    assert ended(await place.row(connection)) == PROBABLY_OVER


async def test_a_server_that_makes_tokens_of_anything_is_never_asked_again(
    place: LoneWorker, server: KnowsItsTokens
):
    server.to_unknown = GRANTED
    integration, companion = await working(place, server)
    connection = await refused_twice(place, server, integration)
    await witness(place, companion)
    await again(place, connection)
    assert server.revoked == ["rt-x", "at-x"]
    answered = await newest(place, AuditAction.CONTROL_ANSWERED, integration.id)
    assert (answered["outcome"], answered["revoked"]) == ("granted", True)
    for _ in range(3):
        place.clock.advance(2 * 86_400)
        await witness(place, companion)
        await place.refresh(connection)
    assert len(server.made_up) == 1


async def test_a_caller_causes_a_try_before_its_time_only_once_there_is_evidence(
    place: LoneWorker, server: KnowsItsTokens
):
    integration, companion = await working(place, server)
    connection = await refused_twice(place, server, integration)
    await again(place, connection)
    before = server.count("token")
    look = await place.refresh(connection, only_with_evidence=True)
    assert (look.undecided, server.count("token")) == (True, before)
    await witness(place, companion)
    await place.refresh(connection, only_with_evidence=True)
    assert ended(await place.row(connection)) == PROBABLY_OVER


async def test_off_by_a_setting(server: KnowsItsTokens, tmp_path: Path):
    async with lone_worker(tmp_path, server.allowance, control_requests=False) as place:
        await never_sent(place, server)


async def test_off_by_a_definition(server: KnowsItsTokens, tmp_path: Path):
    registry = Registry.load()
    registry._specs["generic"] = registry.get("generic").__replace__(control_request=False)
    async with lone_worker(tmp_path, server.allowance, registry=registry) as place:
        await never_sent(place, server)


async def never_sent(place: LoneWorker, server: KnowsItsTokens) -> None:
    integration, companion = await working(place, server)
    connection = await refused_twice(place, server, integration)
    await witness(place, companion)
    await again(place, connection)
    assert (ended(await place.row(connection)), server.made_up) == (ACTIVE, [])
