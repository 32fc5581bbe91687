"""What must reach Temporal, written in the transaction that made it true."""

from datetime import datetime
from enum import StrEnum
from typing import Any

from evergrant_server.core.access import App
from evergrant_server.core.agents.stops import AgentStop
from evergrant_server.core.cells.moves import TenantMove
from evergrant_server.core.connections.bulk import BulkOrder
from evergrant_server.core.connections.erasure import Erasure
from evergrant_server.core.connections.incidents import Incident
from evergrant_server.core.decisions import AccessRequest, CallApproval
from evergrant_server.core.ids import ConnectionId, OutboxId, Tenant, new_id
from evergrant_server.core.integrations import Integration
from evergrant_server.core.messages.activities import RevokeReplacedStart
from evergrant_server.core.messages.agents import AgentStopStart
from evergrant_server.core.messages.base import Message, RequestContext
from evergrant_server.core.messages.cells import MoveTenant
from evergrant_server.core.messages.decisions import AdvanceAccessRequest, AdvanceCallApproval
from evergrant_server.core.messages.erasure import ErasureStart
from evergrant_server.core.messages.incidents import AdvanceBulk, AdvanceIncident
from evergrant_server.core.messages.integrations import RetryConnections
from evergrant_server.core.messages.jobs import FETCH_ISSUER_KEYS, MOVE_TENANT
from evergrant_server.core.messages.keys import KeyRotationStart, PauseKeyRotation
from evergrant_server.core.messages.maintenance import FetchIssuerKeys
from evergrant_server.core.messages.names import (
    SignalName,
    access_request_workflow_id,
    agent_stop_workflow_id,
    bulk_workflow_id,
    call_approval_workflow_id,
    connection_workflow_id,
    erasure_workflow_id,
    incident_workflow_id,
    key_rotation_workflow_id,
    replaced_grants_workflow_id,
    retry_connections_workflow_id,
)
from evergrant_server.core.messages.work import Job, RequestT
from evergrant_server.core.model import FrozenModel
from evergrant_server.core.workloads.issuer import TrustedIssuer

BULK = "import"  # the name of a message of which there may be thousands: workers deliver it, after all others


class OutboxKind(StrEnum):
    START_WORKFLOW = "start_workflow"  # payload: ConnectionStart
    SIGNAL = "signal"  # payload: the signal's message; `name` is the signal
    START_EXPORT = "start_export"  # payload: ExportStart
    WAKE_WEBHOOK = "wake_webhook"  # payload: WakeWebhook
    START_DEFINITION_ROLLOUT = "start_definition_rollout"  # payload: RolloutStart
    RUN_JOB = "run_job"  # payload: the job's request; `name` is the job
    RETRY_CONNECTIONS = "retry_connections"  # payload: RetryConnections
    REVOKE_REPLACED_GRANTS = "revoke_replaced_grants"  # payload: RevokeReplacedStart
    EXPORT_HISTORY = "export_history"  # payload: {"run_id": …}
    ADVANCE_ACCESS_REQUEST = "advance_access_request"  # payload: AdvanceAccessRequest
    ADVANCE_CALL_APPROVAL = "advance_call_approval"  # payload: AdvanceCallApproval
    STOP_AGENT = "stop_agent"  # payload: AgentStopStart
    ERASE = "erase"  # payload: ErasureStart
    START_KEY_ROTATION = "start_key_rotation"  # payload: KeyRotationStart
    ADVANCE_INCIDENT = "advance_incident"  # payload: AdvanceIncident
    ADVANCE_BULK = "advance_bulk"  # payload: AdvanceBulk


class OutboxMessage(FrozenModel):
    """One delivery, at least once and in order per `target` (a workflow id). No secrets."""

    tenant: Tenant
    id: OutboxId
    kind: OutboxKind
    target: str
    name: str = ""
    payload: dict[str, Any]
    created_at: datetime
    attempts: int = 0
    next_at: datetime | None = None
    last_error: str | None = None


def outbox_message(
    tenant: Tenant,
    kind: OutboxKind,
    target: str,
    message: Message | dict[str, Any],
    at: datetime,
    *,
    name: str = "",
) -> OutboxMessage:
    """To be added in the transaction that makes `message` true."""
    return OutboxMessage(
        tenant=tenant,
        id=OutboxId(new_id("out")),
        kind=kind,
        target=target,
        name=name,
        payload=message if isinstance(message, dict) else message.model_dump(mode="json"),
        created_at=at,
    )


def history_target(run_id: str) -> str:
    """A target of its own: a history's export waits for no other message."""
    return f"history:{run_id}"


def history_export_message(
    tenant: Tenant, connection_id: ConnectionId, workflow_id: str, run_id: str, at: datetime
) -> OutboxMessage:
    """Have the history of a run exported once it has closed."""
    run = {"connection_id": connection_id, "workflow_id": workflow_id, "run_id": run_id}
    return outbox_message(tenant, OutboxKind.EXPORT_HISTORY, history_target(run_id), run, at)


def revoke_replaced_message(
    tenant: Tenant, connection_id: ConnectionId, context: RequestContext, at: datetime
) -> OutboxMessage:
    """Have a connection's pending replaced grants revoked."""
    start = RevokeReplacedStart(tenant=tenant, connection_id=connection_id, context=context)
    target = replaced_grants_workflow_id(tenant, connection_id)
    return outbox_message(tenant, OutboxKind.REVOKE_REPLACED_GRANTS, target, start, at)


