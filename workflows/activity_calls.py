"""Every activity a workflow may call: one typed wrapper each, with its name, limits and retries.

Domain failures come back as results, so that `core` decides about them. What is raised is
the store's own trouble, and a lost worker; Temporal retries that for ever.
"""

from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.common import Priority, RetryPolicy

with workflow.unsafe.imports_passed_through():
    from evergrant_server.core.lifecycle.account_choice import LookUpAccounts
    from evergrant_server.core.messages.connection import (
        ActivityName,
        AnnounceExpiry,
        BeginRevocation,
        DeleteExport,
        DiscoverEndpoints,
        DiscoveryResult,
        EndConsent,
        ExchangeCode,
        ExportProgress,
        ExportRunHistory,
        GrantResult,
        RefreshGrant,
        RequestFirstTokens,
        RevocationResult,
        RevokeGrant,
        SealExportPage,
    )
    from evergrant_server.core.messages.definition_rollout import DefinitionCall, DefinitionResult
    from evergrant_server.core.messages.late_tokens import VerifyLateTokens
    from evergrant_server.core.messages.maintenance import (
        ACTIVITY_INTROSPECT_GRANTS,
        IntrospectGrants,
        IntrospectGrantsResult,
        ReconcileRequest,
        ReconcileResult,
        RereadMetadata,
        RereadMetadataResult,
    )
    from evergrant_server.core.messages.par import (
        ACTIVITY_PUSH_AUTHORIZATION_REQUEST,
        PushAuthorizationRequest,
        PushResult,
    )
    from evergrant_server.core.messages.webhooks import DeliverWebhooks, DeliveryRound
    from evergrant_server.core.provider_events.receivers import (
        ACTIVITY_FETCH_RECEIVER_KEYS,
        FetchReceiverKeys,
        ReceiverKeysResult,
    )
    from evergrant_server.core.single_use.attempt import LIMITS

_SLACK = timedelta(seconds=30)  # reading, judging and committing

PROVIDER_TIME = LIMITS.send + LIMITS.answer + _SLACK  # all that is inside it: the section is never cut
_PROVIDER: dict[str, Any] = {
    "start_to_close_timeout": PROVIDER_TIME,
    # A worker that died is noticed after this; the next one asks `takeover` what to do.
    "heartbeat_timeout": timedelta(seconds=5),
    "retry_policy": RetryPolicy(
        initial_interval=timedelta(seconds=1),
        maximum_interval=timedelta(seconds=30),
    ),
}
_AFTER_GRANTS = Priority(priority_key=4)  # 3 is the default: news can wait, tokens can't
_STORE: dict[str, Any] = {
    "start_to_close_timeout": timedelta(seconds=20),
    "retry_policy": RetryPolicy(
        initial_interval=timedelta(milliseconds=500),
        maximum_interval=timedelta(seconds=30),
    ),
}


async def exchange_code(order: ExchangeCode) -> GrantResult:
    """Spend the authorization code of a consent (RFC 6749 section 4.1.3)."""
    return await workflow.execute_activity(
        ActivityName.EXCHANGE_CODE,
        order,
        result_type=GrantResult,
        summary=f"code of {order.consent_id}",
        **_PROVIDER,
    )


async def mint_grant(order: RequestFirstTokens) -> GrantResult:
    """Make the first tokens from what we hold ourselves (RFC 6749 section 4.4, RFC 7523)."""
    return await workflow.execute_activity(
        ActivityName.REQUEST_CLIENT_GRANT,
        order,
        result_type=GrantResult,
        summary=f"for {order.consent_id}",
        **_PROVIDER,
    )


async def poll_device(order: RequestFirstTokens) -> GrantResult:
    """Get a device code, or ask about it once (RFC 8628 sections 3.1 and 3.4)."""
    return await workflow.execute_activity(
        ActivityName.POLL_DEVICE_TOKEN,
        order,
        result_type=GrantResult,
        summary=f"for {order.consent_id}",
        **_PROVIDER,
    )


