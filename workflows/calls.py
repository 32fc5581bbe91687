"""Every activity a workflow may call: one typed wrapper each, with its name, limits and retries.

Domain failures come back as results, so that `core` decides about them. What is raised is
the store's own trouble, and a lost worker; Temporal retries that for ever.
"""

from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.common import Priority, RetryPolicy

with workflow.unsafe.imports_passed_through():
    from evergrant_server.core.attempt import LIMITS
    from evergrant_server.core.choice import LookUp
    from evergrant_server.core.late_messages import VerifyLateAnswer
    from evergrant_server.core.messages import (
        ActivityName,
        AnnounceExpiry,
        AskRevocation,
        Discover,
        Discovered,
        DropExport,
        EndConsent,
        ExchangeCode,
        ExportPage,
        ExportProgress,
        GrantNews,
        MintGrant,
        RefreshGrant,
        RevocationNews,
        RevokeGrant,
        RunEnds,
    )
    from evergrant_server.core.onboarding import DefinitionCall, DefinitionNews
    from evergrant_server.core.pushing import ACTIVITY_PUSH_REQUEST, Pushed, PushRequest
    from evergrant_server.core.receivers import ACTIVITY_FETCH_KEYS, FetchKeys, KeysFetched
    from evergrant_server.core.upkeep import (
        ACTIVITY_LOOK_ELSEWHERE,
        LookedElsewhere,
        LookElsewhere,
        MetadataRead,
        ReconcileOrder,
        Reconciliation,
        RereadMetadata,
    )
    from evergrant_server.core.webhook_messages import DeliverDue, DeliveryRound

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


async def exchange_code(order: ExchangeCode) -> GrantNews:
    """Spend the authorization code of a consent (RFC 6749 section 4.1.3)."""
    return await workflow.execute_activity(
        ActivityName.EXCHANGE_CODE,
        order,
        result_type=GrantNews,
        summary=f"code of {order.consent_id}",
        **_PROVIDER,
    )


async def mint_grant(order: MintGrant) -> GrantNews:
    """Make the first tokens from what we hold ourselves (RFC 6749 section 4.4, RFC 7523)."""
    return await workflow.execute_activity(
        ActivityName.MINT_GRANT, order, result_type=GrantNews, summary=f"for {order.consent_id}", **_PROVIDER
    )


async def poll_device(order: MintGrant) -> GrantNews:
    """Get a device code, or ask about it once (RFC 8628 sections 3.1 and 3.4)."""
    return await workflow.execute_activity(
        ActivityName.POLL_DEVICE, order, result_type=GrantNews, summary=f"for {order.consent_id}", **_PROVIDER
    )


async def refresh_grant(order: RefreshGrant) -> GrantNews:
    """Spend the refresh token of a generation (RFC 6749 section 6)."""
    return await workflow.execute_activity(
        ActivityName.REFRESH_GRANT,
        order,
        result_type=GrantNews,
        summary=f"from generation {order.generation}" + (" if leased" if order.only_if_leased else ""),
        **_PROVIDER,
    )


async def revoke_grant(order: RevokeGrant) -> RevocationNews:
    """Tell the provider (RFC 7009 section 2) and write `revoked` once it is true."""
    return await workflow.execute_activity(
        ActivityName.REVOKE_GRANT, order, result_type=RevocationNews, summary="at the provider", **_PROVIDER
    )


async def ask_revocation(order: AskRevocation) -> None:
    """Write `revoking`: from that commit on no lease leaves."""
    await workflow.execute_activity(
        ActivityName.ASK_REVOCATION, order, summary="no lease from here on", **_STORE
    )


async def verify_late_answer(order: VerifyLateAnswer) -> GrantNews:
    """Find out, by a refresh, whether an answer that came too late is any good."""
    return await workflow.execute_activity(
        ActivityName.VERIFY_LATE_ANSWER,
        order,
        result_type=GrantNews,
        summary=f"of {order.attempt_id}",
        **_PROVIDER,
    )


async def look_up(order: LookUp) -> GrantNews:
    """Ask the provider which accounts the grant reaches. Nothing is spent by that."""
    return await workflow.execute_activity(
        ActivityName.LOOK_UP, order, result_type=GrantNews, summary="which accounts", **_PROVIDER
    )


async def announce_expiry(order: AnnounceExpiry) -> None:
    """Record that the grant will end, so that somebody acts before it has."""
    await workflow.execute_activity(
        ActivityName.ANNOUNCE_EXPIRY, order, summary=f"{order.days} days before", **_STORE
    )


async def end_consent(order: EndConsent) -> GrantNews | None:
    """Write that nobody consented; news when the store says something else."""
    return await workflow.execute_activity(
        ActivityName.END_CONSENT,
        order,
        result_type=GrantNews | None,  # pyright: ignore[reportArgumentType]  # a union is read as well
        summary="denied" if order.denied else "deadline passed",
        **_STORE,
    )


