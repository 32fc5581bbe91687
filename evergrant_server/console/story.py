"""One connection's story: audit records and the events of its workflow, merged, the newest first."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple, Protocol

_MOST_EVENTS = 100  # of the workflow, beside a page of audit records
_LEASED = "lease.issued"
_BAD = ("fail", "refused", "denied", "expired", "mismatch", "needs_reauth", "timed out", "broken")
_GOOD = ("granted", "installed", "refreshed", "recovered", "confirmed", "issued", "created")


class _Record(Protocol):
    at: datetime
    action: str
    by: str
    detail: dict[str, Any]


class _Event(Protocol):
    at: datetime
    what: str
    detail: dict[str, Any]


class Line(NamedTuple):
    """A line of the story.

    `source` is `audit` or `workflow`; `count` of leases of one app that are told together, the first of them
    at `since`.
    """

    at: datetime
    source: str
    text: str
    by: str
    detail: dict[str, Any]
    tone: str
    count: int = 1
    since: datetime | None = None


class Story(NamedTuple):
    """A page of the story. `omitted` counts events of the workflow that this page leaves out."""

    lines: list[Line]
    omitted: int


def tell(
    records: Sequence[_Record], events: Iterable[_Event], *, until: datetime | None, is_last: bool
) -> Story:
    """Merge a page of audit records, the newest first, with the events of its time.

    `until`: the moment of the page before, None on the first page. `is_last`: older events belong to it too.
    """
    since = None if is_last or not records else records[-1].at
    here = [
        event
        for event in events
        if (until is None or event.at < until) and (since is None or event.at >= since)
    ]
    here.sort(key=lambda event: event.at, reverse=True)
    lines = _leases_together(
        _line(record.at, "audit", record.action, record.by, record.detail) for record in records
    )
    for event in here[:_MOST_EVENTS]:
        plain = ((name, value) for name, value in event.detail.items() if name not in ("by", "trace_id"))
        detail = {name: value for name, value in plain if not isinstance(value, dict)}  # a run's whole state
        lines.append(_line(event.at, "workflow", event.what, str(event.detail.get("by", "")), detail))
    lines.sort(key=lambda line: line.at, reverse=True)
    return Story(lines, max(0, len(here) - _MOST_EVENTS))


def _line(at: datetime, source: str, text: str, by: str, detail: dict[str, Any]) -> Line:
    bad, good = any(word in text for word in _BAD), any(word in text for word in _GOOD)
    return Line(at, source, text, by, detail, "bad" if bad else "good" if good else "plain")


def _leases_together(lines: Iterable[Line]) -> list[Line]:
    """Successive leases of one app as one line."""
    told: list[Line] = []
    for line in lines:
        last = told[-1] if told else None
        if last is not None and line.text == last.text == _LEASED and line.by == last.by:
            told[-1] = last._replace(count=last.count + 1, since=line.at)
        else:
            told.append(line)
    return told