async def refresh_grant(order: RefreshGrant) -> GrantResult:
    """Spend the refresh token of a generation (RFC 6749 section 6)."""
    return await workflow.execute_activity(
        ActivityName.REFRESH_GRANT,
        order,
        result_type=GrantResult,
        summary=f"from generation {order.generation}" + (" if leased" if order.only_if_leased else ""),
        **_PROVIDER,
    )


async def revoke_grant(order: RevokeGrant) -> RevocationResult:
    """Tell the provider (RFC 7009 section 2) and write `revoked` once it is true."""
    return await workflow.execute_activity(
        ActivityName.REVOKE_GRANT, order, result_type=RevocationResult, summary="at the provider", **_PROVIDER
    )


async def ask_revocation(order: BeginRevocation) -> None:
    """Write `revoking`: from that commit on no lease leaves."""
    await workflow.execute_activity(
        ActivityName.BEGIN_REVOCATION, order, summary="no lease from here on", **_STORE
    )


async def verify_late_answer(order: VerifyLateTokens) -> GrantResult:
    """Find out, by a refresh, whether an answer that came too late is any good."""
    return await workflow.execute_activity(
        ActivityName.VERIFY_LATE_TOKENS,
        order,
        result_type=GrantResult,
        summary=f"of {order.attempt_id}",
        **_PROVIDER,
    )


async def look_up(order: LookUpAccounts) -> GrantResult:
    """Ask the provider which accounts the grant reaches. Nothing is spent by that."""
    return await workflow.execute_activity(
        ActivityName.LOOK_UP_ACCOUNTS, order, result_type=GrantResult, summary="which accounts", **_PROVIDER
    )


async def announce_expiry(order: AnnounceExpiry) -> None:
    """Record that the grant will end, so that somebody acts before it has."""
    await workflow.execute_activity(
        ActivityName.ANNOUNCE_EXPIRY, order, summary=f"{order.days} days before", **_STORE
    )


async def end_consent(order: EndConsent) -> GrantResult | None:
    """Write that nobody consented; news when the store says something else."""
    return await workflow.execute_activity(
        ActivityName.END_CONSENT,
        order,
        result_type=GrantResult | None,  # pyright: ignore[reportArgumentType]  # a union is read as well
        summary="denied" if order.denied else "deadline passed",
        **_STORE,
    )


async def run_ends(order: ExportRunHistory) -> None:
    """Have this run's history exported once it has closed."""
    await workflow.execute_activity(
        ActivityName.EXPORT_RUN_HISTORY, order, summary="export this history", **_STORE
    )


async def discover_endpoints(order: DiscoverEndpoints) -> DiscoveryResult:
    """Read an issuer's metadata and pin it (RFC 8414 section 3)."""
    return await workflow.execute_activity(
        ActivityName.DISCOVER_ENDPOINTS,
        order,
        result_type=DiscoveryResult,
        start_to_close_timeout=timedelta(seconds=60),
        retry_policy=RetryPolicy(maximum_attempts=3, initial_interval=timedelta(seconds=1)),
        summary=str(order.integration_id),
    )


async def export_page(order: SealExportPage) -> ExportProgress:
    """Seal one page of grants to the export's key."""
    return await workflow.execute_activity(
        ActivityName.EXPORT_PAGE,
        order,
        result_type=ExportProgress,
        summary=f"page {order.page + 1}",
        start_to_close_timeout=timedelta(seconds=120),
        heartbeat_timeout=timedelta(seconds=10),
        retry_policy=RetryPolicy(
            initial_interval=timedelta(milliseconds=500), maximum_interval=timedelta(seconds=30)
        ),
    )


async def drop_export(order: DeleteExport) -> None:
    """Delete the sealed lines that nobody fetched."""
    await workflow.execute_activity(ActivityName.DELETE_EXPORT, order, summary="nobody came for it", **_STORE)


async def reconcile(order: ReconcileRequest) -> ReconcileResult:
    """Go through the store; a worker that takes over goes on where the last one was."""
    return await workflow.execute_activity(
        ActivityName.RECONCILE,
        order,
        result_type=ReconcileResult,
        summary="every live connection",
        start_to_close_timeout=timedelta(hours=1),
        heartbeat_timeout=timedelta(seconds=20),
        retry_policy=RetryPolicy(
            initial_interval=timedelta(seconds=1), maximum_interval=timedelta(seconds=30)
        ),
    )


