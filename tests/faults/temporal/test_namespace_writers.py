"""One who can write to Temporal's namespace, and to nothing else, speaks for no app."""

import base64
import json
from datetime import timedelta
from typing import Any

import pytest
from temporalio import workflow
from temporalio.client import WorkflowFailureError, WorkflowUpdateFailedError
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.messages import jobs
from evergrant_server.core.messages.base import Provenance, RequestContext
from evergrant_server.core.messages.connection import EnsureFreshResult, Revoke, Rotate
from evergrant_server.core.messages.names import SignalName, UpdateName, connection_workflow_id
from evergrant_server.crypto import KeyRing, Role, request_proof
from tests.fakes.platform.installation import ASKED, TENANT, Installation

APP = "app:crm-sync"


async def requester(place: Installation, connection: Connection, action: AuditAction) -> str:
    """Who requested it, as the newest record of this action says."""
    await place.until_audited(connection, action)
    return (await place.audited(connection, action))[-1].context.by


async def test_a_signal_in_another_name_is_recorded_as_claimed(place: Installation):
    connection = await place.connect()
    names = [APP, "subject", "operator", "schedule", "reconcile"]
    for generation, by in enumerate(names, 2):
        rotate = Rotate(reason="forged", context=RequestContext(by=by))
        await place.workflow(connection).signal(SignalName.ROTATE, rotate)
        await place.until(connection, lambda row, wanted=generation: row.generation == wanted)
    refreshed = await place.audited(connection, AuditAction.GRANT_REFRESHED)
    assert [it.context.by for it in refreshed] == [f"claimed:{by}" for by in names]


async def test_what_the_api_was_asked_for_is_recorded_as_the_apps(place: Installation):
    """By an update, and by a signal that the outbox delivered."""
    connection = await place.connect()
    await place.ensure_fresh(connection, 1)
    assert await requester(place, connection, AuditAction.GRANT_REFRESHED) == APP
    await place.revoked(connection)
    assert await requester(place, connection, AuditAction.REVOKED) == APP


async def test_the_proof_of_one_message_proves_no_other(place: Installation):
    """An app's refresh, copied from its history, becomes nobody's revocation."""
    connection = await place.connect()
    await place.ensure_fresh(connection, 1)
    copied = await context_of_update(place, connection)
    assert (copied.by, bool(copied.proof)) == (APP, True)
    await place.workflow(connection).signal(SignalName.REVOKE, Revoke(reason="forged", context=copied))
    await place.until(connection, lambda row: row.state is LifecycleState.REVOKED)
    for action in (AuditAction.REVOCATION_REQUESTED, AuditAction.REVOKED):
        assert await requester(place, connection, action) == f"claimed:{APP}"


@pytest.mark.parametrize("message", [SignalName.REVOKE, UpdateName.ENSURE_FRESH])
async def test_a_stolen_gateways_key_makes_no_admins_revocation(
    place: Installation, message: str, monkeypatch: pytest.MonkeyPatch
):
    connection = await place.connect()
    gateway = KeyRing.open(place.parts.settings.key_path, Role.GATEWAY)
    admin, now = RequestContext(by="app:admin"), place.parts.clock.now()
    with monkeypatch.context() as stolen:  # it isn't held up by what a gateway's code refuses to say
        stolen.setattr(request_proof, "GATEWAY_MESSAGES", {message})
        workflow = connection_workflow_id(TENANT, connection.id)
        context = request_proof.prove_request(gateway, admin, workflow, message, now)
    await place.workflow(connection).signal(SignalName.REVOKE, Revoke(reason="forged", context=context))
    await place.until(connection, lambda row: row.state is LifecycleState.REVOKED)
    for action in (AuditAction.REVOCATION_REQUESTED, AuditAction.REVOKED):
        assert await requester(place, connection, action) == "claimed:app:admin"


