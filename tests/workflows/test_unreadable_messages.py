"""What can't be read fails no workflow: each hostile payload is unreadable to each handler of each workflow.

Those that reach a handler in different ways go to each through Temporal: one that can't be decoded, one that
is no message of its type, one that is too long, more, and none.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from enum import Enum
from typing import Any

import pytest
from temporalio import activity, workflow
from temporalio.api.common.v1 import Payload
from temporalio.api.enums.v1 import EventType
from temporalio.client import (
    Client,
    WorkflowFailureError,
    WorkflowHandle,
    WorkflowQueryFailedError,
    WorkflowUpdateFailedError,
)
from temporalio.common import RawValue
from temporalio.converter import WorkflowSerializationContext
from temporalio.exceptions import ApplicationError
from temporalio.worker import UnsandboxedWorkflowRunner

from evergrant_server.core.connections.connection import RevocationOutcome
from evergrant_server.core.connections.erasure import ErasureState
from evergrant_server.core.connections.incidents import IncidentState
from evergrant_server.core.definition import DefinitionState
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import new_id
from evergrant_server.core.messages import (
    agents,
    decisions,
    erasure,
    export,
    incidents,
    integrations,
    jobs,
    keys,
    maintenance,
)
from evergrant_server.core.messages.activities import RevocationResult
from evergrant_server.core.messages.base import Message, Received
from evergrant_server.core.messages.connection import ConnectionStart, Revoke
from evergrant_server.core.messages.names import QueryName, SignalName, WorkflowName
from evergrant_server.core.messages.received import is_received
from evergrant_server.core.model import FrozenModel
from evergrant_server.telemetry.logs import LogEvent
from evergrant_server.temporal_link.received import MessageConverter
from tests.fakes.patience import PATIENCE_S, eventually
from tests.workflows.connection_runs import ASKED, a_worker
from tests.workflows.sampled_messages import plain_type, sample
from workflows.registry import WORKFLOWS

NOW = datetime.now(UTC)
AS_IN_PRODUCTION = UnsandboxedWorkflowRunner()
of_each_workflow = pytest.mark.parametrize("kind", WORKFLOWS, ids=lambda it: it.__name__)
# of activities without which a workflow would go on, or whose result has no default
RESULTS: dict[str, Message] = {
    jobs.REVOKE_GRANT.name: RevocationResult(revocation=RevocationOutcome.CONFIRMED),
    jobs.CHECK_DEFINITION.name: integrations.DefinitionResult(state=DefinitionState.REJECTED),
    jobs.ADVANCE_ACCESS_REQUEST.name: decisions.DecisionProgress(state="expired"),
    jobs.ADVANCE_CALL_APPROVAL.name: decisions.DecisionProgress(state="expired"),
    jobs.ADVANCE_AGENT_STOP.name: agents.AgentStopProgress(finished=True),
    jobs.ADVANCE_ERASURE.name: erasure.ErasureProgress(state=ErasureState.DONE),
    jobs.ADVANCE_INCIDENT.name: incidents.IncidentProgress(state=IncidentState.DONE),
    jobs.ADVANCE_BULK.name: incidents.IncidentProgress(state=IncidentState.DONE),
    jobs.SEAL_EXPORT_PAGE.name: export.ExportProgress(exported=0, skipped=0, done=True),
    jobs.ADVANCE_KEY_ROTATION.name: keys.KeyRotationProgress(done=True),
    jobs.REREAD_METADATA.name: maintenance.RereadMetadataResult(read=0, changed=0, refused=0),
}
WITHOUT_RESULT = (jobs.BEGIN_REVOCATION.name, jobs.EXPORT_RUN_HISTORY.name, jobs.DELETE_EXPORT.name)


class HeldActivities:
    """Every activity, by one function: it answers once `released` is set."""

    def __init__(self) -> None:
        self.released = asyncio.Event()
        self.calls: list[str] = []

    def function(self) -> Callable[..., Any]:
        @activity.defn(dynamic=True)
        async def answer(_: Sequence[RawValue]) -> Any:
            name = activity.info().activity_type
            self.calls.append(name)
            await self.released.wait()
            return None if name in WITHOUT_RESULT else RESULTS.get(name, {})

        return answer


# --- payloads ------------------------------------------------------------------------------


def as_json(value: object) -> Payload:
    return Payload(metadata={"encoding": b"json/plain"}, data=json.dumps(value).encode())


def encoded(encoding: bytes, data: bytes) -> Payload:
    return Payload(metadata={"encoding": encoding}, data=data)


_SPOILT: dict[type, list[Any]] = {
    datetime: ["2026-11-30T12:00:00", "9999-12-31T23:59:59Z", "yesterday"],
    float: [float("nan"), float("inf"), "1s"],
    int: [2**63, "many", 1.5],
    str: ["\0", "x" * 5000, ["acme"]],
    Enum: ["unheard-of", 3],
}


def spoilt(message: type[FrozenModel], valid: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The valid message with one value of each field replaced by one that can't be read."""
    for name, field in message.model_fields.items():
        kind = plain_type(field.annotation)
        if not isinstance(kind, type) or (issubclass(kind, FrozenModel) and valid[name] is None):
            continue
        if issubclass(kind, FrozenModel):
            for what, inner in spoilt(kind, valid[name]):
                yield f"{name}.{what}", {**valid, name: inner}
            continue
        family = next((it for it in (Enum, bool, datetime, float, int, str) if issubclass(kind, it)), None)
        for wrong in _SPOILT.get(family, []) if family else []:
            yield f"{name}={str(wrong)[:40]!r}", {**valid, name: wrong}


