"""Reads Temporal's histories: a connection's timeline, and a search for secrets."""

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from temporalio.api.common.v1 import Payload
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import Client, WorkflowHistory, WorkflowHistoryEventFilterType

_PREFIX = "EVENT_TYPE_"
_SEALED = b"binary/evergrant-sealed"

JsonPayload = dict[str, Any]
Decode = Callable[[list[JsonPayload]], Awaitable[list[JsonPayload]]]  # Temporal's remote codec


@dataclass(frozen=True)
class TimelineEntry:
    """One line of a timeline."""

    at: datetime
    what: str
    detail: str


async def opened_events(
    client: Client, workflow_id: str, decode: Decode | None = None
) -> Sequence[HistoryEvent]:
    """The events of a workflow's newest run; `decode` opens what Evergrant has sealed in them."""
    history = await client.get_workflow_handle(workflow_id).fetch_history()
    if decode is None:
        return history.events
    events = history.to_json_dict()
    sealed = list(_sealed_in(events))
    for payload, opened in zip(sealed, await decode(sealed), strict=True):
        payload.clear()
        payload.update(opened)
    return WorkflowHistory.from_json(workflow_id, events).events


def _sealed_in(value: Any) -> Iterator[JsonPayload]:
    match value:
        case {"metadata": {"encoding": str() as encoding}, "data": str()}:
            if base64.b64decode(encoding) == _SEALED:
                yield value
        case dict() | list():
            for member in value.values() if isinstance(value, dict) else value:
                yield from _sealed_in(member)
        case _:
            pass


async def until_closed(client: Client, workflow_id: str) -> None:
    """Wait until a workflow's newest run has ended, half a minute at most."""
    closing = WorkflowHistoryEventFilterType.CLOSE_EVENT
    with suppress(TimeoutError):
        async with asyncio.timeout(30):
            handle = client.get_workflow_handle(workflow_id)
            async for _ in handle.fetch_history_events(wait_new_event=True, event_filter_type=closing):
                return


async def timeline(client: Client, workflow_id: str, decode: Decode | None = None) -> list[TimelineEntry]:
    """The events of a workflow's newest run, without Temporal's bookkeeping."""
    entries = []
    for event in await opened_events(client, workflow_id, decode):
        description = _describe_event(event)
        if description is not None:
            entries.append(TimelineEntry(event.event_time.ToDatetime(), *description))
    return entries


def _describe_event(event: HistoryEvent) -> tuple[str, str] | None:
    kind = EventType.Name(event.event_type).removeprefix(_PREFIX)
    match kind:
        case "WORKFLOW_EXECUTION_STARTED":
            return "begins", _by(event.workflow_execution_started_event_attributes.input.payloads)
        case "WORKFLOW_EXECUTION_SIGNALED":
            signal = event.workflow_execution_signaled_event_attributes
            return f"signal {signal.signal_name}", _by(signal.input.payloads)
        case "WORKFLOW_EXECUTION_UPDATE_ACCEPTED":
            update = event.workflow_execution_update_accepted_event_attributes.accepted_request.input
            return f"update {update.name}", _by(update.args.payloads)
        case "ACTIVITY_TASK_SCHEDULED":
            activity = event.activity_task_scheduled_event_attributes.activity_type.name
            return f"does {activity}", _summary(event)
        case "ACTIVITY_TASK_STARTED":
            started = event.activity_task_started_event_attributes
            if started.attempt == 1:
                return None
            return "  again", f"attempt {started.attempt}, after: {_failure(started)}"
        case "ACTIVITY_TASK_COMPLETED":
            return "  done", _facts(event.activity_task_completed_event_attributes.result.payloads)
        case "TIMER_STARTED":
            return "sleeps", _summary(event)
        case "TIMER_FIRED":
            return "wakes", ""
        case "WORKFLOW_EXECUTION_COMPLETED":
            result = event.workflow_execution_completed_event_attributes.result
            return "ends", _facts(result.payloads)
        case _:
            return None


def _failure(started: Any) -> str:
    failure = started.last_failure
    while failure.HasField("cause"):
        failure = failure.cause
    return failure.message or "a failure without a message"


def _by(payloads: Iterable[Payload]) -> str:
    for value in map(_value, payloads):
        if isinstance(value, dict) and isinstance(value.get("context"), dict):
            return f"by {value['context'].get('by', '?')}"
    return ""


def _facts(payloads: Iterable[Payload]) -> str:
    for value in map(_value, payloads):
        if isinstance(value, dict):
            names = ("state", "generation", "revocation", "failure", "generations")
            return ", ".join(f"{name} {value[name]}" for name in names if value.get(name) is not None)
    return ""


def _summary(event: HistoryEvent) -> str:
    if not event.HasField("user_metadata"):
        return ""
    return str(_value(event.user_metadata.summary) or "")


def _value(payload: Payload) -> Any:
    if not payload.metadata.get("encoding", b"").startswith(b"json/"):
        return None
    return json.loads(payload.data)


@dataclass(frozen=True)
class HistorySearch:
    """The searched workflows and events, and the workflows in which something was found."""

    workflows: tuple[str, ...]
    events: int
    found_in: tuple[str, ...]


async def search(
    client: Client, workflow_ids: Iterable[str], secrets: Iterable[str], decode: Decode | None = None
) -> HistorySearch:
    """Search these histories, and all others that Temporal lists, for the secrets, plain and in base64.

    What is sealed is opened first by `decode`.
    """
    needles = [needle for secret in secrets for needle in _shapes(secret)]
    names = set(workflow_ids)
    async for workflow in client.list_workflows():
        names.add(workflow.id)
    events, found = 0, []
    for name in sorted(names):
        handle = client.get_workflow_handle(name)
        texts = [(await handle.describe()).raw_description.SerializeToString()]
        texts += [event.SerializeToString() for event in await opened_events(client, name, decode)]
        events += len(texts) - 1
        if any(needle in text for needle in needles for text in texts):
            found.append(name)
    return HistorySearch(tuple(sorted(names)), events, tuple(found))


def _shapes(secret: str) -> list[bytes]:
    """The secret, and its base64 at each of the three offsets in a longer text."""
    raw = secret.encode()
    shapes = [raw]
    for shift in range(3):
        whole = base64.b64encode(b"\0" * shift + raw)
        # the characters at both ends depend on the neighbours
        shapes.append(whole[(0, 2, 3)[shift] : len(whole) - 4])
    return shapes
