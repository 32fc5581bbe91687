"""Which workflow each outbox message starts: id, argument, and what happens if it runs already."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from temporalio.common import (
    SearchAttributeKey,
    SearchAttributePair,
    TypedSearchAttributes,
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
)

from evergrant_server.core.messages.activities import RevokeReplacedStart
from evergrant_server.core.messages.agents import AgentStopStart
from evergrant_server.core.messages.base import Message, RequestMessage
from evergrant_server.core.messages.connection import ConnectionStart
from evergrant_server.core.messages.decisions import AdvanceAccessRequest, AdvanceCallApproval
from evergrant_server.core.messages.erasure import ErasureStart
from evergrant_server.core.messages.export import ExportStart
from evergrant_server.core.messages.incidents import AdvanceBulk, AdvanceIncident
from evergrant_server.core.messages.integrations import RetryConnections, RolloutStart
from evergrant_server.core.messages.jobs import JOBS
from evergrant_server.core.messages.keys import KeyRotationStart
from evergrant_server.core.messages.maintenance import WakeWebhook, WebhookStart
from evergrant_server.core.messages.names import (
    SearchAttribute,
    SignalName,
    WorkflowName,
    access_request_workflow_id,
    agent_stop_workflow_id,
    bulk_workflow_id,
    call_approval_workflow_id,
    connection_workflow_id,
    definition_rollout_workflow_id,
    erasure_workflow_id,
    export_workflow_id,
    incident_workflow_id,
    key_rotation_workflow_id,
    replaced_grants_workflow_id,
    retry_connections_workflow_id,
    webhook_workflow_id,
)
from evergrant_server.core.messages.work import Job
from evergrant_server.core.outbox import OutboxKind, OutboxMessage


@dataclass(frozen=True)
class StartRequest:
    """A workflow to start unless its id is running. `options` are those of `Client.start_workflow`."""

    workflow: str
    argument: Message
    workflow_id: str
    summary: str
    options: Mapping[str, Any] = field(default_factory=dict)


def job(job: Job[Any, Any], request: RequestMessage) -> StartRequest:
    """The run of a job, which a worker does unless one does it already."""
    options: dict[str, Any] = {} if job.within is None else {"execution_timeout": job.within}
    if job.once:
        options["id_reuse_policy"] = WorkflowIDReusePolicy.REJECT_DUPLICATE
    return StartRequest(job.name, request, job.workflow_id(request), job.title, options)


def connection(
    start: ConnectionStart, *, allow_restart: bool = False, replace_running: bool = False
) -> StartRequest:
    """A connection's workflow.

    After a run that completed, a new one starts only with `allow_restart`, for callers that have
    read in the store that the connection is still live. With `replace_running` Temporal terminates
    the running one in the same call, so there is no moment without a workflow.
    """
    attributes = {
        SearchAttribute.TENANT: start.tenant,
        SearchAttribute.PROVIDER: start.provider,
        SearchAttribute.INTEGRATION: start.integration,
        SearchAttribute.STATE: start.state.state,
        SearchAttribute.SUBJECT: start.subject_hash,
    }
    pairs = [
        SearchAttributePair(SearchAttributeKey.for_keyword(name), str(value))
        for name, value in attributes.items()
    ]
    options: dict[str, Any] = {
        "id_reuse_policy": WorkflowIDReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY,
        "search_attributes": TypedSearchAttributes(pairs),
        "static_details": f"requested by {start.context.by}",
    }
    if allow_restart:
        options["id_reuse_policy"] = WorkflowIDReusePolicy.ALLOW_DUPLICATE
    if replace_running:
        options["id_conflict_policy"] = WorkflowIDConflictPolicy.TERMINATE_EXISTING
    return StartRequest(
        WorkflowName.CONNECTION,
        start,
        connection_workflow_id(start.tenant, start.connection_id),
        f"{start.integration} ({start.provider})",
        options,
    )


def export(start: ExportStart) -> StartRequest:
    """An export's workflow, once."""
    return StartRequest(
        WorkflowName.EXPORT,
        start,
        export_workflow_id(start.tenant, start.export_id),
        "export of grants",
        {
            "id_reuse_policy": WorkflowIDReusePolicy.REJECT_DUPLICATE,
            "static_details": f"requested by {start.context.by}",
        },
    )


def retry_connections(request: RetryConnections) -> StartRequest:
    """The workflow that tells failing connections is signalled, or started: one for a changed row."""
    changed = request.integration_id or request.source_app
    assert changed is not None
    return StartRequest(
        WorkflowName.RETRY_CONNECTIONS,
        request,
        retry_connections_workflow_id(request.tenant, changed),
        "retries of failing connections",
        {
            "start_signal": SignalName.RETRY_CONNECTIONS,
            "start_signal_args": [request],
            "static_details": f"changed by {request.context.by}",
        },
    )


def replaced_grants(start: RevokeReplacedStart, *, wake: bool = True) -> StartRequest:
    """The workflow that revokes a connection's replaced grants; one that runs is woken, if `wake`."""
    signal = {"start_signal": SignalName.WAKE_REPLACED_GRANTS, "start_signal_args": [start]}
    return StartRequest(
        WorkflowName.REPLACED_GRANTS,
        start,
        replaced_grants_workflow_id(start.tenant, start.connection_id),
        "revocation of replaced grants",
        {**(signal if wake else {}), "static_details": f"requested by {start.context.by}"},
    )