def job_message(tenant: Tenant, job: Job[RequestT, Any], request: RequestT, at: datetime) -> OutboxMessage:
    """Have a worker do a job."""
    target = job.workflow_id(request)
    return outbox_message(tenant, OutboxKind.RUN_JOB, target, request, at, name=job.name)


def move_message(move: TenantMove, context: RequestContext, at: datetime) -> OutboxMessage:
    """Have a worker carry out this side's part of a move between cells."""
    request = MoveTenant(tenant=move.tenant, move_id=move.id, context=context)
    return job_message(move.tenant, MOVE_TENANT, request, at)


def fetch_issuer_keys_message(issuer: TrustedIssuer, context: RequestContext, at: datetime) -> OutboxMessage:
    """Have a worker read a trusted issuer's keys."""
    request = FetchIssuerKeys(tenant=issuer.tenant, issuer_id=issuer.id, context=context)
    return job_message(issuer.tenant, FETCH_ISSUER_KEYS, request, at)


def access_request_message(request: AccessRequest, context: RequestContext, at: datetime) -> OutboxMessage:
    """Have the request's workflow started, or told that the request was decided."""
    advance = AdvanceAccessRequest(tenant=request.tenant, request_id=request.id, context=context)
    target = access_request_workflow_id(request.tenant, request.id)
    return outbox_message(request.tenant, OutboxKind.ADVANCE_ACCESS_REQUEST, target, advance, at)


def call_approval_message(approval: CallApproval, context: RequestContext, at: datetime) -> OutboxMessage:
    """Have the approval's workflow started, or told that it was decided or used."""
    advance = AdvanceCallApproval(tenant=approval.tenant, approval_id=approval.id, context=context)
    target = call_approval_workflow_id(approval.tenant, approval.id)
    return outbox_message(approval.tenant, OutboxKind.ADVANCE_CALL_APPROVAL, target, advance, at)


def agent_stop_message(stop: AgentStop, context: RequestContext, at: datetime) -> OutboxMessage:
    """Have a workflow end what the stopped agent has left."""
    start = AgentStopStart(tenant=stop.tenant, stop_id=stop.id, context=context)
    target = agent_stop_workflow_id(stop.tenant, stop.id)
    return outbox_message(stop.tenant, OutboxKind.STOP_AGENT, target, start, at)


def erasure_message(erasure: Erasure, context: RequestContext, at: datetime) -> OutboxMessage:
    """Have a workflow carry the erasure out."""
    start = ErasureStart(tenant=erasure.tenant, erasure_id=erasure.id, context=context)
    target = erasure_workflow_id(erasure.tenant, erasure.id)
    return outbox_message(erasure.tenant, OutboxKind.ERASE, target, start, at)


def incident_message(incident: Incident, context: RequestContext, at: datetime) -> OutboxMessage:
    """Have the incident's workflow started, or told that the row has changed."""
    advance = AdvanceIncident(tenant=incident.tenant, incident_id=incident.id, context=context)
    target = incident_workflow_id(incident.tenant, incident.id)
    return outbox_message(incident.tenant, OutboxKind.ADVANCE_INCIDENT, target, advance, at)


def bulk_message(order: BulkOrder, context: RequestContext, at: datetime) -> OutboxMessage:
    """Have the order's workflow started, or told that the row has changed."""
    advance = AdvanceBulk(tenant=order.tenant, bulk_id=order.id, context=context)
    target = bulk_workflow_id(order.tenant, order.id)
    return outbox_message(order.tenant, OutboxKind.ADVANCE_BULK, target, advance, at)


def key_rotation_message(start: KeyRotationStart, at: datetime) -> OutboxMessage:
    """Have a rotation of keys begun; one of the kind that runs already goes on."""
    target = key_rotation_workflow_id(start.tenant, start.kind, start.connection_id)
    return outbox_message(start.tenant, OutboxKind.START_KEY_ROTATION, target, start, at)


def pause_key_rotation_message(
    tenant: Tenant, target: str, signal: PauseKeyRotation, at: datetime
) -> OutboxMessage:
    """Have the rotation that runs under this workflow id paused, or gone on with."""
    name = SignalName.PAUSE_KEY_ROTATION
    return outbox_message(tenant, OutboxKind.SIGNAL, target, signal, at, name=name)


def retry_integration_message(
    integration: Integration, context: RequestContext, at: datetime
) -> OutboxMessage:
    """Have the failing connections of a changed integration try again: one message, however many they are."""
    target = retry_connections_workflow_id(integration.tenant, integration.id)
    return _retry_message(integration, target, context, at, integration_id=integration.id)


def retry_exchanges_message(app: App, context: RequestContext, at: datetime) -> OutboxMessage:
    """Have the failing connections try again for which tokens are exchanged in the app's name."""
    target = retry_connections_workflow_id(app.tenant, app.id)
    return _retry_message(app, target, context, at, source_app=app.id)


def _retry_message(
    changed: Integration | App, target: str, context: RequestContext, at: datetime, **whose: str
) -> OutboxMessage:
    id = OutboxId(new_id("out"))
    values = {"tenant": changed.tenant, "id": id, "version": changed.revision, "context": context, **whose}
    request = RetryConnections.model_validate(values)
    message = outbox_message(changed.tenant, OutboxKind.RETRY_CONNECTIONS, target, request, at)
    return message.__replace__(id=id)


def signal_message(
    tenant: Tenant, connection_id: ConnectionId, name: str, message: Message, at: datetime
) -> OutboxMessage:
    """A signal to the workflow of a connection."""
    return outbox_message(
        tenant, OutboxKind.SIGNAL, connection_workflow_id(tenant, connection_id), message, at, name=name
    )
