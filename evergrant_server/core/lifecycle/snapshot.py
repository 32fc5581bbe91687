"""The store's view of a connection: the state that a run starts with, a grant's facts, and a drift. Pure.

The store is written first and the workflow signalled at once, so they differ for moments only,
unless one was set back: the store by a backup, the workflow by an operator's reset.
"""

from datetime import datetime
from enum import StrEnum

from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.grant import FollowUp, Grant
from evergrant_server.core.ids import ConsentId
from evergrant_server.core.integrations import RefreshRules
from evergrant_server.core.lifecycle.grants import grant_facts_of
from evergrant_server.core.lifecycle.schedule import NEWEST_RULES
from evergrant_server.core.messages.activities import GrantResult
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.connection import (
    ConnectionDescription,
    ConnectionStart,
    ConnectionState,
    EventKind,
    LifecycleEvent,
)
from evergrant_server.core.messages.names import connection_workflow_id
from evergrant_server.core.outbox import BULK, OutboxKind, OutboxMessage, outbox_message

FIRST_GENERATION = 1  # that an import installs

_SHARED_FACTS = {
    "generation", "obtained_at", "expires_at", "refreshable", "refresh_expires_at", "short_lived",
    "access_generation",
}  # fmt: skip


def grant_result_of(
    connection: Connection, grant: Grant, rules: RefreshRules, announce_days: tuple[int, ...] | None = None
) -> GrantResult:
    """The facts of the grant that the store holds now. A short-lived first token has no minimum age."""
    return GrantResult(
        state=connection.state,
        **grant.model_dump(include=_SHARED_FACTS),
        refresh_token_idle_s=rules.refresh_token_idle_s,
        margin_s=rules.margin_s,
        min_age_s=None if grant.short_lived else rules.min_age_s,
        ends_together=grant.ends_together,
        account_lookup_needed=connection.follow_up is FollowUp.LOOKING_UP,
        choice_pending=connection.follow_up is FollowUp.CHOOSING,
        announce_days=announce_days,
    )


def state_from_store(
    connection: Connection,
    grant: Grant | None,
    rules: RefreshRules | None,
    now: datetime,
    announce_days: tuple[int, ...] | None = None,
) -> ConnectionState:
    """The state from which a new run goes on.

    `rules` are the integration's, None while there is no grant; `announce_days` as in `GrantResult`.
    """
    state = ConnectionState(
        state=connection.state,
        generation=connection.generation,
        policy=connection.refresh_policy,
        flow=connection.flow,
        consent_deadline=connection.consent_deadline,
        reason=connection.reason,
        revoke_reason=connection.revoke_reason,
        retry_at=now if connection.state is LifecycleState.REVOKING else None,
        account_lookup_at=now if connection.follow_up is FollowUp.LOOKING_UP else None,
        choice_pending=connection.follow_up is FollowUp.CHOOSING,
    )
    if grant is None:
        return state
    result = grant_result_of(connection, grant, rules or RefreshRules(), announce_days)
    return state.__replace__(**grant_facts_of(result), end_known_at=grant.obtained_at)


def connection_start(
    connection: Connection,
    subject_hash: str,
    context: RequestContext,
    state: ConnectionState,
    pending_events: tuple[LifecycleEvent, ...] = (),
) -> ConnectionStart:
    """The input of a connection's first run, and of one that begins from the store."""
    return ConnectionStart(
        tenant=connection.tenant,
        connection_id=connection.id,
        integration_id=connection.integration_id,
        integration=connection.integration,
        provider=connection.provider,
        subject_hash=subject_hash,
        rules=NEWEST_RULES,
        state=state,
        context=context,
        pending_events=pending_events,
    )


def start_message(
    connection: Connection, subject_hash: str, context: RequestContext, now: datetime
) -> OutboxMessage:
    """The outbox message that starts a new connection's workflow; written with the row itself."""
    state = state_from_store(connection, None, None, now)
    start = connection_start(connection, subject_hash, context, state)
    target = connection_workflow_id(connection.tenant, connection.id)
    return outbox_message(connection.tenant, OutboxKind.START_WORKFLOW, target, start, now)


def import_message(
    connection: Connection,
    consent_id: ConsentId,
    subject_hash: str,
    context: RequestContext,
    now: datetime,
    *,
    in_background: bool,
    refreshes: bool = False,
) -> OutboxMessage:
    """As `start_message`, for a connection whose tokens the store holds: its run begins with installing
    them, and with a refresh if it `refreshes`; no signal and no update is needed."""
    state = state_from_store(connection, None, None, now)
    granted = LifecycleEvent(kind=EventKind.CONSENT_GRANTED, consent_id=consent_id, context=context)
    events = (granted,)
    if refreshes:
        kind = EventKind.REFRESH_REQUESTED
        events += (LifecycleEvent(kind=kind, seen_generation=FIRST_GENERATION, context=context),)
    start = connection_start(connection, subject_hash, context, state, events)
    target = connection_workflow_id(connection.tenant, connection.id)
    name = BULK if in_background else ""
    return outbox_message(connection.tenant, OutboxKind.START_WORKFLOW, target, start, now, name=name)


class Drift(StrEnum):
    """Which of store and workflow is behind, and in what."""

    NONE = "none"
    STORE_BEHIND = "store behind"  # a newer generation was installed: the refresh token may be spent
    STORE_LOST_REVOCATION = "store lost a revocation"
    WORKFLOW_MISSED_REVOCATION = "workflow missed a revocation"
    WORKFLOW_BEHIND = "workflow behind"  # it waits for what has happened already


def find_drift(stored: Connection, known: ConnectionDescription) -> Drift:
    """Compare. A higher generation is the later one; a revocation outweighs everything."""
    revoking = stored.state is LifecycleState.REVOKING
    workflow_knows = known.state in (LifecycleState.REVOKING, LifecycleState.REVOKED)
    if workflow_knows and not (revoking or stored.state is LifecycleState.REVOKED):
        return Drift.STORE_LOST_REVOCATION
    if revoking and not workflow_knows:
        return Drift.WORKFLOW_MISSED_REVOCATION
    if known.generation > stored.generation:
        return Drift.STORE_BEHIND
    if stored.generation > known.generation and stored.state is not known.state:
        return Drift.WORKFLOW_BEHIND
    return Drift.NONE
