"""The table of what a worker does: every activity that a workflow may call, and every job.

A job is an activity with a run of its own, of the generic workflow (`workflows.jobs`). Workflows read a
row's limits here; workers the turns; the relay, the API and the schedules how a job is started. A name is a
contract: it stands in histories, in workflow ids and in the outbox. Add, never rename.
"""

import hashlib
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from evergrant_server.core.messages import activities as m
from evergrant_server.core.messages import (
    agents,
    cells,
    decisions,
    erasure,
    export,
    incidents,
    integrations,
    keys,
    maintenance,
    questions,
)
from evergrant_server.core.messages.names import WORKFLOW_OF_PREFIX
from evergrant_server.core.messages.work import MINUTE, SECOND, Activity, Job, Limits, Recurrence, TurnKey
from evergrant_server.core.single_use.attempt import LIMITS

_JUDGE_AND_COMMIT = timedelta(seconds=30)
PROVIDER_TIMEOUT = LIMITS.send + LIMITS.answer + _JUDGE_AND_COMMIT  # a critical section is never cut

# after a missed heartbeat the next worker decides about the attempt of the one that died
_PROVIDER = Limits(PROVIDER_TIMEOUT, heartbeat=SECOND * 5)
_STORE = Limits(SECOND * 20, first_wait=SECOND / 2)
_PART = Limits(MINUTE * 3, heartbeat=SECOND * 10, first_wait=SECOND / 2)  # of an order

# --- a connection ------------------------------------------------------------------------

EXCHANGE_CODE = Activity(
    "exchange_code",
    m.ExchangeCode,
    m.GrantResult,
    _PROVIDER,
    lambda request: f"code of {request.consent_id}",
    TurnKey.of_integration,
)
REQUEST_CLIENT_GRANT = Activity(
    "request_client_grant",
    m.RequestFirstTokens,
    m.GrantResult,
    _PROVIDER,
    lambda request: f"for {request.consent_id}",
    TurnKey.of_integration,
)
POLL_DEVICE_TOKEN = Activity(
    "poll_device_token",
    m.RequestFirstTokens,
    m.GrantResult,
    _PROVIDER,
    lambda request: f"for {request.consent_id}",
    TurnKey.of_integration,
)
REFRESH_GRANT = Activity(
    "refresh_grant",
    m.RefreshGrant,
    m.GrantResult,
    _PROVIDER,
    lambda request: (
        f"from generation {request.generation}" + (" if leased" if request.only_if_leased else "")
    ),
    TurnKey.of_integration,
)
VERIFY_LATE_TOKENS = Activity(
    "verify_late_tokens",
    m.VerifyLateTokens,
    m.GrantResult,
    _PROVIDER,
    lambda request: f"of {request.attempt_id}",
    TurnKey.of_integration,
)
LOOK_UP_ACCOUNTS = Activity(
    "look_up_accounts",
    m.LookUpAccounts,
    m.GrantResult,
    _PROVIDER,
    "which accounts the grant reaches",
    TurnKey.of_integration,
)
REVOKE_GRANT = Activity(
    "revoke_grant", m.RevokeGrant, m.RevocationResult, _PROVIDER, "at the provider", TurnKey.of_integration
)
REVOKE_REPLACED_GRANTS = Activity(
    "revoke_replaced_grants",
    m.RevokeReplacedGrants,
    m.ReplacedRevocationResult,
    _PROVIDER,
    "at the provider",
    TurnKey.of_integration,
)
BEGIN_REVOCATION = Activity[m.BeginRevocation, None](
    "begin_revocation", m.BeginRevocation, None, _STORE, "no lease from here on"
)
ANNOUNCE_EXPIRY = Activity[m.AnnounceExpiry, None](
    "announce_expiry", m.AnnounceExpiry, None, _STORE, lambda request: f"{request.days} days before"
)
END_CONSENT = Activity[m.EndConsent, m.GrantResult | None](
    "end_consent",
    m.EndConsent,
    m.GrantResult | None,
    # it revokes late tokens at the provider
    Limits(PROVIDER_TIMEOUT, first_wait=SECOND / 2),
    lambda request: "denied" if request.denied else "deadline passed",
    TurnKey.of_integration,
)
LAPSE_CONSENT = Activity(
    "lapse_consent",
    m.LapseConsent,
    m.LapseResult,
    _STORE,
    lambda request: f"{request.consent_id} was not confirmed",
)
EXPORT_RUN_HISTORY = Activity[m.ExportRunHistory, None](
    "export_run_history", m.ExportRunHistory, None, _STORE, "export this run's history"
)

