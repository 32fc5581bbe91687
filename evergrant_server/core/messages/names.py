"""Every name of a signal, an update, a query, and of a workflow that is no job; the task queue; workflow ids.

A name is a contract: it stands in histories. Add, never rename. Activities and jobs are named in `jobs`.
"""

import re
from collections.abc import Mapping
from enum import StrEnum

from evergrant_server.core.ids import (
    AccessRequestId,
    AgentStopId,
    AppId,
    BulkId,
    CallApprovalId,
    ConnectionId,
    DefinitionId,
    ErasureId,
    ExportId,
    IncidentId,
    IntegrationId,
    Tenant,
    WebhookId,
)

TASK_QUEUE = "evergrant"

_LONGEST_WORKFLOW_ID = 1000  # bytes, Temporal's own limit

CONNECTION_WORKFLOW_ID = re.compile(r"^connection:(?P<tenant>[a-z0-9-]+):(?P<connection>con_[0-9a-z]+)\Z")
# the workflows of one connection: what they write into Temporal is sealed by a key of the connection
STORY_WORKFLOW_ID = re.compile(
    r"^(?:connection|replaced_grants):(?P<tenant>[a-z0-9-]+):(?P<connection>con_[0-9a-z]+)\Z"
)


class WorkflowName(StrEnum):
    ACCESS_REQUEST = "AccessRequestWorkflow"
    AGENT_STOP = "AgentStopWorkflow"
    BULK = "BulkWorkflow"
    CALL_APPROVAL = "CallApprovalWorkflow"
    CONNECTION = "ConnectionWorkflow"
    DEFINITION_ROLLOUT = "DefinitionRolloutWorkflow"
    ERASURE = "ErasureWorkflow"
    EXPORT = "ExportWorkflow"
    INCIDENT = "IncidentWorkflow"
    KEY_ROTATION = "KeyRotationWorkflow"
    REPLACED_GRANTS = "ReplacedGrantsWorkflow"
    RETRY_CONNECTIONS = "RetryConnectionsWorkflow"
    WEBHOOK_DELIVERY = "WebhookDeliveryWorkflow"


class SignalName(StrEnum):
    # to ConnectionWorkflow
    CONSENT_GRANTED = "consent_granted"
    CONSENT_DENIED = "consent_denied"
    CONSENT_RETURNED = "consent_returned"
    REVOKE = "revoke"
    ROTATE = "rotate"
    REQUEST_TOKEN = "request_token"
    PROVIDER_CHANGED = "provider_changed"
    REVOKED_AT_PROVIDER = "revoked_at_provider"
    LATE_TOKENS_RECEIVED = "late_tokens_received"
    ACCOUNT_CHOSEN = "account_chosen"
    # from ConnectionWorkflow, to the workflow that sent `request_token`
    TOKEN_READY = "token_ready"
    # to DefinitionRolloutWorkflow
    DEFINITION_DECIDED = "definition_decided"
    ROLL_BACK_DEFINITION = "roll_back_definition"
    # to AccessRequestWorkflow
    ADVANCE_ACCESS_REQUEST = "advance_access_request"
    # to CallApprovalWorkflow
    ADVANCE_CALL_APPROVAL = "advance_call_approval"
    # to BulkWorkflow
    ADVANCE_BULK = "advance_bulk"
    # to IncidentWorkflow
    ADVANCE_INCIDENT = "advance_incident"
    # to KeyRotationWorkflow
    PAUSE_KEY_ROTATION = "pause_key_rotation"
    # to ReplacedGrantsWorkflow
    WAKE_REPLACED_GRANTS = "wake_replaced_grants"
    # to RetryConnectionsWorkflow
    RETRY_CONNECTIONS = "retry_connections"
    # to WebhookDeliveryWorkflow
    WAKE_WEBHOOK = "wake_webhook"


class UpdateName(StrEnum):
    ENSURE_FRESH = "ensure_fresh"


class QueryName(StrEnum):
    DESCRIBE = "describe"
    DESCRIBE_KEY_ROTATION = "describe_key_rotation"


