"""The short form of the proof: one fail-over of each kind of replication, few callers. And what it judges."""

from pathlib import Path

import pytest

from tests.faults.failover.load import Notes
from tests.faults.failover.place import Size
from tests.faults.failover.run import FailOver, Result, Trouble, prove


@pytest.mark.soak
async def test_leases_come_back_after_a_promotion_and_nothing_is_lost(tmp_path: Path):
    lines: list[str] = []
    size = Size(leasing=10, refreshing=3, pause_s=0.2, seed=1)
    result = await prove(tmp_path, size, 2, synchronous=True, networks=False, say=lines.append)
    assert result.wrong == [], lines
    assert {each.trouble for each in result.fail_overs} == {Trouble.KILL, Trouble.PAUSE}


def test_each_promise_can_be_broken():
    notes = Notes(refreshes=[1.0])
    good = FailOver(Trouble.KILL, 0.0, first_lease_s=1.0)
    assert Result(True, [good], notes).wrong == []
    late, split = (
        FailOver(Trouble.KILL, 0.0),
        FailOver(Trouble.PAUSE, 0.0, first_lease_s=1.0, replaced_writes=1),
    )
    forgetful = FailOver(Trouble.KILL, 0.0, first_lease_s=1.0, missing=2)
    for broken in (
        Result(True, [late], notes),
        Result(False, [split], notes),
        Result(True, [forgetful], notes),
        Result(True, [good], notes, lost=["con_1"]),
        Result(True, [good], notes, double_sends=1),
        Result(True, [good]),
        Result(True, [good], Notes(refreshes=[1.0], failed=["KeyError()"])),
    ):
        assert len(broken.wrong) == 1
    assert Result(False, [forgetful], notes, lost=["con_1"]).wrong == [], "told, not promised"