# --- steps of other workflows -------------------------------------------------------------

CHECK_DEFINITION = Activity(
    "check_definition",
    integrations.DefinitionCall,
    integrations.DefinitionResult,
    Limits(MINUTE * 3, heartbeat=SECOND * 10),
    "schema, hosts, endpoints",
    TurnKey.of_tenant,
)
APPLY_DEFINITION_DECISION = Activity(
    "apply_definition_decision",
    integrations.DefinitionCall,
    integrations.DefinitionResult,
    _STORE,
    "the admin's decision",
)
EVALUATE_ROLLOUT = Activity(
    "evaluate_rollout",
    integrations.DefinitionCall,
    integrations.DefinitionResult,
    _STORE,
    "evaluate the rollout stage",
)
RETRY_CONNECTIONS = Activity(
    "retry_connections",
    integrations.RetryConnections,
    integrations.RetryConnectionsResult,
    Limits(MINUTE * 60, heartbeat=SECOND * 10),
    lambda request: f"after {request.integration_id or request.source_app} changed",
)
ADVANCE_ACCESS_REQUEST = Activity(
    "advance_access_request", decisions.AccessRequestCall, decisions.DecisionProgress, _STORE, "what is due"
)
ADVANCE_CALL_APPROVAL = Activity(
    "advance_call_approval", decisions.CallApprovalCall, decisions.DecisionProgress, _STORE, "what is due"
)
ADVANCE_AGENT_STOP = Activity(
    "advance_agent_stop", agents.AgentStopCall, agents.AgentStopProgress, _STORE, "what the agent has left"
)
ADVANCE_ERASURE = Activity(
    "advance_erasure", erasure.ErasureCall, erasure.ErasureProgress, _PART, "the next part"
)
SEAL_EXPORT_PAGE = Activity(
    "seal_export_page",
    export.SealExportPage,
    export.ExportProgress,
    Limits(MINUTE * 2, heartbeat=SECOND * 10, first_wait=SECOND / 2),
    lambda request: f"page {request.page + 1}",
)
DELETE_EXPORT = Activity[export.DeleteExport, None](
    "delete_export", export.DeleteExport, None, _STORE, "delete the unfetched export"
)
DELIVER_WEBHOOKS = Activity(
    "deliver_webhooks",
    maintenance.DeliverWebhooks,
    maintenance.DeliveryRound,
    Limits(MINUTE * 3, heartbeat=SECOND * 10, longest_wait=MINUTE),
    "one round of deliveries",
    TurnKey.of_webhook,
    urgent=False,
)

ADVANCE_INCIDENT = Activity(
    "advance_incident", incidents.IncidentCall, incidents.IncidentProgress, _PART, "the next part"
)
ADVANCE_BULK = Activity(
    "advance_bulk", incidents.BulkCall, incidents.IncidentProgress, _PART, "the next part", urgent=False
)
ADVANCE_KEY_ROTATION = Activity(
    "advance_key_rotation",
    keys.KeyRotationCall,
    keys.KeyRotationProgress,
    # it moves pages for a while, or waits for the transactions of before
    Limits(MINUTE * 30, heartbeat=SECOND * 10),
    lambda request: f"{request.kind} keys, {request.progress.step or 'begins'}",
    urgent=False,
)

# --- jobs that the API has done, and mostly waits for --------------------------------------

