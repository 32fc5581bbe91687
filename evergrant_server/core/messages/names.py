"""Every name of a workflow, activity, signal, update and query, the task queue, the workflow ids.

A name is a contract: it stands in histories. Add, never rename.
"""

import hashlib
import re
from enum import StrEnum

from evergrant_server.core.ids import (
    AccessRequestId,
    AgentStopId,
    AppId,
    CallApprovalId,
    ConnectionId,
    ConsentId,
    DefinitionId,
    ExportId,
    IntegrationId,
    PersonLoginId,
    ReceiverId,
    Tenant,
    TrustedIssuerId,
    WebhookId,
)

TASK_QUEUE = "evergrant"

_LONGEST_WORKFLOW_ID = 1000  # bytes, Temporal's own limit

CONNECTION_WORKFLOW_ID = re.compile(r"^connection:(?P<tenant>[a-z0-9-]+):(?P<connection>con_[0-9a-z]+)\Z")


class WorkflowName(StrEnum):
    ACCESS_REQUEST = "AccessRequestWorkflow"
    AGENT_STOP = "AgentStopWorkflow"
    CALL_APPROVAL = "CallApprovalWorkflow"
    CONNECTION = "ConnectionWorkflow"
    DEFINITION_ROLLOUT = "DefinitionRolloutWorkflow"
    DISCOVERY = "DiscoveryWorkflow"
    EXPORT = "ExportWorkflow"
    FETCH_ISSUER_KEYS = "FetchIssuerKeysWorkflow"
    FETCH_RECEIVER_KEYS = "FetchReceiverKeysWorkflow"
    INTROSPECTION = "IntrospectionWorkflow"
    PUSHED_AUTHORIZATION = "PushedAuthorizationWorkflow"
    READ_CLIENT_DOCUMENT = "ReadClientDocumentWorkflow"
    RECONCILE = "ReconcileWorkflow"
    REPLACED_GRANTS = "ReplacedGrantsWorkflow"
    REREAD_METADATA = "RereadMetadataWorkflow"
    RETRY_CONNECTIONS = "RetryConnectionsWorkflow"
    REVIEW_PERMITS = "ReviewPermitsWorkflow"
    TEMPORARY_CREDENTIALS = "TemporaryCredentialsWorkflow"
    VERIFY_LOGIN = "VerifyLoginWorkflow"
    VERIFY_PERSON = "VerifyPersonWorkflow"
    WEBHOOK_DELIVERY = "WebhookDeliveryWorkflow"


class ActivityName(StrEnum):
    # a connection's grant
    EXCHANGE_CODE = "exchange_code"
    REQUEST_CLIENT_GRANT = "request_client_grant"
    POLL_DEVICE_TOKEN = "poll_device_token"
    REFRESH_GRANT = "refresh_grant"
    VERIFY_LATE_TOKENS = "verify_late_tokens"
    LOOK_UP_ACCOUNTS = "look_up_accounts"
    ANNOUNCE_EXPIRY = "announce_expiry"
    END_CONSENT = "end_consent"
    LAPSE_CONSENT = "lapse_consent"
    VERIFY_LOGIN = "verify_login"
    VERIFY_PERSON = "verify_person"
    READ_CLIENT_DOCUMENT = "read_client_document"
    BEGIN_REVOCATION = "begin_revocation"
    REVOKE_GRANT = "revoke_grant"
    REVOKE_REPLACED_GRANTS = "revoke_replaced_grants"
    EXPORT_RUN_HISTORY = "export_run_history"
    # an integration
    DISCOVER_ENDPOINTS = "discover_endpoints"
    RETRY_CONNECTIONS = "retry_connections"
    FETCH_RECEIVER_KEYS = "fetch_receiver_keys"
    PUSH_AUTHORIZATION_REQUEST = "push_authorization_request"
    REQUEST_TEMPORARY_CREDENTIALS = "request_temporary_credentials"
    # a provider's definition
    CHECK_DEFINITION = "check_definition"
    APPLY_DEFINITION_DECISION = "apply_definition_decision"
    EVALUATE_ROLLOUT = "evaluate_rollout"
    # a trusted issuer of workload tokens
    FETCH_ISSUER_KEYS = "fetch_issuer_keys"
    # requests for access
    ADVANCE_ACCESS_REQUEST = "advance_access_request"
    REVIEW_PERMITS = "review_permits"
    # agents
    ADVANCE_CALL_APPROVAL = "advance_call_approval"
    ADVANCE_AGENT_STOP = "advance_agent_stop"
    # exports, webhooks and what recurs
    SEAL_EXPORT_PAGE = "seal_export_page"
    DELETE_EXPORT = "delete_export"
    DELIVER_WEBHOOKS = "deliver_webhooks"
    RECONCILE = "reconcile"
    REREAD_METADATA = "reread_metadata"
    INTROSPECT_GRANTS = "introspect_grants"


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