def hostile(message: type[Received]) -> dict[str, list[Payload]]:
    """Arguments of a signal, an update or a run that takes this message, and that can't be read."""
    valid = sample(message)
    good = as_json(valid)
    found = {
        "null": [encoded(b"binary/null", b"")],
        "null as JSON": [as_json(None)],
        "bytes": [encoded(b"binary/plain", b"\xff\x00\xfe")],
        "an unknown encoding": [encoded(b"rot13", b"{}")],
        "an encoding that is no text": [encoded(b"\xff\xfe", b"{}")],
        "no encoding": [Payload(data=b"{}")],
        "no JSON": [encoded(b"json/plain", b'{"context":')],
        "no UTF-8": [encoded(b"json/plain", b'{"by": "\xff"}')],
        "two": [good, good],
        "two that can't be decoded": [encoded(b"rot13", b"{}")] * 2,
        "none": [],
        "a list": [as_json([])],
        "a text": [as_json("acme")],
        "deep": [encoded(b"json/plain", b'{"context":' + b"[" * 50_000)],
    }
    if message is not ConnectionStart:
        found["1.9 MB"] = [as_json({**valid, "more": "x" * 1_900_000})]
    found |= {what: [as_json(values)] for what, values in spoilt(message, valid)}
    if "context" in valid:
        found["nothing in it"] = [as_json({})]
    return found


IN_DIFFERENT_WAYS = ("no JSON", "a list", "1.9 MB", "two", "two that can't be decoded", "none")


def sent(message: type[Received]) -> dict[str, list[Payload]]:
    """The hostile payloads that go through Temporal."""
    return {what: payloads for what, payloads in hostile(message).items() if what in IN_DIFFERENT_WAYS}


# --- workflows -----------------------------------------------------------------------------


def definition(kind: type) -> Any:
    return workflow._Definition.must_from_class(kind)


def taken(handler: Any) -> type[Received]:
    """The message that a handler, or a run, takes: one alone."""
    (message,) = handler.arg_types
    assert issubclass(message, Received), message
    return message


@asynccontextmanager
async def running(
    client: Client, kind: type
) -> AsyncIterator[tuple[WorkflowHandle[Any, Any], HeldActivities]]:
    """A run whose first activity hasn't ended, with a worker of its own."""
    held, name = HeldActivities(), definition(kind).name
    queue = f"queue-{new_id('out')}"
    async with a_worker(client, [held.function()], queue, AS_IN_PRODUCTION):
        start = as_json(sample(taken(definition(kind))))
        yield (
            await client.start_workflow(name, RawValue(start), id=f"run-{queue}", task_queue=queue),
            held,
        )


def raw(payloads: Sequence[Payload]) -> list[RawValue]:
    return [RawValue(it) for it in payloads]


