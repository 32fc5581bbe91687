"""The merge of audit records and workflow events: every one on one page, and leases told together."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

from evergrant_server.console.story import tell

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def record(second: int, action: str = "grant.refreshed", by: str = "app:jobs") -> Any:
    return SimpleNamespace(at=NOW + timedelta(seconds=second), action=action, by=by, detail={})


def event(second: float) -> Any:
    return SimpleNamespace(
        at=NOW + timedelta(seconds=second), what=f"event {second}", detail={"by": "app:jobs"}
    )


def test_pages_hold_each_record_and_each_event_once_the_newest_first():
    records = [record(second) for second in range(20)]
    events = [event(second + 0.5) for second in range(-3, 25)]
    told, left, until = [], records[::-1], None
    while left:
        page, left = left[:7], left[7:]
        told += tell(page, events, until=until, is_last=not left).lines
        until = page[-1].at
    assert [it.at for it in told] == sorted((it.at for it in [*records, *events]), reverse=True)


def test_successive_leases_of_one_app_are_one_line():
    lease, mine = "lease.issued", "app:jobs"
    records = [record(9, lease), record(8, lease), record(7), record(6, lease), record(5, lease, "app:b")]
    lines = tell(records, (), until=None, is_last=True).lines
    assert [(it.text, it.by, it.count) for it in lines] == [
        (lease, mine, 2), ("grant.refreshed", mine, 1), (lease, mine, 1), (lease, "app:b", 1)
    ]  # fmt: skip
    assert lines[0].since == records[1].at


def test_a_runs_whole_state_is_left_to_the_temporal_ui():
    begun = event(1)
    begun.detail |= {"state": {"generation": 1}, "summary": "crm"}
    (line,) = tell([], [begun], until=None, is_last=True).lines
    assert line.detail == {"summary": "crm"}


def test_a_long_history_is_cut_and_says_so():
    story = tell([], [event(second) for second in range(150)], until=None, is_last=True)
    assert (len(story.lines), story.omitted) == (100, 50)
    assert story.lines[0].text == "event 149"