async def run_ends(order: RunEnds) -> None:
    """Have this run's history exported once it has closed."""
    await workflow.execute_activity(ActivityName.RUN_ENDS, order, summary="export this history", **_STORE)


async def discover_endpoints(order: Discover) -> Discovered:
    """Read an issuer's metadata and pin it (RFC 8414 section 3)."""
    return await workflow.execute_activity(
        ActivityName.DISCOVER,
        order,
        result_type=Discovered,
        start_to_close_timeout=timedelta(seconds=60),
        retry_policy=RetryPolicy(maximum_attempts=3, initial_interval=timedelta(seconds=1)),
        summary=str(order.integration_id),
    )


async def export_page(order: ExportPage) -> ExportProgress:
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


async def drop_export(order: DropExport) -> None:
    """Delete the sealed lines that nobody fetched."""
    await workflow.execute_activity(ActivityName.DROP_EXPORT, order, summary="nobody came for it", **_STORE)


async def reconcile(order: ReconcileOrder) -> Reconciliation:
    """Go through the store; a worker that takes over goes on where the last one was."""
    return await workflow.execute_activity(
        ActivityName.RECONCILE,
        order,
        result_type=Reconciliation,
        summary="every live connection",
        start_to_close_timeout=timedelta(hours=1),
        heartbeat_timeout=timedelta(seconds=20),
        retry_policy=RetryPolicy(
            initial_interval=timedelta(seconds=1), maximum_interval=timedelta(seconds=30)
        ),
    )


async def look_elsewhere(order: LookElsewhere) -> LookedElsewhere:
    """Ask providers whether grants still live (RFC 7662); what isn't reached comes first next time."""
    return await workflow.execute_activity(
        ACTIVITY_LOOK_ELSEWHERE,
        order,
        result_type=LookedElsewhere,
        summary="grants that ended elsewhere",
        start_to_close_timeout=timedelta(minutes=50),
        heartbeat_timeout=timedelta(seconds=120),
        retry_policy=RetryPolicy(maximum_attempts=3, initial_interval=timedelta(seconds=10)),
        priority=_AFTER_GRANTS,
    )


async def fetch_keys(order: FetchKeys) -> KeysFetched:
    """Read a transmitter's keys and pin them (RFC 7517)."""
    return await workflow.execute_activity(
        ACTIVITY_FETCH_KEYS,
        order,
        result_type=KeysFetched,
        summary=str(order.receiver_id),
        start_to_close_timeout=timedelta(seconds=60),
        retry_policy=RetryPolicy(maximum_attempts=5, initial_interval=timedelta(seconds=1)),
    )


async def push_request(order: PushRequest) -> Pushed:
    """Push an authorization request (RFC 9126 section 2). Nothing is spent by trying again."""
    return await workflow.execute_activity(
        ACTIVITY_PUSH_REQUEST,
        order,
        result_type=Pushed,
        summary=f"of {order.consent_id}",
        start_to_close_timeout=LIMITS.answer + _SLACK,
        heartbeat_timeout=timedelta(seconds=5),
        retry_policy=RetryPolicy(maximum_attempts=5, initial_interval=timedelta(seconds=1)),
    )


async def deliver_due(order: DeliverDue) -> DeliveryRound:
    """Send a webhook what is due."""
    return await workflow.execute_activity(
        ActivityName.DELIVER_DUE,
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


async def check_definition(order: DefinitionCall) -> DefinitionNews:
    """Look at a proposed definition, its hosts and its endpoints."""
    return await workflow.execute_activity(
        ActivityName.CHECK_DEFINITION,
        order,
        result_type=DefinitionNews,
        summary="schema, hosts, endpoints",
        start_to_close_timeout=timedelta(seconds=180),
        heartbeat_timeout=timedelta(seconds=10),
        retry_policy=RetryPolicy(
            initial_interval=timedelta(seconds=1), maximum_interval=timedelta(seconds=30)
        ),
    )


async def decide_definition(order: DefinitionCall) -> DefinitionNews:
    """Carry out what an admin decided."""
    return await workflow.execute_activity(
        ActivityName.DECIDE_DEFINITION, order, result_type=DefinitionNews, summary="as decided", **_STORE
    )


async def watch_definition(order: DefinitionCall) -> DefinitionNews:
    """Roll a staged definition on or back, or let it be."""
    return await workflow.execute_activity(
        ActivityName.WATCH_DEFINITION, order, result_type=DefinitionNews, summary="the stage so far", **_STORE
    )


async def reread_metadata(order: RereadMetadata) -> MetadataRead:
    """Compare discovered metadata with what issuers publish now."""
    return await workflow.execute_activity(
        ActivityName.REREAD_METADATA,
        order,
        result_type=MetadataRead,
        summary="discovered metadata",
        start_to_close_timeout=timedelta(minutes=30),
        heartbeat_timeout=timedelta(seconds=20),
        retry_policy=RetryPolicy(maximum_attempts=3, initial_interval=timedelta(seconds=5)),
    )