async def does_its_job(handle: WorkflowHandle[Any, Any], held: HeldActivities, kind: type) -> None:
    """It ends, or takes the next message, and no task of it has failed."""
    held.released.set()
    name = definition(kind).name
    if name == WorkflowName.CONNECTION:
        await handle.signal(SignalName.REVOKE, Revoke(reason="left", context=ASKED))
    if name == WorkflowName.WEBHOOK_DELIVERY:  # it waits for the next delivery
        await eventually(lambda: _number(held.calls), lambda calls: calls >= 1)
        wake = as_json(sample(maintenance.WakeWebhook))
        await handle.signal(SignalName.WAKE_WEBHOOK, RawValue(wake))
        await eventually(lambda: _number(held.calls), lambda calls: calls >= 2)
    else:
        await asyncio.wait_for(handle.result(), PATIENCE_S)
    types = {it.event_type async for it in handle.fetch_history_events()}
    assert EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED not in types


async def _number(calls: list[str]) -> int:
    return len(calls)


@of_each_workflow
def test_a_workflow_reads_no_hostile_payload(kind: type):
    context = WorkflowSerializationContext(namespace="default", workflow_id="run-1")
    converter = MessageConverter().with_context(context)
    handlers = [definition(kind), *definition(kind).signals.values(), *definition(kind).updates.values()]
    for message in map(taken, handlers):
        good = as_json(sample(message))
        assert is_received(converter.from_payloads([good], [message]))
        for name, payloads in hostile(message).items():
            types = [message] if len(payloads) == 1 else None  # as the SDK calls it
            assert not is_received(converter.from_payloads(payloads, types)), name


@of_each_workflow
async def test_hostile_signals_are_dropped_with_a_count(
    client: Client, kind: type, caplog: pytest.LogCaptureFixture
):
    number = 0
    async with running(client, kind) as (handle, held):
        for name, handler in definition(kind).signals.items():
            for payloads in sent(taken(handler)).values():
                await handle.signal(name, args=raw(payloads))
                number += 1
        await handle.signal("a signal of no name that we know", args=raw([as_json({})]))
        await handle.signal("\n", args=[])
        await does_its_job(handle, held, kind)
    dropped = [it for it in caplog.records if it.getMessage().startswith(LogEvent.MESSAGE_UNREADABLE)]
    assert len(dropped) == number + 2
    assert {getattr(it, "object", "") for it in dropped} == {handle.id}
    assert "a signal of no name" not in caplog.text


WITH_QUESTIONS = [it for it in WORKFLOWS if definition(it).updates or definition(it).queries]


@pytest.mark.parametrize("kind", WITH_QUESTIONS)
async def test_hostile_updates_are_rejected_by_name_and_queries_do_no_harm(client: Client, kind: type):
    async with running(client, kind) as (handle, held):
        for name, handler in definition(kind).updates.items():
            for what, payloads in sent(taken(handler)).items():
                with pytest.raises(WorkflowUpdateFailedError) as refused:
                    await handle.execute_update(name, args=raw(payloads))
                assert isinstance(refused.value.cause, ApplicationError), what
                assert refused.value.cause.type == ErrorCode.INVALID_REQUEST, what
        for name, handler in definition(kind).queries.items():
            assert not handler.arg_types
            for payloads in (raw([as_json({})]), raw([encoded(b"rot13", b"")] * 2)):
                with suppress(WorkflowQueryFailedError):  # or answered as if nothing had come
                    await handle.query(name, args=payloads)
        if QueryName.DESCRIBE in definition(kind).queries:
            await handle.query(QueryName.DESCRIBE)
        await does_its_job(handle, held, kind)


async def test_a_run_whose_input_cant_be_read_fails_for_good(client: Client):
    queue = f"queue-{new_id('out')}"

    async def fails(kind: type, what: str, payloads: list[Payload]) -> None:
        name, id = definition(kind).name, f"{queue}-{kind.__name__}-{what}"
        handle = await client.start_workflow(name, args=raw(payloads), id=id, task_queue=queue)
        with pytest.raises(WorkflowFailureError) as failed:
            await asyncio.wait_for(handle.result(), PATIENCE_S)
        cause = failed.value.cause
        assert isinstance(cause, ApplicationError), id
        assert (cause.type, cause.non_retryable) == (ErrorCode.INVALID_REQUEST, True), id

    async with a_worker(client, [HeldActivities().function()], queue, AS_IN_PRODUCTION):
        for kind in WORKFLOWS:
            cases = sent(taken(definition(kind))).items()
            await asyncio.gather(*(fails(kind, *case) for case in cases))
