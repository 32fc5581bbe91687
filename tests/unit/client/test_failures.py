"""Problem documents become the exception that names who repairs it; retries obey the server."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import evergrant as client
import pytest
from evergrant.errors import KINDS, EvergrantError, ReconnectNeeded
from evergrant.patience import RetryBudget

from evergrant_server.core.errors import FAILURES, ErrorCode, FailureKind
from tests.unit.client.conftest import Caller
from tests.unit.client.scripted_evergrant import LINK, ScriptedEvergrant, ScriptedResponse, lease, problem

ROUTE = "POST /v1/lease"


def test_every_kind_of_the_server_has_its_class():
    assert set(KINDS) == {kind.value for kind in FailureKind}


@pytest.mark.usefixtures("no_pauses")
@pytest.mark.parametrize("code", [code for code in ErrorCode if code is not ErrorCode.CONSENT_REQUIRED])
async def test_every_code_of_the_server_raises_its_kind(
    caller: Caller, evergrant: ScriptedEvergrant, code: ErrorCode
):
    rule = FAILURES[code]
    evergrant.script(ROUTE, problem(rule.status, rule.kind.value, code.value))
    with pytest.raises(EvergrantError) as failed:
        await caller.call("lease", "crm", "alice")
    error = failed.value
    assert type(error).__name__ == rule.kind.value
    assert (error.code, error.status, error.detail) == (code.value, rule.status, "said so")


async def test_a_reconnect_names_the_link_but_does_not_say_it(caller: Caller, evergrant: ScriptedEvergrant):
    answer = problem(409, "ReconnectNeeded", "grant_rejected", connect_url=LINK, connection_id="con_1")
    evergrant.script(ROUTE, answer)
    with pytest.raises(ReconnectNeeded) as failed:
        await caller.call("lease", "crm", "alice")
    assert (failed.value.connect_url, failed.value.connection_id) == (LINK, "con_1")
    assert LINK not in str(failed.value)
    assert LINK not in repr(failed.value)


@pytest.mark.parametrize(
    ("status", "expected"),
    [(403, client.Denied), (409, client.BadRequest), (424, client.ClientMisconfigured)],
)
async def test_a_kind_from_a_newer_server_is_read_by_its_status(
    caller: Caller, evergrant: ScriptedEvergrant, status: int, expected: type[EvergrantError]
):
    evergrant.script(ROUTE, problem(status, "SomethingNew", "new_code"))
    with pytest.raises(expected) as failed:
        await caller.call("lease", "crm", "alice")
    assert failed.value.code == "new_code"


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
async def test_another_server_is_named_as_one_and_not_quoted(
    caller: Caller, evergrant: ScriptedEvergrant, answer: ScriptedResponse
):
    evergrant.script(ROUTE, answer)
    with pytest.raises(client.ProtocolError) as failed:
        await caller.call("lease", "crm", "alice")
    assert "secret page" not in str(failed.value)
    assert len(evergrant.seen) == 1


async def test_retries_wait_as_long_as_the_server_asks(caller: Caller, evergrant: ScriptedEvergrant):
    busy = problem(503, "ProviderUnavailable", "provider_rate_limited", retry_after=0.4)
    evergrant.script(ROUTE, busy, lease())
    assert (await caller.call("lease", "crm", "alice")).generation == 7
    first, second = evergrant.seen
    assert second.at - first.at >= 0.4


async def test_a_wait_beyond_the_deadline_is_not_begun(caller: Caller, evergrant: ScriptedEvergrant):
    busy = problem(503, "ProviderUnavailable", "provider_rate_limited", headers={"retry-after": "3600"})
    evergrant.script(ROUTE, busy)
    with pytest.raises(client.ProviderUnavailable) as failed:
        await caller.call("lease", "crm", "alice")
    assert failed.value.retry_after == 3600
    assert len(evergrant.seen) == 1


async def test_retry_after_may_be_a_date(caller: Caller, evergrant: ScriptedEvergrant):
    """RFC 9110 section 10.2.3."""
    at = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    evergrant.script(ROUTE, ScriptedResponse(503, "busy", {"retry-after": at}, "text/plain"))
    with pytest.raises(client.Unreachable) as failed:
        await caller.call("lease", "crm", "alice")
    assert failed.value.retry_after == pytest.approx(3600, abs=30)


@pytest.mark.usefixtures("no_pauses")
async def test_a_dropped_connection_is_tried_again_with_the_same_key(
    caller: Caller, evergrant: ScriptedEvergrant
):
    evergrant.script("POST /v1/connections/con_1/refresh", ScriptedResponse(drop=True))
    with pytest.raises(client.Unreachable):
        await caller.call("refresh", "con_1")
    keys = [seen.headers["idempotency-key"] for seen in evergrant.seen]
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
async def test_only_what_time_may_repair_is_tried_again(
    caller: Caller, evergrant: ScriptedEvergrant, answer: ScriptedResponse, attempts: int
):
    evergrant.script(ROUTE, answer)
    with pytest.raises(EvergrantError):
        await caller.call("lease", "crm", "alice")
    assert len(evergrant.seen) == attempts


def test_the_deadline_covers_all_attempts():
    now = [0.0]
    patience = RetryBudget(timedelta(seconds=10), lambda: now[0])
    busy = client.ProviderUnavailable(retry_after=4)
    assert patience.should_retry(busy) == 4
    assert patience.should_retry(client.Unreachable()) is True
    now[0] = 6.5
    assert patience.should_retry(busy) is False
    now[0] = 9.9
    assert patience.should_retry(client.Unreachable()) is False
    assert patience.seconds_left() == pytest.approx(0.1)
