"""What makes `make faults` fail, each check with evidence that was made up for it."""

import random
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx2
import pytest

from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.integrations import Rotation
from tests.faults.harness.instrumentation.passages import Fault
from tests.faults.harness.provider import StrictProvider, Use
from tests.faults.harness.random_run.aftermath import Aftermath, audited, judge_calls, searched
from tests.faults.harness.random_run.plan import Injection, plan
from tests.faults.harness.random_run.readers import ReaderRecord, read
from tests.faults.harness.random_run.run import RunResult
from tests.faults.harness.report import run_report, table_report
from tests.faults.harness.table.case_run import Case, CaseRecord, Layout
from tests.faults.harness.table.cases import Table
from tests.faults.harness.table.judge import Judgement, Verdict
from tests.faults.harness.table.scenarios import SCENARIOS
from tests.faults.harness.table.table_run import TableResult

OF_AN_ANSWER, OF_A_WORKER = "answer lost", "worker killed"


# --- a walk of the table --------------------------------------------------------------------


def _case(point: str) -> Case:
    return Case(SCENARIOS[0], Fault(point=point, kind="die"), Layout.ONE, Rotation.STRICT)


def _judged(case: Case, verdict: Verdict = Verdict.KEPT, *, reached: bool = True) -> Judgement:
    nothing = cast(Any, None)
    return Judgement(CaseRecord(case, reached, False, True, nothing, nothing, []), verdict)


def _walk(*, without: int = 0, unreached: int = 0, of: int | None = None) -> TableResult:
    """Of a table with one case at each point; the first `without` of them are in no case, and the first
    `unreached` cases didn't get there. `of`: how many of the cases were walked."""
    table = Table([])
    table.cases = [_case(name) for name in sorted(table.path)[without:]]
    walked = TableResult(table, len(table.cases[:of]), 1.0)
    walked.judged = [
        _judged(case, reached=number >= unreached) for number, case in enumerate(table.cases[:of])
    ]
    return walked


def test_a_whole_walk_that_reached_every_point_is_good():
    walked = _walk()
    assert not walked.failed
    assert "points walked 100 %" in " ".join(table_report(walked).split())


def test_a_point_that_no_case_of_a_whole_walk_reached_makes_it_fail():
    walked = _walk(unreached=1)
    (point,) = walked.never
    assert walked.failed
    assert f"NEVER WALKED: {point}" in table_report(walked)
    assert "points walked 99 %" in " ".join(table_report(walked).split())


def test_a_point_that_is_in_no_case_makes_a_sample_fail_too():
    assert _walk(without=1, of=30).failed


@pytest.mark.parametrize(("unreached", "of"), [(0, 0), (30, 30)])
def test_a_walk_that_came_to_no_point_fails(unreached: int, of: int):
    assert _walk(unreached=unreached, of=of).failed


@pytest.mark.parametrize("verdict", [Verdict.LOST, Verdict.VIOLATION])
def test_a_walk_with_something_bad_fails(verdict: Verdict):
    walked = _walk()
    walked.judged[0].verdict = verdict
    assert walked.failed


# --- a random run ---------------------------------------------------------------------------


def _ran(*, leases: int = 1, refreshes: int = 1, active: int = 1, failed: tuple[str, ...] = ()) -> RunResult:
    after = Aftermath(refreshes=refreshes, real_states=Counter({LifecycleState.ACTIVE: active}))
    planned = [Injection(0.0, kind, 0, 1.0) for kind in (OF_AN_ANSWER, OF_A_WORKER, OF_A_WORKER)]
    return RunResult(
        planned, ReaderRecord(leases=leases), after, 1.0, [f"{it}: RuntimeError why: not" for it in failed]
    )


def test_a_run_in_which_everything_happened_is_good():
    assert not _ran().bad
    assert not _ran(failed=(OF_A_WORKER,)).bad  # the other one was killed


@pytest.mark.parametrize(
    ("ran", "told"),
    [
        (_ran(leases=0), "no lease was given"),
        (_ran(refreshes=0), "nothing was refreshed"),
        (_ran(active=0), "no connection at the real server is active"),
        (_ran(failed=(OF_AN_ANSWER,)), "answer lost: planned, and never injected"),
        (_ran(failed=(OF_A_WORKER, OF_A_WORKER)), "worker killed: planned, and never injected"),
    ],
)
def test_a_run_in_which_nothing_happened_fails(ran: RunResult, told: str):
    assert ran.missing == [told]
    assert ran.bad
    assert f"DIDN'T HAPPEN: {told}" in run_report(ran, None)


def _called(uses: int, *kinds: str, refreshes: int = 3000, unknown: int = 0) -> list[str]:
    after = Aftermath(refreshes=refreshes, uses=uses, unknown=["con"] * unknown)
    judge_calls(after, [Injection(0.0, kind, 0, 1.0) for kind in kinds])
    return after.violations


def test_calls_that_a_fault_or_a_lost_answer_explains_are_within_the_budget():
    assert _called(3000) == []
    assert _called(3002, OF_AN_ANSWER) == []
    assert _called(3004, OF_A_WORKER, unknown=1) == []


