"""Temporal's history events as lines a person reads. Pure.

Histories hold no secret (docs/architecture.md, rule 1); only the members named here are shown all the same.
"""

import base64
import binascii
import json
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any

from evergrant_server.api.views import TimelineEvent

Event = dict[str, Any]

_SHOWN = (
    "state",
    "generation",
    "seen_generation",
    "expires_at",
    "failure",
    "problem",
    "retry_after",
    "revocation",
    "reason",
    "denied",
    "not_leased",
    "attempt_id",
    "consent_id",
    "generations",
)
_PREFIX = "EVENT_TYPE_"
_QUIET = (
    "WORKFLOW_TASK_",
    "ACTIVITY_TASK_STARTED",
    "WORKFLOW_EXECUTION_UPDATE_ADMITTED",
    "UPSERT_WORKFLOW_SEARCH_ATTRIBUTES",
)


def run_of(events: list[Event]) -> str | None:
    """The run these events are of, as their first event says."""
    return _started(events).get("originalExecutionRunId")


def previous_run(events: list[Event]) -> str | None:
    """The run that continued as this one, or None for a first run."""
    return _started(events).get("continuedExecutionRunId") or None


def events_of(run_id: str, events: list[Event]) -> list[TimelineEvent]:
    """The events worth reading, in order."""
    names = {str(it.get("eventId")): _activity_name(it) for it in events}
    return [line for event in events if (line := _line(run_id, event, names)) is not None]


def _line(run_id: str, event: Event, names: dict[str, str | None]) -> TimelineEvent | None:
    kind = str(event.get("eventType", "")).removeprefix(_PREFIX)
    if not kind or kind.startswith(_QUIET):
        return None
    attributes = _attributes(event)
    tell = _TELLERS.get(kind)
    what, payloads = tell(attributes, names) if tell else (kind.replace("_", " ").lower(), None)
    detail = _facts(payloads)
    summary = _decoded(event.get("userMetadata", {}).get("summary"))
    if isinstance(summary, str):
        detail["summary"] = summary
    return TimelineEvent(
        at=_moment(event), run_id=run_id, event_id=int(event.get("eventId", 0)), what=what, detail=detail
    )


_Told = tuple[str, Any]


def _activity(suffix: str, payload: str | None) -> Callable[[Event, dict[str, str | None]], _Told]:
    def tell(it: Event, names: dict[str, str | None]) -> _Told:
        name = names.get(str(it.get("scheduledEventId"))) or it.get("activityType", {}).get("name", "?")
        return f"activity {name} {suffix}", it.get(payload) if payload else None

    return tell


def _failed(it: Event, names: dict[str, str | None]) -> _Told:
    what, _ = _activity("failed", None)(it, names)
    kind = it.get("failure", {}).get("applicationFailureInfo", {}).get("type")
    return (f"{what}: {kind}" if kind else what), None


_TELLERS: dict[str, Callable[[Event, dict[str, str | None]], _Told]] = {
    "WORKFLOW_EXECUTION_STARTED": lambda it, _: ("run began", it.get("input")),
    "WORKFLOW_EXECUTION_COMPLETED": lambda it, _: ("run ended", it.get("result")),
    "WORKFLOW_EXECUTION_CONTINUED_AS_NEW": lambda it, _: ("run continued as a new one", None),
    "WORKFLOW_EXECUTION_SIGNALED": lambda it, _: (f"signal {it.get('signalName', '?')}", it.get("input")),
    "WORKFLOW_EXECUTION_UPDATE_ACCEPTED": lambda it, _: (
        f"update {_update(it).get('name', '?')}",
        _update(it).get("args"),
    ),
    "WORKFLOW_EXECUTION_UPDATE_COMPLETED": lambda it, _: (
        "update answered",
        it.get("outcome", {}).get("success"),
    ),
    "ACTIVITY_TASK_SCHEDULED": lambda it, _: (
        f"activity {it.get('activityType', {}).get('name', '?')} began",
        it.get("input"),
    ),
    "ACTIVITY_TASK_COMPLETED": _activity("ended", "result"),
    "ACTIVITY_TASK_FAILED": _failed,
    "ACTIVITY_TASK_TIMED_OUT": _activity("timed out", None),
    "TIMER_STARTED": lambda it, _: ("waits", None),
    "TIMER_FIRED": lambda it, _: ("time came", None),
    "TIMER_CANCELED": lambda it, _: ("stopped waiting", None),
}


def _update(it: Event) -> Event:
    return it.get("acceptedRequest", {}).get("input", {})


def _activity_name(event: Event) -> str | None:
    return _attributes(event).get("activityType", {}).get("name")


def _attributes(event: Event) -> Event:
    return next((value for name, value in event.items() if name.endswith("EventAttributes")), {})


def _started(events: list[Event]) -> Event:
    return events[0].get("workflowExecutionStartedEventAttributes", {}) if events else {}


def _facts(payloads: Any) -> dict[str, Any]:
    """The named members of the first payload, with who asked."""
    found = (payloads or {}).get("payloads") or [None]
    value = _decoded(found[0])
    if not isinstance(value, dict):
        return {}
    facts = {name: value[name] for name in _SHOWN if value.get(name) is not None}
    asked = value.get("asked")
    if isinstance(asked, dict):
        facts |= {name: asked[name] for name in ("by", "trace_id") if asked.get(name)}
    return facts


def _decoded(payload: Any) -> Any:
    if not isinstance(payload, dict) or not isinstance(payload.get("data"), str):
        return None
    try:
        return json.loads(base64.b64decode(payload["data"]))
    except (binascii.Error, ValueError):
        return None  # another encoding: the event is shown without its content


def _moment(event: Event) -> datetime:
    """Temporal writes nanoseconds; six digits are what a datetime has."""
    said = re.sub(r"(\.\d{6})\d+", r"\1", str(event.get("eventTime", "")))
    return datetime.fromisoformat(said)
