"""Problem documents become the exception of who repairs them; retries follow Retry-After and the deadline."""

import json
import tomllib
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import evergrant as client
import pytest
from evergrant.api.call import SERVER_MAJOR, error_from
from evergrant.errors import EvergrantError
from evergrant.retries import Deadline
from httpx2 import Response

from evergrant_server.api.app import VERSION
from evergrant_server.core.errors import FAILURES, ErrorCode
from tests.unit.client.conftest import Caller
from tests.unit.client.scripted_evergrant import ScriptedEvergrant, ScriptedResponse, lease, problem

ROUTE = "POST /v1/lease"
PROJECT = Path(__file__).parents[3] / "clients/python/pyproject.toml"


@pytest.mark.parametrize("code", ErrorCode)
def test_every_code_of_the_server_becomes_its_kind(code: ErrorCode):
    rule = FAILURES[code]
    error = error_from(response(problem(rule.status, rule.kind.value, code.value)))
    assert type(error).__name__ == rule.kind.value
    assert (error.code, error.status, error.detail) == (code.value, rule.status, "the reason")


@pytest.mark.parametrize(
    ("status", "expected"),
    [(403, client.Denied), (409, client.BadRequest), (424, client.ClientMisconfigured)],
)
def test_an_unknown_kind_is_read_by_its_status(status: int, expected: type[EvergrantError]):
    error = error_from(response(problem(status, "SomethingNew", "new_code")))
    assert (type(error), error.code) == (expected, "new_code")


def response(answer: ScriptedResponse) -> Response:
    return Response(
        answer.status,
        headers={"content-type": answer.content_type, **answer.headers},
        content=json.dumps(answer.body).encode(),
    )


@pytest.mark.parametrize(
    "answer",
    [
        ScriptedResponse(404, "<html>secret page</html>", content_type="text/html"),
        ScriptedResponse(200, "<html>secret page</html>", content_type="text/html"),
        ScriptedResponse(200, "[]"),
        ScriptedResponse(302, "", {"location": "http://127.0.0.1:1/"}),
        ScriptedResponse(400, {"detail": "no code"}, content_type="application/problem+json"),
        ScriptedResponse(409, {"error": "secret page"}),
    ],
)
async def test_the_response_of_another_server_is_not_quoted(
    caller: Caller, evergrant: ScriptedEvergrant, answer: ScriptedResponse
):
    evergrant.script(ROUTE, answer)
    with pytest.raises(client.ProtocolError) as failed:
        await caller.call("lease", "crm", "alice")
    assert "secret page" not in str(failed.value)
    assert len(evergrant.requests) == 1


async def test_retries_wait_as_long_as_the_server_asks(caller: Caller, evergrant: ScriptedEvergrant):
    busy = problem(503, "ProviderUnavailable", "provider_rate_limited", retry_after=0.4)
    evergrant.script(ROUTE, busy, lease())
    assert (await caller.call("lease", "crm", "alice")).generation == 7
    first, second = evergrant.requests
    assert second.at - first.at >= 0.4


async def test_a_wait_beyond_the_deadline_is_not_begun(caller: Caller, evergrant: ScriptedEvergrant):
    busy = problem(503, "ProviderUnavailable", "provider_rate_limited", headers={"retry-after": "3600"})
    evergrant.script(ROUTE, busy)
    with pytest.raises(client.ProviderUnavailable) as failed:
        await caller.call("lease", "crm", "alice")
    assert failed.value.retry_after == 3600
    assert len(evergrant.requests) == 1


def test_retry_after_may_be_a_date():
    """RFC 9110 section 10.2.3."""
    at = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    error = error_from(response(ScriptedResponse(503, "busy", {"retry-after": at}, "text/plain")))
    assert isinstance(error, client.Unreachable)
    assert error.retry_after is not None
    assert 3000 < error.retry_after <= 3600


@pytest.mark.usefixtures("no_pauses")
async def test_a_dropped_connection_is_retried_with_the_same_key(
    caller: Caller, evergrant: ScriptedEvergrant
):
    evergrant.script("POST /v1/connections/con_1/refresh", ScriptedResponse(drop=True))
    with pytest.raises(client.Unreachable):
        await caller.call("refresh", "con_1")
    keys = [sent.headers["idempotency-key"] for sent in evergrant.requests]
    assert len(keys) == 3
    assert len(set(keys)) == 1


@pytest.mark.usefixtures("no_pauses")
@pytest.mark.parametrize(
    ("answer", "attempts"),
    [
        (problem(503, "PlatformUnavailable", "store_unavailable"), 3),
        (problem(409, "PlatformUnavailable", "store_conflict"), 3),
        (problem(500, "PlatformUnavailable", "seal_broken"), 1),
        (problem(403, "Denied", "not_permitted"), 1),
        (problem(424, "ClientMisconfigured", "client_rejected"), 1),
        (ScriptedResponse(502, "gateway", content_type="text/html"), 3),
    ],
)
async def test_only_failures_that_time_may_repair_are_retried(
    caller: Caller, evergrant: ScriptedEvergrant, answer: ScriptedResponse, attempts: int
):
    evergrant.script(ROUTE, answer)
    with pytest.raises(EvergrantError):
        await caller.call("lease", "crm", "alice")
    assert len(evergrant.requests) == attempts


def test_the_deadline_covers_all_attempts():
    now = [0.0]
    deadline = Deadline(timedelta(seconds=10), lambda: now[0])
    busy = client.ProviderUnavailable(retry_after=4)
    assert deadline.should_retry(busy) == 4
    assert deadline.should_retry(client.Unreachable()) is True
    now[0] = 6.5
    assert deadline.should_retry(busy) is False
    now[0] = 9.9
    assert deadline.should_retry(client.Unreachable()) is False
    assert deadline.seconds_left() == pytest.approx(0.1)


def of_version(version: str, answer: ScriptedResponse) -> ScriptedResponse:
    return ScriptedResponse(answer.status, answer.body, {"evergrant-version": version}, answer.content_type)


@pytest.mark.parametrize(
    "answer", [lease(), ScriptedResponse(200, {"grant": "new format"}), problem(409, "NewKind", "new_code")]
)
async def test_another_major_version_is_refused_whatever_the_response(
    caller: Caller, evergrant: ScriptedEvergrant, answer: ScriptedResponse
):
    evergrant.script(ROUTE, of_version("7.2.0", answer))
    with pytest.raises(client.ProtocolError) as refused:
        await caller.call("lease", "crm", "alice")
    assert refused.value.code == "version_mismatch"
    assert "7.2.0" in refused.value.detail
    assert "evergrant==7.*" in refused.value.repair
    assert len(evergrant.requests) == 1


@pytest.mark.parametrize("version", [VERSION, f"{SERVER_MAJOR}.99.0", "unreadable", ""])
async def test_the_same_major_version_and_an_unreadable_one_are_accepted(
    caller: Caller, evergrant: ScriptedEvergrant, version: str
):
    evergrant.script(ROUTE, of_version(version, lease()))
    assert (await caller.call("lease", "crm", "alice")).generation == 7


def test_client_and_server_have_one_major_version():
    ours = tomllib.loads(PROJECT.read_text())["project"]["version"]
    assert {VERSION.partition(".")[0], ours.partition(".")[0]} == {str(SERVER_MAJOR)}
