"""The drill's short form (`python -m tests.faults.region`): one region is killed, the other takes over."""

from pathlib import Path

import pytest

from tests.faults.region.drill import HEAD, drill, row
from tests.faults.region.place import Case


@pytest.mark.soak
async def test_a_lost_region_loses_no_connection(tmp_path: Path):
    case = Case(seed=2, connections=12, load_s=3.0, leasing=2, refreshing=2, durability="region")
    outcome = await drill(tmp_path, case)
    assert outcome.wrong == [], f"{HEAD}\n{row(case, outcome)}"