DISCOVER_ENDPOINTS = Job(
    "discover_endpoints",
    integrations.DiscoverEndpoints,
    integrations.DiscoveryResult,
    Limits(MINUTE, tries=3),
    lambda request: request.integration_id,
    TurnKey.of_integration,
    title="endpoints of an integration",
    id_parts=lambda request: (request.tenant, request.integration_id),
)
FETCH_RECEIVER_KEYS = Job(
    "fetch_receiver_keys",
    integrations.FetchReceiverKeys,
    integrations.ReceiverKeysResult,
    Limits(MINUTE, tries=5),
    lambda request: request.receiver_id,
    TurnKey.of_tenant,
    title="keys of a security event transmitter",
    id_parts=lambda request: (request.tenant, request.receiver_id),
)
FETCH_ISSUER_KEYS = Job(
    "fetch_issuer_keys",
    maintenance.FetchIssuerKeys,
    maintenance.IssuerKeysResult,
    Limits(MINUTE, tries=5),
    lambda request: request.issuer_id,
    TurnKey.of_tenant,
    title="keys of a trusted issuer",
    id_parts=lambda request: (request.tenant, request.issuer_id),
)
PUSH_AUTHORIZATION_REQUEST = Job(
    "push_authorization_request",
    integrations.PushAuthorizationRequest,
    integrations.PushResult,
    Limits(LIMITS.answer + _JUDGE_AND_COMMIT, heartbeat=SECOND * 5, tries=5),
    lambda request: f"of {request.consent_id}",
    TurnKey.of_tenant,
    title="a pushed authorization request",
    # one for each click: a click that follows makes another request
    id_parts=lambda request: (request.tenant, request.consent_id, request.revision),
    once=True,
    within=MINUTE * 2,  # a browser waits
)
REQUEST_TEMPORARY_CREDENTIALS = Job(
    "request_temporary_credentials",
    integrations.RequestTemporaryCredentials,
    integrations.TemporaryCredentialsResult,
    Limits(MINUTE, tries=2, first_wait=SECOND / 2),
    lambda request: f"for {request.consent_id}",
    TurnKey.of_tenant,
    title="temporary credentials before the redirect to the provider",
    id_parts=lambda request: (request.tenant, request.consent_id, request.revision),
)
VERIFY_LOGIN = Job(
    "verify_login",
    integrations.VerifyLogin,
    integrations.LoginResult,
    Limits(MINUTE, tries=1),  # its code is good for one use; the subject logs in again
    lambda request: f"of {request.consent_id}",
    TurnKey.of_tenant,
    title="the subject's login before the redirect to the provider",
    id_parts=lambda request: (request.tenant, request.consent_id, request.revision),
)
VERIFY_PERSON = Job(
    "verify_person",
    integrations.VerifyPerson,
    integrations.LoginResult,
    Limits(MINUTE, tries=1),  # likewise
    lambda request: f"of {request.login_id}",
    TurnKey.of_tenant,
    title="the login of a person who administers",
    id_parts=lambda request: (request.tenant, request.login_id, request.revision),
)
READ_CLIENT_DOCUMENT = Job(
    "read_client_document",
    integrations.ReadClientDocument,
    integrations.ClientDocumentResult,
    Limits(MINUTE, tries=2, first_wait=SECOND / 2),
    "metadata document of a client",
    TurnKey.of_tenant,
    title="the metadata document of an OAuth client",
    # one for each document, for all who ask for it
    id_parts=lambda request: (
        hashlib.sha256(request.client_id.encode("utf-8", "surrogatepass")).hexdigest(),
    ),
)

ANSWER_QUESTION = Job(
    "answer_question",
    questions.AnswerQuestion,
    questions.AnswerProgress,
    Limits(MINUTE * 360, heartbeat=SECOND * 20),
    lambda request: request.question_id,
    urgent=False,
    title="answers a question about uses of connections, or about a subject",
    id_parts=lambda request: (request.tenant, request.question_id),
)

MOVE_TENANT = Job(
    "move_tenant",
    cells.MoveTenant,
    cells.MoveResult,
    Limits(MINUTE * 1440, heartbeat=SECOND * 20, first_wait=SECOND),
    lambda request: request.move_id,
    TurnKey.of_tenant,
    urgent=False,
    title="moves a tenant between cells",
    id_parts=lambda request: (request.tenant, request.move_id),
)