# What the ids of a workflow begin with. They belong to Evergrant: a run of another type under one is ended
# (ADR 0029). A schedule names the runs that it starts by itself.
_ID_PREFIXES = {
    WorkflowName.CONNECTION: "connection",
    WorkflowName.ACCESS_REQUEST: "access_request",
    WorkflowName.CALL_APPROVAL: "call_approval",
    WorkflowName.AGENT_STOP: "agent_stop",
    WorkflowName.EXPORT: "export",
    WorkflowName.WEBHOOK_DELIVERY: "webhook",
    WorkflowName.DEFINITION_ROLLOUT: "definition_rollout",
    WorkflowName.DISCOVERY: "discovery",
    WorkflowName.RETRY_CONNECTIONS: "retry_connections",
    WorkflowName.REPLACED_GRANTS: "replaced_grants",
    WorkflowName.FETCH_RECEIVER_KEYS: "receiver_keys",
    WorkflowName.FETCH_ISSUER_KEYS: "issuer_keys",
    WorkflowName.PUSHED_AUTHORIZATION: "pushed_authorization",
    WorkflowName.TEMPORARY_CREDENTIALS: "temporary_credentials",
    WorkflowName.VERIFY_LOGIN: "login",
    WorkflowName.VERIFY_PERSON: "person_login",
    WorkflowName.READ_CLIENT_DOCUMENT: "client_document",
}
_TYPES = {prefix: type for type, prefix in _ID_PREFIXES.items()}


def workflow_type_of(workflow_id: str) -> WorkflowName | None:
    """The type of the only workflow that may run under this id; None when the id isn't Evergrant's."""
    return _TYPES.get(workflow_id.partition(":")[0])


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


def export_workflow_id(tenant: Tenant, export: ExportId) -> str:
    return _workflow_id(WorkflowName.EXPORT, tenant, export)


def webhook_workflow_id(tenant: Tenant, webhook: WebhookId) -> str:
    return _workflow_id(WorkflowName.WEBHOOK_DELIVERY, tenant, webhook)


def definition_rollout_workflow_id(tenant: Tenant, definition: DefinitionId) -> str:
    return _workflow_id(WorkflowName.DEFINITION_ROLLOUT, tenant, definition)


def discovery_workflow_id(tenant: Tenant, integration: IntegrationId) -> str:
    return _workflow_id(WorkflowName.DISCOVERY, tenant, integration)


def retry_connections_workflow_id(tenant: Tenant, changed: IntegrationId | AppId) -> str:
    return _workflow_id(WorkflowName.RETRY_CONNECTIONS, tenant, changed)


def replaced_grants_workflow_id(tenant: Tenant, connection: ConnectionId) -> str:
    return _workflow_id(WorkflowName.REPLACED_GRANTS, tenant, connection)


def receiver_keys_workflow_id(tenant: Tenant, receiver: ReceiverId) -> str:
    return _workflow_id(WorkflowName.FETCH_RECEIVER_KEYS, tenant, receiver)


def issuer_keys_workflow_id(tenant: Tenant, issuer: TrustedIssuerId) -> str:
    return _workflow_id(WorkflowName.FETCH_ISSUER_KEYS, tenant, issuer)


def pushed_authorization_workflow_id(tenant: Tenant, consent: ConsentId, revision: int) -> str:
    """One for each click: a click that follows makes another request."""
    return _workflow_id(WorkflowName.PUSHED_AUTHORIZATION, tenant, consent, revision)


def temporary_credentials_workflow_id(tenant: Tenant, consent: ConsentId, revision: int) -> str:
    """One for each click: a click that follows asks for other credentials."""
    return _workflow_id(WorkflowName.TEMPORARY_CREDENTIALS, tenant, consent, revision)


def login_workflow_id(tenant: Tenant, consent: ConsentId, revision: int) -> str:
    """One for each login's callback."""
    return _workflow_id(WorkflowName.VERIFY_LOGIN, tenant, consent, revision)


def person_login_workflow_id(tenant: Tenant, login: PersonLoginId, revision: int) -> str:
    """One for each login's callback."""
    return _workflow_id(WorkflowName.VERIFY_PERSON, tenant, login, revision)


def client_document_workflow_id(client_id: str) -> str:
    """One for each document, for all who ask for it."""
    digest = hashlib.sha256(client_id.encode("utf-8", "surrogatepass")).hexdigest()
    return _workflow_id(WorkflowName.READ_CLIENT_DOCUMENT, digest)


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