def access_request(request: AdvanceAccessRequest) -> StartRequest:
    """The workflow of a request for access is signalled, or started."""
    workflow_id = access_request_workflow_id(request.tenant, request.request_id)
    signal = SignalName.ADVANCE_ACCESS_REQUEST
    return _advanced(WorkflowName.ACCESS_REQUEST, request, workflow_id, signal, "a request for access")


def call_approval(request: AdvanceCallApproval) -> StartRequest:
    """The workflow of an agent's call that waits for an approval is signalled, or started."""
    workflow_id = call_approval_workflow_id(request.tenant, request.approval_id)
    signal = SignalName.ADVANCE_CALL_APPROVAL
    return _advanced(WorkflowName.CALL_APPROVAL, request, workflow_id, signal, "an agent's call to approve")


def incident(request: AdvanceIncident) -> StartRequest:
    """The workflow of an incident is signalled, or started."""
    workflow_id = incident_workflow_id(request.tenant, request.incident_id)
    return _advanced(WorkflowName.INCIDENT, request, workflow_id, SignalName.ADVANCE_INCIDENT, "an incident")


def bulk(request: AdvanceBulk) -> StartRequest:
    """The workflow of a bulk order is signalled, or started."""
    workflow_id = bulk_workflow_id(request.tenant, request.bulk_id)
    return _advanced(WorkflowName.BULK, request, workflow_id, SignalName.ADVANCE_BULK, "a bulk order")


def _advanced(
    workflow: WorkflowName, request: RequestMessage, workflow_id: str, signal: SignalName, summary: str
) -> StartRequest:
    signalled = {"start_signal": signal, "start_signal_args": [request]}
    details = {"static_details": f"requested by {request.context.by}"}
    return StartRequest(workflow, request, workflow_id, summary, {**signalled, **details})


def agent_stop(start: AgentStopStart) -> StartRequest:
    """The workflow that ends what a stopped agent has left, unless it is running."""
    return StartRequest(
        WorkflowName.AGENT_STOP,
        start,
        agent_stop_workflow_id(start.tenant, start.stop_id),
        "the stop of an agent",
        {"static_details": f"requested by {start.context.by}"},
    )


def erasure(start: ErasureStart) -> StartRequest:
    """The workflow that erases, unless it is running."""
    return StartRequest(
        WorkflowName.ERASURE,
        start,
        erasure_workflow_id(start.tenant, start.erasure_id),
        "an erasure",
        {"static_details": f"requested by {start.context.by}"},
    )


def key_rotation(start: KeyRotationStart) -> StartRequest:
    """The workflow of a rotation of keys, unless one of its kind is running for the tenant."""
    return StartRequest(
        WorkflowName.KEY_ROTATION,
        start,
        key_rotation_workflow_id(start.tenant, start.kind, start.connection_id),
        f"{start.command} keys of {start.kind}",
        {"static_details": f"requested by {start.context.by}"},
    )


def webhook(request: WakeWebhook) -> StartRequest:
    """The workflow that delivers to this webhook is signalled, or started with the signal."""
    return StartRequest(
        WorkflowName.WEBHOOK_DELIVERY,
        WebhookStart(tenant=request.tenant, webhook_id=request.webhook_id),
        webhook_workflow_id(request.tenant, request.webhook_id),
        "deliveries to a webhook",
        {"start_signal": SignalName.WAKE_WEBHOOK, "start_signal_args": [request]},
    )


def definition_rollout(start: RolloutStart) -> StartRequest:
    """A proposed definition's workflow, unless it has completed."""
    return StartRequest(
        WorkflowName.DEFINITION_ROLLOUT,
        start,
        definition_rollout_workflow_id(start.tenant, start.definition_id),
        f"definition of {start.provider}",
        {
            "id_reuse_policy": WorkflowIDReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY,
            "static_details": f"proposed by {start.context.by}",
        },
    )


_STARTS: dict[OutboxKind, tuple[type[Message], Callable[[Any], StartRequest]]] = {
    OutboxKind.START_WORKFLOW: (ConnectionStart, connection),
    OutboxKind.START_EXPORT: (ExportStart, export),
    OutboxKind.WAKE_WEBHOOK: (WakeWebhook, webhook),
    OutboxKind.START_DEFINITION_ROLLOUT: (RolloutStart, definition_rollout),
    OutboxKind.RETRY_CONNECTIONS: (RetryConnections, retry_connections),
    OutboxKind.REVOKE_REPLACED_GRANTS: (RevokeReplacedStart, replaced_grants),
    OutboxKind.ADVANCE_ACCESS_REQUEST: (AdvanceAccessRequest, access_request),
    OutboxKind.ADVANCE_CALL_APPROVAL: (AdvanceCallApproval, call_approval),
    OutboxKind.ADVANCE_INCIDENT: (AdvanceIncident, incident),
    OutboxKind.ADVANCE_BULK: (AdvanceBulk, bulk),
    OutboxKind.STOP_AGENT: (AgentStopStart, agent_stop),
    OutboxKind.ERASE: (ErasureStart, erasure),
    OutboxKind.START_KEY_ROTATION: (KeyRotationStart, key_rotation),
}


def from_outbox(message: OutboxMessage) -> StartRequest:
    """The request in an outbox message that starts a workflow."""
    if message.kind is OutboxKind.RUN_JOB:
        row = JOBS[message.name]
        return job(row, row.request.model_validate(message.payload))
    argument, request_for = _STARTS[message.kind]
    return request_for(argument.model_validate(message.payload))
