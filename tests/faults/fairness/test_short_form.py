"""The troubles of `make faults`, small: each happens, and no lease of another tenant fails (`make soak`).

Every run has their parts: tests/unit/bounded_concurrency, unit/api/leases/test_own_connections.py,
unit/audit/test_fair_leases.py and tests/workflows/test_one_tenants_backlog.py.
"""

from collections import Counter
from pathlib import Path

import pytest

from tests.faults.fairness.run import Judged, Leases, Round, run
from tests.faults.fairness.troubles import Sizes

SMALL = Sizes(greedy_clients=20, hanging=12, hanging_clients=12, webhooks=8, hot=20)


@pytest.mark.soak
async def test_no_fresh_lease_fails_in_another_tenants_trouble(tmp_path: Path):
    result = await run(tmp_path, seconds=1, sizes=SMALL, say=print, compares=False)
    assert [judged.name for judged in result.troubles if not judged.happened] == []
    assert [why for judged in result.troubles for why in judged.during.fresh.refusals] == []
    assert all(judged.during.fresh.latencies for judged in result.troubles)
    assert len(result.troubles) == 5


@pytest.mark.parametrize(
    ("during_ms", "slowdown", "is_violation"),
    [(70, 1.0, True), (50, 1.0, False), (70, 1.5, False), (120, 1.5, True), (200, 3.5, False)],
    ids=["more than doubled", "less", "the machine's part", "beyond the machine's part", "not compared"],
)
def test_a_p99_may_double_without_what_the_api_waited_for_a_core(
    during_ms: float, slowdown: float, is_violation: bool
):
    before, during = (
        Round(Leases([ms / 1000], slowdown=times), Leases())
        for ms, times in ((30, 1.0), (during_ms, slowdown))
    )
    judged = Judged("a trouble", before, during, Counter(calls=1), refreshes=False)
    assert bool(judged.wrongs) is is_violation


def test_a_failed_lease_is_a_violation_on_any_machine():
    before, during = Round(Leases(), Leases()), Round(Leases([], ["TimeoutError"], slowdown=9.0), Leases())
    assert Judged("a trouble", before, during, Counter(calls=1), refreshes=False).wrongs