# What the ids of a workflow begin with; those of a job begin with its name. They belong to Evergrant: a run
# of another type under one is ended (ADR 0029). A schedule names the runs that it starts by itself.
_ID_PREFIXES = {
    WorkflowName.CONNECTION: "connection",
    WorkflowName.ACCESS_REQUEST: "access_request",
    WorkflowName.CALL_APPROVAL: "call_approval",
    WorkflowName.AGENT_STOP: "agent_stop",
    WorkflowName.BULK: "bulk",
    WorkflowName.ERASURE: "erasure",
    WorkflowName.EXPORT: "export",
    WorkflowName.INCIDENT: "incident",
    WorkflowName.KEY_ROTATION: "key_rotation",
    WorkflowName.WEBHOOK_DELIVERY: "webhook",
    WorkflowName.DEFINITION_ROLLOUT: "definition_rollout",
    WorkflowName.RETRY_CONNECTIONS: "retry_connections",
    WorkflowName.REPLACED_GRANTS: "replaced_grants",
}
WORKFLOW_OF_PREFIX: Mapping[str, str] = {prefix: type for type, prefix in _ID_PREFIXES.items()}


def _workflow_id(type: WorkflowName, *parts: str | int) -> str:
    return ":".join((_ID_PREFIXES[type], *map(str, parts)))


def connection_workflow_id(tenant: Tenant, connection: ConnectionId) -> str:
    return _workflow_id(WorkflowName.CONNECTION, tenant, connection)


def access_request_workflow_id(tenant: Tenant, request: AccessRequestId) -> str:
    return _workflow_id(WorkflowName.ACCESS_REQUEST, tenant, request)


def call_approval_workflow_id(tenant: Tenant, approval: CallApprovalId) -> str:
    return _workflow_id(WorkflowName.CALL_APPROVAL, tenant, approval)


def agent_stop_workflow_id(tenant: Tenant, stop: AgentStopId) -> str:
    return _workflow_id(WorkflowName.AGENT_STOP, tenant, stop)


def erasure_workflow_id(tenant: Tenant, erasure: ErasureId) -> str:
    return _workflow_id(WorkflowName.ERASURE, tenant, erasure)


def export_workflow_id(tenant: Tenant, export: ExportId) -> str:
    return _workflow_id(WorkflowName.EXPORT, tenant, export)


def bulk_workflow_id(tenant: Tenant, bulk: BulkId) -> str:
    return _workflow_id(WorkflowName.BULK, tenant, bulk)


def incident_workflow_id(tenant: Tenant, incident: IncidentId) -> str:
    return _workflow_id(WorkflowName.INCIDENT, tenant, incident)


def key_rotation_workflow_id(tenant: Tenant, kind: str, connection_id: str | None = None) -> str:
    """One rotation of a kind runs for a tenant at a time, and one for each connection by itself."""
    target = () if connection_id is None else (connection_id,)
    return _workflow_id(WorkflowName.KEY_ROTATION, tenant, kind, *target)


def webhook_workflow_id(tenant: Tenant, webhook: WebhookId) -> str:
    return _workflow_id(WorkflowName.WEBHOOK_DELIVERY, tenant, webhook)


def definition_rollout_workflow_id(tenant: Tenant, definition: DefinitionId) -> str:
    return _workflow_id(WorkflowName.DEFINITION_ROLLOUT, tenant, definition)


def retry_connections_workflow_id(tenant: Tenant, changed: IntegrationId | AppId) -> str:
    return _workflow_id(WorkflowName.RETRY_CONNECTIONS, tenant, changed)


def replaced_grants_workflow_id(tenant: Tenant, connection: ConnectionId) -> str:
    return _workflow_id(WorkflowName.REPLACED_GRANTS, tenant, connection)


def is_valid_workflow_id(value: str) -> bool:
    """True when Temporal takes `value` as a workflow id. One that it doesn't fails the whole task."""
    return 0 < len(value.encode()) <= _LONGEST_WORKFLOW_ID


class SearchAttribute(StrEnum):
    """Of a connection's workflow: few, prefixed, and rarely changed.

    On SQL visibility stores a namespace has ten keywords in all.
    """

    TENANT = "EvergrantTenant"
    PROVIDER = "EvergrantProvider"
    INTEGRATION = "EvergrantIntegration"
    STATE = "EvergrantState"
    SUBJECT = "EvergrantSubject"  # a keyed hash, never the subject
