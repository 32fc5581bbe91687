"""`report_refused`: one report for each generation, its result, and the cache afterwards."""

import asyncio
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from evergrant import Evergrant, ProviderUnavailable

from tests.fakes.patience import PATIENCE_S
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


def generation(number: int) -> ScriptedResponse:
    return ScriptedResponse(200, connection(generation=number))


def endless(number: int, **changes: Any) -> ScriptedResponse:
    """A lease of a generation that never expires."""
    return lease(expires_at=None, generation=number, **changes)


def busy(seconds: float) -> ScriptedResponse:
    return problem(503, "ProviderUnavailable", "refresh_pending", retry_after=seconds)


async def test_the_refused_token_leaves_the_cache(caller: Caller, evergrant: ScriptedEvergrant):
    evergrant.script(LEASE, endless(7), endless(8))
    evergrant.script(REPORT, generation(8))
    assert (await caller.call("lease", "crm", "alice")).generation == 7
    await caller.call("report_refused", "con_1", 7)
    assert (await caller.call("lease", "crm", "alice")).generation == 8


async def test_a_newer_token_stays_in_the_cache(caller: Caller, evergrant: ScriptedEvergrant):
    evergrant.script(LEASE, endless(8))
    evergrant.script(REPORT, generation(8))
    await caller.call("lease", "crm", "alice")
    assert (await caller.call("report_refused", "con_1", 7)).generation == 8
    await caller.call("lease", "crm", "alice")
    assert evergrant.count(LEASE) == 1


async def test_a_lease_during_the_report_is_not_cached(caller: Caller, evergrant: ScriptedEvergrant):
    evergrant.script(LEASE, endless(7), endless(8))
    answers = threading.Event()
    evergrant.script(REPORT, replace(generation(8), held=answers))
    report = asyncio.create_task(caller.call("report_refused", "con_1", 7))
    async with asyncio.timeout(PATIENCE_S):
        while not evergrant.count(REPORT):
            await asyncio.sleep(0.01)
    assert (await caller.call("lease", "crm", "alice")).generation == 7
    assert not report.done()
    answers.set()
    assert (await report).generation == 8
    assert (await caller.call("lease", "crm", "alice")).generation == 8


async def test_a_failed_report_is_raised_can_be_repeated_and_empties_the_cache(
    caller: Caller, evergrant: ScriptedEvergrant
):
    evergrant.script(LEASE, endless(7))
    evergrant.script(REPORT, busy(400))
    await caller.call("lease", "crm", "alice")
    for _ in range(2):
        with pytest.raises(ProviderUnavailable) as failed:
            await caller.call("report_refused", "con_1", 7)
        assert (failed.value.code, failed.value.retry_after) == ("refresh_pending", 400)
    assert evergrant.count(REPORT) == 2
    await caller.call("lease", "crm", "alice")
    assert evergrant.count(LEASE) == 2


class Unauthorized(Exception):
    """Raised by the guide's SDK for a 401."""


def guide_example(accepts: Callable[[str], bool]) -> Callable[[Evergrant], Any]:
    """The guide's function, with an SDK whose API accepts some tokens."""

    class Crm:
        def __init__(self, token: str) -> None:
            self._token = token

        def contacts(self) -> list[str]:
            if not accepts(self._token):
                raise Unauthorized
            return ["bob"]

    section = GUIDE.read_text(encoding="utf-8").partition("## A provider's own SDK")[2]
    program = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert program is not None
    names: dict[str, Any] = {"sdk": SimpleNamespace(Crm=Crm, Unauthorized=Unauthorized)}
    exec(program[1], names)
    return names["contacts"]


def test_the_guides_example_takes_the_newer_token(evergrant: ScriptedEvergrant):
    evergrant.script(LEASE, endless(7), endless(8, access_token="newer"))
    evergrant.script(REPORT, generation(8))
    with Evergrant(evergrant.url, "key") as client:
        assert guide_example(lambda token: token == "newer")(client) == ["bob"]
        assert guide_example(lambda token: True)(client) == ["bob"]
    assert evergrant.count(REPORT) == 1


def test_the_guides_example_ends_when_no_newer_token_exists(evergrant: ScriptedEvergrant):
    evergrant.script(LEASE, endless(7))
    evergrant.script(REPORT, generation(7))
    with Evergrant(evergrant.url, "key") as client:
        tried: list[str] = []
        with pytest.raises(Unauthorized):
            guide_example(lambda token: bool(tried.append(token)))(client)
        assert tried == [TOKEN]
        evergrant.script(REPORT, busy(600))
        with pytest.raises(ProviderUnavailable):
            guide_example(lambda token: False)(client)
