"""The short form of `make faults`, and the proof that it can fail."""

from collections.abc import Sequence
from pathlib import Path

from evergrant_server.core.provider import Rotation
from tests.faults.harness.chaos import run
from tests.faults.harness.judge import Verdict
from tests.faults.harness.passages import AFTER
from tests.faults.harness.plan import plan, told
from tests.faults.harness.scenarios import JOURNALLED, SCENARIOS
from tests.faults.harness.table import Table
from tests.faults.harness.walk import Case, Layout
from tests.faults.harness.walking import Choose, Walked, walk_table

REFRESH = SCENARIOS[:1]
CASES, SEED = 60, 1


async def test_the_table_has_every_await_of_the_path_and_a_sample_of_it_loses_nothing(tmp_path: Path):
    walked = await walk_table(tmp_path, lambda table: table.sample(CASES, SEED))
    assert walked.table.never == []
    assert walked.table.coverage == 100
    assert [str(it) for it in walked.bad] == []
    assert walked.verdicts[Verdict.KEPT] > CASES / 3


def _killed_with_an_answer_in_the_journal(table: Table) -> Sequence[Case]:
    return [
        case
        for case in table.cases
        if case.fault is not None
        and (case.fault.point, case.fault.side, case.fault.kind) == (JOURNALLED, AFTER, "die")
        and (case.layout, case.rotation) == (Layout.ONE, Rotation.STRICT)
    ]


def _revoked_while_the_answer_is_committed(table: Table) -> Sequence[Case]:
    return [
        case
        for case in table.cases
        if case.revoked and case.fault is not None and "_install.install#" in case.fault.point
    ]


async def _walk(folder: Path, choose: Choose, *broken: str) -> Walked:
    walked = await walk_table(folder, choose, broken=broken, scenarios=REFRESH)
    assert walked.cases > 0
    return walked


async def test_a_build_without_a_journal_loses_connections(tmp_path: Path):
    whole = await _walk(tmp_path, _killed_with_an_answer_in_the_journal)
    broken = await _walk(tmp_path, _killed_with_an_answer_in_the_journal, "no-journal")
    assert [str(it) for it in whole.bad] == []
    assert broken.verdicts[Verdict.LOST] == broken.cases


async def test_a_build_without_compare_and_set_undoes_a_revocation(tmp_path: Path):
    whole = await _walk(tmp_path, _revoked_while_the_answer_is_committed)
    broken = await _walk(tmp_path, _revoked_while_the_answer_is_committed, "no-compare-and-set")
    assert [str(it) for it in whole.bad] == []
    assert any("revoking became active" in str(it) for it in broken.bad)


async def test_a_random_run_loses_nothing_and_gives_every_reader_a_typed_answer(tmp_path: Path):
    ran = await run(tmp_path, 25, SEED, readers=40, connections=40)
    assert ran.violations == []
    assert ran.aftermath.lost == []
    assert ran.not_injected == []
    assert ran.seen.leases > 0
    assert ran.aftermath.refreshes > 0


def test_a_seed_draws_the_same_plan_with_every_kind_of_fault():
    assert plan(SEED, 120) == plan(SEED, 120)
    assert plan(SEED, 120) != plan(SEED + 1, 120)
    assert len(told(plan(SEED, 25))) == 13
