"""`report_refused`: what is said of a token that got a 401, who says it, and what came of it."""

import asyncio
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from evergrant import AsyncEvergrant, Connection, Evergrant, EvergrantError, ProviderUnavailable

from tests.unit.client.conftest import Caller
from tests.unit.client.scripted_evergrant import (
    TOKEN,
    ScriptedEvergrant,
    ScriptedResponse,
    connection,
    lease,
    problem,
)

LEASE = "POST /v1/lease"
REPORT = "POST /v1/connections/con_1/refresh"
GUIDE = Path(__file__).parents[3] / "docs/guide/python.md"


def counted(evergrant: ScriptedEvergrant, route: str) -> int:
    return [f"{it.method} {it.path}" for it in evergrant.seen].count(route)


def generation(number: int) -> ScriptedResponse:
    return ScriptedResponse(200, connection(generation=number))


def busy(seconds: float) -> ScriptedResponse:
    return problem(503, "ProviderUnavailable", "refresh_pending", retry_after=seconds)


async def seen(evergrant: ScriptedEvergrant, route: str) -> None:
    async with asyncio.timeout(20):
        while not counted(evergrant, route):
            await asyncio.sleep(0.01)


async def test_a_report_names_the_generation_and_why(caller: Caller, evergrant: ScriptedEvergrant):
    evergrant.script(REPORT, generation(8))
    answer = await caller.call("report_refused", "con_1", 7)
    assert isinstance(answer, Connection)
    assert answer.generation == 8
    (sent,) = evergrant.seen
    assert sent.body == {"generation": 7, "reason": "unauthorized"}
    assert sent.headers["idempotency-key"]


async def test_the_refused_token_is_not_served_again(caller: Caller, evergrant: ScriptedEvergrant):
    evergrant.script(LEASE, lease(expires_at=None), lease(expires_at=None, generation=8))
    evergrant.script(REPORT, generation(8))
    assert (await caller.call("lease", "crm", "alice")).generation == 7
    await caller.call("report_refused", "con_1", 7)
    assert (await caller.call("lease", "crm", "alice")).generation == 8


async def test_what_is_newer_stays_in_the_cache(caller: Caller, evergrant: ScriptedEvergrant):
    evergrant.script(LEASE, lease(expires_at=None, generation=8))
    evergrant.script(REPORT, generation(8))
    await caller.call("lease", "crm", "alice")
    assert (await caller.call("report_refused", "con_1", 7)).generation == 8
    await caller.call("lease", "crm", "alice")
    assert counted(evergrant, LEASE) == 1


async def test_what_was_leased_while_the_report_was_under_way_is_not_kept(
    caller: Caller, evergrant: ScriptedEvergrant
):
    old, new = (lease(expires_at=None, generation=it) for it in (7, 8))
    evergrant.script(LEASE, old, new)
    evergrant.script(REPORT, busy(2), generation(8))
    report = asyncio.create_task(caller.call("report_refused", "con_1", 7))
    await seen(evergrant, REPORT)
    assert (await caller.call("lease", "crm", "alice")).generation == 7
    assert not report.done()
    assert (await report).generation == 8
    assert (await caller.call("lease", "crm", "alice")).generation == 8


async def test_many_who_report_at_once_send_one_report(caller: Caller, evergrant: ScriptedEvergrant):
    """The server keeps the first one waiting until all of them have asked."""
    evergrant.script(REPORT, busy(1), generation(8))
    answers = await asyncio.gather(*(caller.call("report_refused", "con_1", 7) for _ in range(4)))
    assert [it.generation for it in answers] == [8] * 4
    assert len({it.headers["idempotency-key"] for it in evergrant.seen}) == 1
    assert counted(evergrant, REPORT) == 2  # one call, its first attempt refused


async def test_nothing_newer_is_an_answer(caller: Caller, evergrant: ScriptedEvergrant):
    evergrant.script(REPORT, generation(7))
    assert (await caller.call("report_refused", "con_1", 7)).generation == 7


