"""Every activity that a workflow may call: name, types, time limits, retries.

A failure of the provider, the client or the subject comes back as a result, so that `core`
decides about it. What an activity raises is the platform's own trouble, which Temporal retries.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Generic, TypeVar

from temporalio import workflow
from temporalio.common import Priority, RetryPolicy

with workflow.unsafe.imports_passed_through():
    from evergrant_server.core.messages import activities as m
    from evergrant_server.core.messages import agents, decisions, export, integrations, maintenance
    from evergrant_server.core.messages.base import Message, Provenance
    from evergrant_server.core.messages.names import ActivityName
    from evergrant_server.core.single_use.attempt import LIMITS

RequestT = TypeVar("RequestT", bound=Message)
ResultT = TypeVar("ResultT")

_SECOND, _MINUTE, _HOUR = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1)
_JUDGE_AND_COMMIT = timedelta(seconds=30)
PROVIDER_TIMEOUT = LIMITS.send + LIMITS.answer + _JUDGE_AND_COMMIT  # a critical section is never cut
_AFTER_TOKENS = Priority(priority_key=4)  # 3 is the default; the fairness key is that of the run


@dataclass(frozen=True)
class ActivityCall(Generic[RequestT, ResultT]):
    """Awaited with the activity's request. `summary` is what the Temporal UI shows."""

    name: ActivityName
    result_type: Any  # None where the activity returns nothing
    limits: dict[str, Any]
    summary: str | Callable[[RequestT], str]

    async def __call__(self, request: RequestT) -> ResultT:
        return await workflow.execute_activity(self.name, request, **self._options(request))

    def start(self, request: RequestT) -> workflow.ActivityHandle[ResultT]:
        """Begin it. One that is cancelled is waited for until it has ended."""
        waits = workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED
        return workflow.start_activity(self.name, request, cancellation_type=waits, **self._options(request))

    def _options(self, request: RequestT) -> dict[str, Any]:
        summary = self.summary if isinstance(self.summary, str) else self.summary(request)
        return {"result_type": self.result_type, "summary": summary, **self.limits}


def provenance() -> Provenance:
    """Where this run is now; an activity records it with what it does."""
    info = workflow.info()
    return Provenance(
        workflow_id=info.workflow_id, run_id=info.run_id, event_id=info.get_current_history_length()
    )


def _limits(
    timeout: timedelta,
    heartbeat: timedelta | None = None,
    priority: Priority = Priority.default,
    **retry: Any,
) -> dict[str, Any]:
    """Without `maximum_attempts` it is retried for as long as it takes."""
    policy = RetryPolicy(**{"initial_interval": _SECOND, "maximum_interval": _SECOND * 30, **retry})
    limits = {"start_to_close_timeout": timeout, "heartbeat_timeout": heartbeat}
    return {**limits, "retry_policy": policy, "priority": priority}


# after a missed heartbeat the next worker decides about the attempt of the one that died
_PROVIDER = _limits(PROVIDER_TIMEOUT, heartbeat=_SECOND * 5)
_STORE = _limits(_SECOND * 20, initial_interval=_SECOND / 2)

# --- a connection ------------------------------------------------------------------------

