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

from evergrant_server.api.http.responses import TimelineEvent

HistoryEvent = dict[str, Any]

_SHOWN_MEMBERS = (
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
_OMITTED_TYPES = (
    "WORKFLOW_TASK_",
    "ACTIVITY_TASK_STARTED",
    "WORKFLOW_EXECUTION_UPDATE_ADMITTED",
    "UPSERT_WORKFLOW_SEARCH_ATTRIBUTES",
)


def run_id_of(events: list[HistoryEvent]) -> str | None:
    """The run these events are of, as their first event says."""
    return _started_attributes(events).get("originalExecutionRunId")


def previous_run_id(events: list[HistoryEvent]) -> str | None:
    """The run that continued as this one, or None for a first run."""
    return _started_attributes(events).get("continuedExecutionRunId") or None


def timeline_events(run_id: str, events: list[HistoryEvent]) -> list[TimelineEvent]:
    """The events worth reading, in order."""
    names = {str(it.get("eventId")): _activity_name(it) for it in events}
    return [line for event in events if (line := _timeline_event(run_id, event, names)) is not None]


def _timeline_event(run_id: str, event: HistoryEvent, names: dict[str, str | None]) -> TimelineEvent | None:
    kind = str(event.get("eventType", "")).removeprefix(_PREFIX)
    if not kind or kind.startswith(_OMITTED_TYPES):
        return None
    attributes = _attributes(event)
    tell = _DESCRIBERS.get(kind)
    what, payloads = tell(attributes, names) if tell else (kind.replace("_", " ").lower(), None)
    detail = _shown_members(payloads)
    summary = _decode_payload(event.get("userMetadata", {}).get("summary"))
    if isinstance(summary, str):
        detail["summary"] = summary
    return TimelineEvent(
        at=_event_time(event), run_id=run_id, event_id=int(event.get("eventId", 0)), what=what, detail=detail
    )


_Described = tuple[str, Any]


def _activity(
    suffix: str, payload: str | None
) -> Callable[[HistoryEvent, dict[str, str | None]], _Described]:
    def tell(it: HistoryEvent, names: dict[str, str | None]) -> _Described:
        name = names.get(str(it.get("scheduledEventId"))) or it.get("activityType", {}).get("name", "?")
        return f"activity {name} {suffix}", it.get(payload) if payload else None

    return tell


def _failed(it: HistoryEvent, names: dict[str, str | None]) -> _Described:
    what, _ = _activity("failed", None)(it, names)
    kind = it.get("failure", {}).get("applicationFailureInfo", {}).get("type")
    return (f"{what}: {kind}" if kind else what), None


_DESCRIBERS: dict[str, Callable[[HistoryEvent, dict[str, str | None]], _Described]] = {
    "WORKFLOW_EXECUTION_STARTED": lambda it, _: ("run began", it.get("input")),
    "WORKFLOW_EXECUTION_COMPLETED": lambda it, _: ("run ended", it.get("result")),
    "WORKFLOW_EXECUTION_CONTINUED_AS_NEW": lambda it, _: ("run continued as a new one", None),
    "WORKFLOW_EXECUTION_SIGNALED": lambda it, _: (f"signal {it.get('signalName', '?')}", it.get("input")),
    "WORKFLOW_EXECUTION_UPDATE_ACCEPTED": lambda it, _: (
        f"update {_update_input(it).get('name', '?')}",
        _update_input(it).get("args"),
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


def _update_input(it: HistoryEvent) -> HistoryEvent:
    return it.get("acceptedRequest", {}).get("input", {})


def _activity_name(event: HistoryEvent) -> str | None:
    return _attributes(event).get("activityType", {}).get("name")


def _attributes(event: HistoryEvent) -> HistoryEvent:
    return next((value for name, value in event.items() if name.endswith("EventAttributes")), {})


def _started_attributes(events: list[HistoryEvent]) -> HistoryEvent:
    return events[0].get("workflowExecutionStartedEventAttributes", {}) if events else {}


def _shown_members(payloads: Any) -> dict[str, Any]:
    """The named members of the first payload, with who asked."""
    found = (payloads or {}).get("payloads") or [None]
    value = _decode_payload(found[0])
    if not isinstance(value, dict):
        return {}
    facts = {name: value[name] for name in _SHOWN_MEMBERS if value.get(name) is not None}
    asked = value.get("context")
    if isinstance(asked, dict):
        facts |= {name: asked[name] for name in ("by", "trace_id") if asked.get(name)}
    return facts


def _decode_payload(payload: Any) -> Any:
    if not isinstance(payload, dict) or not isinstance(payload.get("data"), str):
        return None
    try:
        return json.loads(base64.b64decode(payload["data"]))
    except (binascii.Error, ValueError):
        return None  # another encoding: the event is shown without its content


def _event_time(event: HistoryEvent) -> datetime:
    """Temporal writes nanoseconds; six digits are what a datetime has."""
    said = re.sub(r"(\.\d{6})\d+", r"\1", str(event.get("eventTime", "")))
    return datetime.fromisoformat(said)