@pytest.mark.parametrize(
    ("answer", "code", "retry_after"),
    [
        (busy(40), "refresh_pending", 40),
        (problem(409, "ReconnectNeeded", "grant_rejected", connection_id="con_1"), "grant_rejected", None),
        (problem(404, "BadRequest", "not_found"), "not_found", None),
    ],
)
async def test_why_there_is_no_newer_token_is_raised_and_the_old_one_forgotten(
    caller: Caller,
    evergrant: ScriptedEvergrant,
    answer: ScriptedResponse,
    code: str,
    retry_after: float | None,
):
    evergrant.script(LEASE, lease(expires_at=None))
    evergrant.script(REPORT, answer)
    await caller.call("lease", "crm", "alice")
    for _ in range(2):  # a report that failed was none: the next one is sent as well
        with pytest.raises(EvergrantError) as failed:
            await caller.call("report_refused", "con_1", 7)
        error = failed.value
        assert (type(error).__name__, error.code) == (answer.body["kind"], code)
        assert error.retry_after == retry_after
    assert counted(evergrant, REPORT) == 2
    await caller.call("lease", "crm", "alice")
    assert counted(evergrant, LEASE) == 2


async def test_what_was_reported_by_hand_auth_does_not_report_again(
    caller: Caller, evergrant: ScriptedEvergrant
):
    """The scripted server is the resource too: it refuses every token."""
    evergrant.script(LEASE, lease(expires_at=None))
    evergrant.script(REPORT, generation(7))
    evergrant.script("GET /me", ScriptedResponse(401, {}))
    await caller.call("report_refused", "con_1", 7)
    assert await status_of(caller.client, evergrant.url) == 401
    assert counted(evergrant, REPORT) == 1


async def status_of(client: Evergrant | AsyncEvergrant, origin: str) -> int:
    """Of a request through the client's own auth."""
    if isinstance(client, AsyncEvergrant):
        auth = client.auth("crm", "alice", origins=origin)
        async with httpx2.AsyncClient(auth=auth, trust_env=False) as http:
            return (await http.get(f"{origin}/me")).status_code
    with httpx2.Client(auth=client.auth("crm", "alice", origins=origin), trust_env=False) as blocking:
        return (await asyncio.to_thread(blocking.get, f"{origin}/me")).status_code


class Unauthorized(Exception):
    """What the guide's SDK raises for a 401."""


def the_guides(takes: Callable[[str], bool]) -> Callable[[Evergrant], Any]:
    """The guide's function, with an SDK whose API takes some tokens."""

    class Crm:
        def __init__(self, token: str) -> None:
            self._token = token

        def contacts(self) -> list[str]:
            if not takes(self._token):
                raise Unauthorized
            return ["bob"]

    section = GUIDE.read_text(encoding="utf-8").partition("## A provider's own SDK")[2]
    program = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert program is not None
    names: dict[str, Any] = {"sdk": SimpleNamespace(Crm=Crm, Unauthorized=Unauthorized)}
    exec(program[1], names)
    return names["contacts"]


async def test_the_guides_example_takes_the_newer_token(evergrant: ScriptedEvergrant):
    newer = lease(access_token="newer", expires_at=None, generation=8)
    evergrant.script(LEASE, lease(expires_at=None), newer)
    evergrant.script(REPORT, generation(8))
    with Evergrant(evergrant.url, "key") as client:
        assert await asyncio.to_thread(the_guides(lambda token: token == "newer"), client) == ["bob"]
        assert counted(evergrant, REPORT) == 1
        assert await asyncio.to_thread(the_guides(lambda token: True), client) == ["bob"]
    assert counted(evergrant, REPORT) == 1


async def test_the_guides_example_ends_where_nothing_newer_helps(evergrant: ScriptedEvergrant):
    evergrant.script(LEASE, lease(expires_at=None))
    evergrant.script(REPORT, generation(7))
    with Evergrant(evergrant.url, "key", deadline=timedelta(seconds=5)) as client:
        tried: list[str] = []
        with pytest.raises(Unauthorized):
            await asyncio.to_thread(the_guides(lambda token: bool(tried.append(token))), client)
        assert tried == [TOKEN]
        evergrant.script(REPORT, busy(60))
        with pytest.raises(ProviderUnavailable):
            await asyncio.to_thread(the_guides(lambda token: False), client)
