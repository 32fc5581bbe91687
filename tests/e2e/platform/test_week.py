"""The week of an admin: `python -m tests.e2e.week`, and its list."""

from pathlib import Path

import pytest

from tests.e2e.week.__main__ import line_of, week
from tests.e2e.week.office import TASKS


def test_the_list_is_whole():
    assert sorted(TASKS) == list(range(1, 31))
    assert len({title for title, _ in TASKS.values()}) == len(TASKS)


@pytest.mark.soak
@pytest.mark.parametrize("scripts", [True, False])
async def test_thirty_tasks_are_done_by_what_pages_say(tmp_path: Path, scripts: bool):
    outcomes = await week(tmp_path, None, scripts=scripts)
    failed = [line_of(outcome) for outcome in outcomes if outcome.failure or outcome.violations]
    assert failed == []
