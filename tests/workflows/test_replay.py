"""Every history that was ever recorded replays with today's code."""

import json

import pytest
from temporalio import workflow
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer
from temporalio.workflow import NondeterminismError

from evergrant_server.temporal_link.received import ReceivedInterceptor
from evergrant_server.temporal_link.stories import is_sealed
from tests.fakes.temporal import SANDBOX, payloads_in
from tests.workflows.stories.record import HISTORIES, SEALED, SEALING, STORIES
from workflows.registry import WORKFLOWS

FILES = sorted(HISTORIES.glob("*.json"))


def replayer() -> Replayer:
    return Replayer(
        workflows=WORKFLOWS,
        data_converter=SEALING,
        workflow_runner=SANDBOX,
        interceptors=[ReceivedInterceptor()],
    )


def history(name: str) -> WorkflowHistory:
    """The recording under the id of its workflow: that is a part of every seal."""
    text = (HISTORIES / f"{name}.json").read_text()
    started = json.loads(text)["events"][0]["workflowExecutionStartedEventAttributes"]
    return WorkflowHistory.from_json(started.get("workflowId", f"replay-{name}"), text)


@pytest.mark.parametrize("name", [file.stem for file in FILES])
async def test_replay(name: str):
    await replayer().replay_workflow(history(name))


@pytest.mark.parametrize("name", SEALED)
def test_every_payload_of_a_sealed_recording_is_sealed(name: str):
    payloads = payloads_in(json.loads((HISTORIES / f"{name}.json").read_text())["events"])
    assert len(payloads) > 3
    assert all(is_sealed(payload) for payload in payloads)


def test_every_story_is_recorded_and_every_recording_is_a_story():
    assert {file.stem for file in FILES} == set(STORIES)


def test_every_workflow_has_a_history():
    started = [json.loads(file.read_text())["events"][0] for file in FILES]
    types = {it["workflowExecutionStartedEventAttributes"]["workflowType"]["name"] for it in started}
    assert types == {workflow._Definition.must_from_class(kind).name for kind in WORKFLOWS}


async def test_replay_can_fail():
    """A history with its refresh taken for an exchange must not pass."""
    name = "whole_life"
    changed = (HISTORIES / f"{name}.json").read_text().replace('"refresh_grant"', '"exchange_code"')
    with pytest.raises((NondeterminismError, Exception)) as caught:
        await replayer().replay_workflow(WorkflowHistory.from_json("replay-changed", changed))
    assert "ondeterminism" in repr(caught.value)


@pytest.mark.parametrize("name", [file.stem for file in FILES])
def test_a_recording_names_no_machine(name: str):
    identities = {
        value["identity"]
        for event in json.loads((HISTORIES / f"{name}.json").read_text())["events"]
        for value in event.values()
        if isinstance(value, dict) and value.get("identity")
    }
    assert identities <= {"worker", "history-service"}
