"""The troubles of `make faults`, small: each happens, and no lease of another tenant fails."""

from pathlib import Path

from tests.faults.fairness.run import run
from tests.faults.fairness.troubles import Sizes

SMALL = Sizes(greedy_clients=20, hanging=12, hanging_clients=12, webhooks=8, hot=20)


async def test_no_fresh_lease_fails_in_another_tenants_trouble(tmp_path: Path):
    result = await run(tmp_path, seconds=1, sizes=SMALL, say=print, compares=False)
    assert [judged.name for judged in result.troubles if not judged.happened] == []
    assert [why for judged in result.troubles for why in judged.during.fresh.refusals] == []
    assert all(judged.during.fresh.latencies for judged in result.troubles)
    assert len(result.troubles) == 5