exchange_code = ActivityCall[m.ExchangeCode, m.GrantResult](
    ActivityName.EXCHANGE_CODE, m.GrantResult, _PROVIDER, lambda it: f"code of {it.consent_id}"
)
request_client_grant = ActivityCall[m.RequestFirstTokens, m.GrantResult](
    ActivityName.REQUEST_CLIENT_GRANT, m.GrantResult, _PROVIDER, lambda it: f"for {it.consent_id}"
)
poll_device_token = ActivityCall[m.RequestFirstTokens, m.GrantResult](
    ActivityName.POLL_DEVICE_TOKEN, m.GrantResult, _PROVIDER, lambda it: f"for {it.consent_id}"
)
refresh_grant = ActivityCall[m.RefreshGrant, m.GrantResult](
    ActivityName.REFRESH_GRANT,
    m.GrantResult,
    _PROVIDER,
    lambda it: f"from generation {it.generation}" + (" if leased" if it.only_if_leased else ""),
)
refresh_ahead = replace(refresh_grant, limits={**_PROVIDER, "priority": _AFTER_TOKENS})
verify_late_tokens = ActivityCall[m.VerifyLateTokens, m.GrantResult](
    ActivityName.VERIFY_LATE_TOKENS, m.GrantResult, _PROVIDER, lambda it: f"of {it.attempt_id}"
)
look_up_accounts = ActivityCall[m.LookUpAccounts, m.GrantResult](
    ActivityName.LOOK_UP_ACCOUNTS, m.GrantResult, _PROVIDER, "which accounts the grant reaches"
)
revoke_grant = ActivityCall[m.RevokeGrant, m.RevocationResult](
    ActivityName.REVOKE_GRANT, m.RevocationResult, _PROVIDER, "at the provider"
)
revoke_replaced_grants = ActivityCall[m.RevokeReplacedGrants, m.ReplacedRevocationResult](
    ActivityName.REVOKE_REPLACED_GRANTS, m.ReplacedRevocationResult, _PROVIDER, "at the provider"
)
begin_revocation = ActivityCall[m.BeginRevocation, None](
    ActivityName.BEGIN_REVOCATION, None, _STORE, "no lease from here on"
)
announce_expiry = ActivityCall[m.AnnounceExpiry, None](
    ActivityName.ANNOUNCE_EXPIRY, None, _STORE, lambda it: f"{it.days} days before"
)
end_consent = ActivityCall[m.EndConsent, m.GrantResult | None](
    ActivityName.END_CONSENT,
    m.GrantResult | None,
    _STORE,
    lambda it: "denied" if it.denied else "deadline passed",
)
lapse_consent = ActivityCall[m.LapseConsent, m.LapseResult](
    ActivityName.LAPSE_CONSENT, m.LapseResult, _STORE, lambda it: f"{it.consent_id} was not confirmed"
)
export_run_history = ActivityCall[m.ExportRunHistory, None](
    ActivityName.EXPORT_RUN_HISTORY, None, _STORE, "export this run's history"
)

# --- an integration ----------------------------------------------------------------------

discover_endpoints = ActivityCall[integrations.DiscoverEndpoints, integrations.DiscoveryResult](
    ActivityName.DISCOVER_ENDPOINTS,
    integrations.DiscoveryResult,
    _limits(_MINUTE, maximum_attempts=3),
    lambda it: it.integration_id,
)
retry_connections = ActivityCall[integrations.RetryConnections, integrations.RetryConnectionsResult](
    ActivityName.RETRY_CONNECTIONS,
    integrations.RetryConnectionsResult,
    _limits(_HOUR, heartbeat=_SECOND * 10),
    lambda it: f"after {it.integration_id or it.source_app} changed",
)
fetch_receiver_keys = ActivityCall[integrations.FetchReceiverKeys, integrations.ReceiverKeysResult](
    ActivityName.FETCH_RECEIVER_KEYS,
    integrations.ReceiverKeysResult,
    _limits(_MINUTE, maximum_attempts=5),
    lambda it: it.receiver_id,
)
fetch_issuer_keys = ActivityCall[maintenance.FetchIssuerKeys, maintenance.IssuerKeysResult](
    ActivityName.FETCH_ISSUER_KEYS,
    maintenance.IssuerKeysResult,
    _limits(_MINUTE, maximum_attempts=5),
    lambda it: it.issuer_id,
)
push_authorization_request = ActivityCall[integrations.PushAuthorizationRequest, integrations.PushResult](
    ActivityName.PUSH_AUTHORIZATION_REQUEST,
    integrations.PushResult,
    _limits(LIMITS.answer + _JUDGE_AND_COMMIT, heartbeat=_SECOND * 5, maximum_attempts=5),
    lambda it: f"of {it.consent_id}",
)
request_temporary_credentials = ActivityCall[
    integrations.RequestTemporaryCredentials, integrations.TemporaryCredentialsResult
](
    ActivityName.REQUEST_TEMPORARY_CREDENTIALS,
    integrations.TemporaryCredentialsResult,
    _limits(_MINUTE, maximum_attempts=2, initial_interval=_SECOND / 2),
    lambda it: f"for {it.consent_id}",
)

verify_login = ActivityCall[integrations.VerifyLogin, integrations.LoginResult](
    ActivityName.VERIFY_LOGIN,
    integrations.LoginResult,
    _limits(_MINUTE, maximum_attempts=1),  # its code is good for one use; the subject logs in again
    lambda it: f"of {it.consent_id}",
)