@pytest.mark.parametrize("kinds", [(), ("revocation", "clock jumps an hour ahead")])
def test_a_call_that_nothing_explains_is_beyond_the_budget(kinds: tuple[str, ...]):
    assert _called(3001, *kinds) == ["3001 calls for 3000 refreshes: beyond the retry budget"]


def test_a_run_of_ten_minutes_has_room_for_twice_its_calls_and_not_for_a_second_one_of_each_refresh():
    """3,005 refreshes, 3,081 calls and 31 `outcome_unknown`: the numbers of a real one."""
    kinds = [it.kind for it in plan(20261124, 600)]
    assert _called(3005 + 2 * 76, *kinds, refreshes=3005, unknown=31) == []
    assert len(_called(3005 + 5 * 76, *kinds, refreshes=3005, unknown=31)) == 1


async def _read(answers: int, revoked: dict[str, float]) -> ReaderRecord:
    """What a reader sees that leases one token of `con`."""

    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(answers, json={"access_token": "at", "generation": 2, "code": "revoked"})

    async def works(token: str) -> bool:
        return True

    seen = ReaderRecord(revoked=revoked)
    transport = httpx2.MockTransport(answer)
    async with httpx2.AsyncClient(base_url="http://api", transport=transport) as client:
        await read([client], ["con"], works, seen, cast(random.Random, _NoChance()), time.monotonic() + 0.01)
    return seen


class _NoChance:
    """It always chooses the first item and never waits."""

    def uniform(self, least: float, most: float) -> float:
        return least / 100

    def choice(self, among: list[Any]) -> Any:
        return among[0]


async def test_a_token_after_a_revocation_was_answered_is_a_violation():
    seen = await _read(200, {"con": 0.0})
    assert seen.violations == ["con: a token after it was revoked"]


async def test_a_token_before_a_revocation_was_answered_and_a_typed_no_after_it_are_none():
    assert (await _read(200, {"con": float("inf")})).violations == []
    assert (await _read(403, {"con": 0.0})).violations == []


async def test_an_answer_without_a_meaning_is_a_violation():
    seen = ReaderRecord()
    transport = httpx2.MockTransport(lambda request: httpx2.Response(502, text="bad gateway"))
    async with httpx2.AsyncClient(base_url="http://api", transport=transport) as client:
        chance = cast(random.Random, _NoChance())
        await read([client], ["con"], cast(Any, None), seen, chance, time.monotonic() + 0.01)
    assert seen.violations == ["con: 502 without a typed answer"]


class _Counts:
    """A ground that counts what a test says."""

    def __init__(self, leases: int, generations: int, refreshed: int) -> None:
        self._numbers = {"lease.issued": leases, "sum(generation": generations, "grant.refreshed": refreshed}

    async def count(self, query: str) -> int:
        return next((number for what, number in self._numbers.items() if what in query), 1)

    async def changes_without_a_record(self) -> list[str]:
        return []


async def _audit(leases: int, generations: int, refreshed: int) -> list[str]:
    after, ground = Aftermath(), _Counts(leases, generations, refreshed)
    await audited(cast(Any, SimpleNamespace(ground=ground)), ReaderRecord(leases=3), after)
    return after.violations


async def test_a_lease_or_a_generation_without_its_record_is_a_violation():
    assert await _audit(3, 5, 5) == []
    assert await _audit(4, 5, 5) == []  # one that no reader waited for any more
    assert await _audit(2, 5, 5) == ["3 leases left, 2 are in the audit log"]
    assert await _audit(3, 5, 4) == ["5 generations came, 4 are in the audit log"]


@pytest.mark.parametrize("where", ["logs/api.log", "temporal/temporal.db-wal"])
def test_a_secret_in_a_log_or_in_temporal_s_file_is_a_violation(tmp_path: Path, where: str):
    idp = StrictProvider(Rotation.STRICT, 60)
    token = idp.grant()["access_token"]
    place = tmp_path / where
    for name in ("logs", "temporal"):
        (tmp_path / name).mkdir()
    here = SimpleNamespace(idp=idp, folder=tmp_path, platform=SimpleNamespace(logs=tmp_path / "logs"))
    for text, seen in (("nothing", False), (f"got {token}", True)):
        place.write_text(text)
        after = Aftermath()
        searched(cast(Any, here), [], after)
        assert (f"{place.name} holds a secret: access token (raw)" in after.violations) is seen
        assert bool(after.violations) is seen


def _in_flight(second: str, came: float) -> int:
    idp = StrictProvider(Rotation.STRICT, 60)
    idp.uses = [
        Use("rt-1", "a", 1.0, acted=1.0, over=3.0, good=True),
        Use(second, "b", came, acted=came, over=came),
    ]
    return idp.in_flight_together()


def test_two_uses_of_one_token_before_the_first_is_over_are_in_flight_together():
    assert _in_flight("rt-1", 2.0) == 1
    assert _in_flight("rt-2", 2.0) == 0
    assert _in_flight("rt-1", 3.5) == 0