@pytest.mark.parametrize("seen", [2**63, 2**31, -1, 1000])
async def test_an_invented_generation_costs_nothing(place: Installation, seen: int):
    """Neither a call of the provider, nor a wait, nor a failure of the connection."""
    connection = await place.connect()
    calls, before = len(place.idp.calls), await place.row(connection)
    context = ASKED.model_dump(mode="json")
    ask = {"seen_generation": seen, "context": context}
    workflow = place.workflow(connection)
    if seen < 2**31 and seen >= 0:
        answer = await workflow.execute_update(UpdateName.ENSURE_FRESH, ask, result_type=EnsureFreshResult)
        assert (answer.generation, answer.problem) == (1, ErrorCode.STORE_BEHIND)
    else:
        with pytest.raises(WorkflowUpdateFailedError) as refused:
            await workflow.execute_update(UpdateName.ENSURE_FRESH, ask)
        assert isinstance(refused.value.cause, ApplicationError)
        assert refused.value.cause.type == ErrorCode.INVALID_REQUEST
        await workflow.signal(SignalName.ROTATE, {**ask, "reason": "forged"})
        told = {"generation": seen, "source": "introspection", "context": context}
        await workflow.signal(SignalName.REVOKED_AT_PROVIDER, told)
    described = await place.parts.link.describe(TENANT, connection.id)
    assert described is not None
    assert (described.state, described.failures, described.reason) == (LifecycleState.ACTIVE, 0, None)
    assert (len(place.idp.calls), await place.row(connection)) == (calls, before)
    await place.ensure_fresh(connection, 1)  # and a caller who has seen the real one is served at once
    assert (await place.row(connection)).generation == 2


async def context_of_update(place: Installation, connection: Connection) -> RequestContext:
    """As anyone reads it who may read the namespace."""
    events = await place.parts.link.history(connection_workflow_id(TENANT, connection.id))
    accepted = (it.get("workflowExecutionUpdateAcceptedEventAttributes") for it in events)
    (request,) = (it["acceptedRequest"]["input"]["args"]["payloads"][0] for it in accepted if it)
    return RequestContext.model_validate(json.loads(base64.b64decode(request["data"]))["context"])


@workflow.defn(name="Impostor")
class Impostor:
    """Schedules an activity of a connection on the worker's own task queue."""

    @workflow.run
    async def run(self, name: str, request: dict[str, Any], task_queue: str) -> None:
        limit, once = timedelta(seconds=30), RetryPolicy(maximum_attempts=1)
        await workflow.execute_activity(
            name, request, task_queue=task_queue, start_to_close_timeout=limit, retry_policy=once
        )


@pytest.mark.parametrize(
    ("name", "request_more"),
    [(jobs.REFRESH_GRANT.name, {"generation": 1}), (jobs.REVOKE_GRANT.name, {})],
)
async def test_an_activity_that_another_workflow_schedules_is_refused(
    place: Installation, name: str, request_more: dict[str, Any], caplog: pytest.LogCaptureFixture
):
    connection = await place.connect()
    calls, before = len(place.idp.calls), await place.row(connection)
    invented = Provenance(workflow_id=connection_workflow_id(TENANT, connection.id), run_id="r", event_id=9)
    request = {
        "tenant": TENANT,
        "connection_id": connection.id,
        "context": ASKED.model_dump(mode="json"),
        "provenance": invented.model_dump(mode="json"),
        **request_more,
    }
    client, queue, runner = place.parts.client, f"impostor-{connection.id}", UnsandboxedWorkflowRunner()
    theirs = place.parts.settings.temporal_task_queue
    async with Worker(client, task_queue=queue, workflows=[Impostor], workflow_runner=runner):
        with pytest.raises(WorkflowFailureError) as failed:
            await client.execute_workflow(
                Impostor.run, args=[name, request, theirs], id=queue, task_queue=queue
            )
    assert isinstance(failed.value.cause, ActivityError)
    assert isinstance(failed.value.cause.cause, ApplicationError)
    assert failed.value.cause.cause.type == ErrorCode.INVALID_REQUEST
    assert f"foreign activity: {name} was scheduled by Impostor" in caplog.text
    assert (len(place.idp.calls), await place.row(connection)) == (calls, before)