# --- jobs that recur ----------------------------------------------------------------------

RECONCILE = Job(
    "reconcile",
    maintenance.ReconcileRequest,
    maintenance.ReconcileResult,
    Limits(MINUTE * 60, heartbeat=SECOND * 20),
    "every live connection",
    title="starts missing workflows of live connections, and exports histories",
    # where the schedule is new, Temporal's database may have been lost with every connection's workflow
    recurrence=Recurrence(
        maintenance.ReconcileRequest(), lambda settings: settings.reconcile_interval, at_once=True
    ),
    following=maintenance.ReconcileRequest.following,
)
REREAD_METADATA = Job(
    "reread_metadata",
    maintenance.RereadMetadata,
    maintenance.RereadMetadataResult,
    Limits(MINUTE * 30, heartbeat=SECOND * 20, tries=3, first_wait=SECOND * 5),
    "discovered metadata",
    TurnKey.of_installation,
    title="compares discovered metadata with what issuers publish now",
    recurrence=Recurrence(maintenance.RereadMetadata(), lambda settings: settings.metadata_interval),
)
INTROSPECT_GRANTS = Job(
    "introspect_grants",
    maintenance.IntrospectGrants,
    maintenance.IntrospectGrantsResult,
    Limits(MINUTE * 50, heartbeat=MINUTE * 2, tries=3, first_wait=SECOND * 10),
    "grants that introspection can check",
    TurnKey.of_installation,
    urgent=False,
    title="introspects grants (RFC 7662) at providers that offer it",
    # a run takes the connections whose turn it is: each comes once in an interval
    recurrence=Recurrence(
        maintenance.IntrospectGrants(), lambda settings: max(settings.introspection_interval / 24, MINUTE)
    ),
)
REVIEW_PERMITS = Job(
    "review_permits",
    decisions.ReviewPermits,
    decisions.ReviewPermitsResult,
    Limits(MINUTE * 60, heartbeat=SECOND * 20, tries=3),
    "permits that no lease has used",
    urgent=False,
    title="proposes permits for removal that no lease has used for long",
    recurrence=Recurrence(decisions.ReviewPermits(), lambda _: MINUTE * 1440),
)
ROTATE_DUE_KEYS = Job(
    "rotate_due_keys",
    keys.RotateDueKeys,
    keys.RotateDueKeysResult,
    Limits(MINUTE * 5, heartbeat=SECOND * 20, tries=3),
    "tenants' keys that are older than the setting",
    urgent=False,
    title="rotates tenants' keys that are older than EVERGRANT_KEY_ROTATION",
    recurrence=Recurrence(keys.RotateDueKeys(), lambda _: MINUTE * 60),
)

DETECT_PATTERNS = Job(
    "detect_patterns",
    questions.DetectPatterns,
    questions.DetectPatternsResult,
    Limits(MINUTE * 30, heartbeat=SECOND * 20, tries=3),
    "audit records since the last pass",
    urgent=False,
    title="looks for uses that are unlike those before (EVERGRANT_DETECT_…)",
    recurrence=Recurrence(questions.DetectPatterns(), lambda settings: settings.detect_interval),
)

_ROWS: list[Activity[Any, Any]] = [row for row in tuple(globals().values()) if isinstance(row, Activity)]
ACTIVITIES: Mapping[str, Activity[Any, Any]] = {row.name: row for row in _ROWS}
JOBS: Mapping[str, Job[Any, Any]] = {row.name: row for row in _ROWS if isinstance(row, Job)}


def workflow_type_of(workflow_id: str) -> str | None:
    """The type of the only workflow that may run under this id; None when the id isn't Evergrant's."""
    prefix = workflow_id.partition(":")[0]
    job = JOBS.get(prefix)
    is_job = job is not None and job.id_parts is not None
    return prefix if is_job else WORKFLOW_OF_PREFIX.get(prefix)
