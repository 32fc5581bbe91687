"""`GET /v1/connections/{id}/history`: the events of the connection's workflow runs.

Histories hold no secret (docs/architecture.md, rule 1). Still, only the members listed here are shown.
"""

import base64
import binascii
import json
import logging
import re
from datetime import datetime
from typing import Any

from fastapi import APIRouter

from evergrant_server.access.context import ApiContext
from evergrant_server.api.connections.models import Timeline, TimelineEvent
from evergrant_server.api.http.call import Call
from evergrant_server.core.access import STORY_ACTIONS, Action
from evergrant_server.core.messages.names import connection_workflow_id
from evergrant_server.telemetry.logs import LogEvent, log_event

log = logging.getLogger("evergrant.api")

router = APIRouter(tags=["audit"])

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
_MAX_RUNS = 20
_PREFIX = "EVENT_TYPE_"
_OMITTED_TYPES = (
    "WORKFLOW_TASK_",
    "ACTIVITY_TASK_STARTED",
    "WORKFLOW_EXECUTION_UPDATE_ADMITTED",
    "UPSERT_WORKFLOW_SEARCH_ATTRIBUTES",
)


@router.get("/v1/connections/{connection_id}/history")
async def get_connection_history(connection_id: str, call: Call) -> Timeline:
    """The events of the connection's workflow: exported runs, then those that Temporal still has."""
    async with call.api.store.read() as tx:
        connection = await call.visible_connection(tx, connection_id, *STORY_ACTIONS, Action.CONNECT)
        exported = await tx.histories.of_connection(connection.tenant, connection.id)
    runs = {export.run_id: await call.api.link.open_events(export.events) for export in exported}
    live = await _add_live_runs(call.api, connection_workflow_id(connection.tenant, connection.id), runs)
    items = [event for run_id, events in runs.items() for event in _timeline_events(run_id, events)]
    items.sort(key=lambda event: event.at)  # stable: events of one moment keep their order
    return Timeline(items=items, live=live)


async def _add_live_runs(api: ApiContext, workflow_id: str, runs: dict[str, list[dict[str, Any]]]) -> bool:
    """Fetch the newest run and earlier ones that were not exported. False if Temporal fails."""
    run_id: str | None = None
    try:
        for _ in range(_MAX_RUNS):
            events = await api.link.history(workflow_id, run_id)
            started = _attributes(events[0]) if events else {}
            runs[started.get("originalExecutionRunId") or run_id or ""] = events
            run_id = started.get("continuedExecutionRunId")  # the run that continued as this one
            if not run_id or run_id in runs:
                return True
    except Exception as error:
        # Temporal is unavailable or has deleted the run: exported runs are still shown
        log_event(log, logging.INFO, LogEvent.HISTORY_UNREADABLE, type(error).__name__, object=workflow_id)
        return False
    return True


def _timeline_events(run_id: str, events: list[HistoryEvent]) -> list[TimelineEvent]:
    """The events to show, in order."""
    names = {
        str(event.get("eventId")): _attributes(event).get("activityType", {}).get("name") for event in events
    }
    shown = (_timeline_event(run_id, event, names) for event in events)
    return [event for event in shown if event is not None]


def _timeline_event(run_id: str, event: HistoryEvent, names: dict[str, str | None]) -> TimelineEvent | None:
    kind = str(event.get("eventType", "")).removeprefix(_PREFIX)
    if not kind or kind.startswith(_OMITTED_TYPES):
        return None
    attributes = _attributes(event)
    text, payloads = _describe(kind, attributes, names)
    detail = _shown_members(payloads)
    summary = _decode_payload(event.get("userMetadata", {}).get("summary"))
    if isinstance(summary, str):
        detail["summary"] = summary
    return TimelineEvent(
        at=_event_time(event), run_id=run_id, event_id=int(event.get("eventId", 0)), what=text, detail=detail
    )


def _describe(kind: str, attributes: HistoryEvent, names: dict[str, str | None]) -> tuple[str, Any]:
    """The text and the payloads to show; `names` of activities by the id of the event that scheduled them."""
    match kind:
        case "WORKFLOW_EXECUTION_STARTED":
            return "run started", attributes.get("input")
        case "WORKFLOW_EXECUTION_COMPLETED":
            return "run completed", attributes.get("result")
        case "WORKFLOW_EXECUTION_CONTINUED_AS_NEW":
            return "run continued as new", None
        case "WORKFLOW_EXECUTION_SIGNALED":
            return f"signal {attributes.get('signalName', '?')}", attributes.get("input")
        case "WORKFLOW_EXECUTION_UPDATE_ACCEPTED":
            request = attributes.get("acceptedRequest", {}).get("input", {})
            return f"update {request.get('name', '?')}", request.get("args")
        case "WORKFLOW_EXECUTION_UPDATE_COMPLETED":
            return "update completed", attributes.get("outcome", {}).get("success")
        case "ACTIVITY_TASK_SCHEDULED":
            name = attributes.get("activityType", {}).get("name", "?")
            return f"activity {name} scheduled", attributes.get("input")
        case "ACTIVITY_TASK_COMPLETED" | "ACTIVITY_TASK_FAILED" | "ACTIVITY_TASK_TIMED_OUT":
            name = names.get(str(attributes.get("scheduledEventId"))) or "?"
            ended = kind.removeprefix("ACTIVITY_TASK_").replace("_", " ").lower()
            failure = attributes.get("failure", {}).get("applicationFailureInfo", {}).get("type")
            return f"activity {name} {ended}{f': {failure}' if failure else ''}", attributes.get("result")
        case _:
            return kind.replace("_", " ").lower(), None


def _attributes(event: HistoryEvent) -> HistoryEvent:
    return next((value for name, value in event.items() if name.endswith("EventAttributes")), {})


def _shown_members(payloads: Any) -> dict[str, Any]:
    """The listed members of the first payload, with actor and trace id."""
    encoded = (payloads or {}).get("payloads") or [None]
    value = _decode_payload(encoded[0])
    if not isinstance(value, dict):
        return {}
    shown = {name: value[name] for name in _SHOWN_MEMBERS if value.get(name) is not None}
    context = value.get("context")
    if isinstance(context, dict):
        shown |= {name: context[name] for name in ("by", "trace_id") if context.get(name)}
    return shown


def _decode_payload(payload: Any) -> Any:
    if not isinstance(payload, dict) or not isinstance(payload.get("data"), str):
        return None
    try:
        return json.loads(base64.b64decode(payload["data"]))
    except (binascii.Error, ValueError):
        return None  # another encoding: the event is shown without its payload


def _event_time(event: HistoryEvent) -> datetime:
    """Temporal writes nanoseconds; a datetime has microseconds."""
    time = re.sub(r"(\.\d{6})\d+", r"\1", str(event.get("eventTime", "")))
    return datetime.fromisoformat(time)