async def look_elsewhere(order: IntrospectGrants) -> IntrospectGrantsResult:
    """Ask providers whether grants still live (RFC 7662); what isn't reached comes first next time."""
    return await workflow.execute_activity(
        ACTIVITY_INTROSPECT_GRANTS,
        order,
        result_type=IntrospectGrantsResult,
        summary="grants that ended elsewhere",
        start_to_close_timeout=timedelta(minutes=50),
        heartbeat_timeout=timedelta(seconds=120),
        retry_policy=RetryPolicy(maximum_attempts=3, initial_interval=timedelta(seconds=10)),
        priority=_AFTER_GRANTS,
    )


async def fetch_keys(order: FetchReceiverKeys) -> ReceiverKeysResult:
    """Read a transmitter's keys and pin them (RFC 7517)."""
    return await workflow.execute_activity(
        ACTIVITY_FETCH_RECEIVER_KEYS,
        order,
        result_type=ReceiverKeysResult,
        summary=str(order.receiver_id),
        start_to_close_timeout=timedelta(seconds=60),
        retry_policy=RetryPolicy(maximum_attempts=5, initial_interval=timedelta(seconds=1)),
    )


async def push_request(order: PushAuthorizationRequest) -> PushResult:
    """Push an authorization request (RFC 9126 section 2). Nothing is spent by trying again."""
    return await workflow.execute_activity(
        ACTIVITY_PUSH_AUTHORIZATION_REQUEST,
        order,
        result_type=PushResult,
        summary=f"of {order.consent_id}",
        start_to_close_timeout=LIMITS.answer + _SLACK,
        heartbeat_timeout=timedelta(seconds=5),
        retry_policy=RetryPolicy(maximum_attempts=5, initial_interval=timedelta(seconds=1)),
    )


async def deliver_due(order: DeliverWebhooks) -> DeliveryRound:
    """Send a webhook what is due."""
    return await workflow.execute_activity(
        ActivityName.DELIVER_WEBHOOKS,
        order,
        result_type=DeliveryRound,
        summary="a round of deliveries",
        start_to_close_timeout=timedelta(minutes=3),
        heartbeat_timeout=timedelta(seconds=10),
        retry_policy=RetryPolicy(
            initial_interval=timedelta(seconds=1), maximum_interval=timedelta(minutes=1)
        ),
        priority=_AFTER_GRANTS,
    )


async def check_definition(order: DefinitionCall) -> DefinitionResult:
    """Look at a proposed definition, its hosts and its endpoints."""
    return await workflow.execute_activity(
        ActivityName.CHECK_DEFINITION,
        order,
        result_type=DefinitionResult,
        summary="schema, hosts, endpoints",
        start_to_close_timeout=timedelta(seconds=180),
        heartbeat_timeout=timedelta(seconds=10),
        retry_policy=RetryPolicy(
            initial_interval=timedelta(seconds=1), maximum_interval=timedelta(seconds=30)
        ),
    )


async def decide_definition(order: DefinitionCall) -> DefinitionResult:
    """Carry out what an admin decided."""
    return await workflow.execute_activity(
        ActivityName.APPLY_DEFINITION_DECISION,
        order,
        result_type=DefinitionResult,
        summary="as decided",
        **_STORE,
    )


async def watch_definition(order: DefinitionCall) -> DefinitionResult:
    """Roll a staged definition on or back, or let it be."""
    return await workflow.execute_activity(
        ActivityName.EVALUATE_ROLLOUT,
        order,
        result_type=DefinitionResult,
        summary="the stage so far",
        **_STORE,
    )


async def reread_metadata(order: RereadMetadata) -> RereadMetadataResult:
    """Compare discovered metadata with what issuers publish now."""
    return await workflow.execute_activity(
        ActivityName.REREAD_METADATA,
        order,
        result_type=RereadMetadataResult,
        summary="discovered metadata",
        start_to_close_timeout=timedelta(minutes=30),
        heartbeat_timeout=timedelta(seconds=20),
        retry_policy=RetryPolicy(maximum_attempts=3, initial_interval=timedelta(seconds=5)),
    )