verify_person = ActivityCall[integrations.VerifyPerson, integrations.LoginResult](
    ActivityName.VERIFY_PERSON,
    integrations.LoginResult,
    _limits(_MINUTE, maximum_attempts=1),  # likewise
    lambda it: f"of {it.login_id}",
)

read_client_document = ActivityCall[integrations.ReadClientDocument, integrations.ClientDocumentResult](
    ActivityName.READ_CLIENT_DOCUMENT,
    integrations.ClientDocumentResult,
    _limits(_MINUTE, maximum_attempts=2, initial_interval=_SECOND / 2),
    "metadata document of a client",
)

# --- a definition ------------------------------------------------------------------------

check_definition = ActivityCall[integrations.DefinitionCall, integrations.DefinitionResult](
    ActivityName.CHECK_DEFINITION,
    integrations.DefinitionResult,
    _limits(_MINUTE * 3, heartbeat=_SECOND * 10),
    "schema, hosts, endpoints",
)
apply_definition_decision = ActivityCall[integrations.DefinitionCall, integrations.DefinitionResult](
    ActivityName.APPLY_DEFINITION_DECISION, integrations.DefinitionResult, _STORE, "the admin's decision"
)
evaluate_rollout = ActivityCall[integrations.DefinitionCall, integrations.DefinitionResult](
    ActivityName.EVALUATE_ROLLOUT, integrations.DefinitionResult, _STORE, "evaluate the rollout stage"
)

# --- access, agents ----------------------------------------------------------------------

advance_access_request = ActivityCall[decisions.AccessRequestCall, decisions.DecisionProgress](
    ActivityName.ADVANCE_ACCESS_REQUEST, decisions.DecisionProgress, _STORE, "what is due"
)
review_permits = ActivityCall[decisions.ReviewPermits, decisions.ReviewPermitsResult](
    ActivityName.REVIEW_PERMITS,
    decisions.ReviewPermitsResult,
    _limits(_HOUR, _SECOND * 20, _AFTER_TOKENS, maximum_attempts=3),
    "permits that no lease has used",
)

advance_call_approval = ActivityCall[decisions.CallApprovalCall, decisions.DecisionProgress](
    ActivityName.ADVANCE_CALL_APPROVAL, decisions.DecisionProgress, _STORE, "what is due"
)
advance_agent_stop = ActivityCall[agents.AgentStopCall, agents.AgentStopProgress](
    ActivityName.ADVANCE_AGENT_STOP, agents.AgentStopProgress, _STORE, "what the agent has left"
)

# --- exports, webhooks, maintenance ------------------------------------------------------

seal_export_page = ActivityCall[export.SealExportPage, export.ExportProgress](
    ActivityName.SEAL_EXPORT_PAGE,
    export.ExportProgress,
    _limits(_MINUTE * 2, heartbeat=_SECOND * 10, initial_interval=_SECOND / 2),
    lambda it: f"page {it.page + 1}",
)
delete_export = ActivityCall[export.DeleteExport, None](
    ActivityName.DELETE_EXPORT, None, _STORE, "delete the unfetched export"
)
deliver_webhooks = ActivityCall[maintenance.DeliverWebhooks, maintenance.DeliveryRound](
    ActivityName.DELIVER_WEBHOOKS,
    maintenance.DeliveryRound,
    _limits(_MINUTE * 3, _SECOND * 10, _AFTER_TOKENS, maximum_interval=_MINUTE),
    "one round of deliveries",
)
reconcile = ActivityCall[maintenance.ReconcileRequest, maintenance.ReconcileResult](
    ActivityName.RECONCILE,
    maintenance.ReconcileResult,
    _limits(_HOUR, heartbeat=_SECOND * 20),
    "every live connection",
)
introspect_grants = ActivityCall[maintenance.IntrospectGrants, maintenance.IntrospectGrantsResult](
    ActivityName.INTROSPECT_GRANTS,
    maintenance.IntrospectGrantsResult,
    _limits(_MINUTE * 50, _MINUTE * 2, _AFTER_TOKENS, maximum_attempts=3, initial_interval=_SECOND * 10),
    "grants that introspection can check",
)
reread_metadata = ActivityCall[maintenance.RereadMetadata, maintenance.RereadMetadataResult](
    ActivityName.REREAD_METADATA,
    maintenance.RereadMetadataResult,
    _limits(_MINUTE * 30, heartbeat=_SECOND * 20, maximum_attempts=3, initial_interval=_SECOND * 5),
    "discovered metadata",
)
