"""Starts the workflow of a connection from its rows in the store."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from evergrant_server.core.clock import Clock
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.grant import MAIN_SLOT
from evergrant_server.core.definition import Definition
from evergrant_server.core.errors import Failure
from evergrant_server.core.integrations import Integration, RefreshRules
from evergrant_server.core.lifecycle.snapshot import connection_start, state_from_store
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.connection import ConnectionStart, EventKind, LifecycleEvent
from evergrant_server.core.messages.names import connection_workflow_id
from evergrant_server.core.single_use.attempt import LIMITS
from evergrant_server.crypto.keyring import KeyRing
from evergrant_server.crypto.request_proof import prove_request
from evergrant_server.store import Store, Transaction
from evergrant_server.temporal_link import start_requests
from evergrant_server.temporal_link.link import TemporalLink

_RECONCILE = "reconcile"
RECONCILE_CONTEXT = RequestContext(by=_RECONCILE)

RefreshRulesLookup = Callable[[str, Sequence[Definition], str], RefreshRules]  # `Registry.refresh_rules`


class WorkflowStarter:
    """Starts a connection's workflow. Which connections need one is for the caller to find out."""

    def __init__(
        self,
        store: Store,
        link: TemporalLink,
        ring: KeyRing,
        clock: Clock,
        refresh_rules_of: RefreshRulesLookup,
        announce_days: tuple[int, ...] | None = None,
    ) -> None:
        self._store = store
        self._link = link
        self._ring = ring
        self._clock = clock
        self._refresh_rules_of = refresh_rules_of
        self._announce_days = announce_days

    async def start(
        self,
        connection: Connection,
        *,
        known_generation: int = 0,
        replace_running: bool = False,
        pending_replies: tuple[str, ...] = (),
    ) -> bool:
        """Start the workflow, unless the connection has reached a final state meanwhile, or its tenant lives
        in another cell.

        `known_generation` is one that an earlier run knew: the new run keeps it, so a store that
        is behind is still noticed. `pending_replies` are workflows that the earlier run owed a
        `token_ready`. `replace_running` terminates a running workflow in the same call.
        """
        async with self._store.read() as tx:  # read after the query to Temporal: it may just have ended
            current = await tx.connections.get(connection.tenant, connection.id)
            if current is None or current.state.is_final or await tx.tenants.is_elsewhere(connection.tenant):
                return False
            start = await self._start_message(tx, current, known_generation)
        request = start_requests.connection(
            _with_pending_replies(start, pending_replies), allow_restart=True, replace_running=replace_running
        )
        await self._link.start(request)
        return True

    async def has_attempt_under_way(self, connection: Connection) -> bool:
        """True while the provider may still answer an open attempt of this connection."""
        async with self._store.read() as tx:
            attempt = await tx.attempts.open_of_any_kind(connection.tenant, connection.id, MAIN_SLOT)
        return attempt is not None and self._clock.now() < attempt.send_by + LIMITS.answer

    async def _start_message(
        self, tx: Transaction, connection: Connection, known_generation: int
    ) -> ConnectionStart:
        tenant, now = connection.tenant, self._clock.now()
        integration = await tx.integrations.get_unchecked(tenant, connection.integration_id)
        grant = await tx.grants.get(tenant, connection.id)
        rules = await self._refresh_rules(tx, connection, integration) if grant and integration else None
        life = state_from_store(connection, grant, rules, now, self._announce_days)
        life = life.__replace__(generation=max(life.generation, known_generation))
        subject_hash = self._ring.subject_hash(tenant, connection.subject)
        context = reconcile_context(self._ring, connection_workflow_id(tenant, connection.id), now)
        waiting = await _waiting_events(tx, connection, context)
        return connection_start(connection, subject_hash, context, life, waiting)

    async def _refresh_rules(
        self, tx: Transaction, connection: Connection, integration: Integration
    ) -> RefreshRules:
        """The rules of the provider's current definition; the integration's own when it has none."""
        try:
            versions = await tx.definitions.serving(connection.tenant, integration.provider)
            provider_rules = self._refresh_rules_of(integration.provider, versions, connection.id)
        except Failure:
            return integration.refresh
        return integration.with_provider_rules(provider_rules).refresh


def reconcile_context(
    ring: KeyRing, workflow_id: str, now: datetime, message: str = _RECONCILE
) -> RequestContext:
    """Reconcile as the requester of a run, or of a signal to it."""
    return prove_request(ring, RECONCILE_CONTEXT, workflow_id, message, now)


async def _waiting_events(
    tx: Transaction, connection: Connection, context: RequestContext
) -> tuple[LifecycleEvent, ...]:
    """What no run knows yet: consents that were received or await a confirmation, and late tokens."""
    events: list[LifecycleEvent] = []
    consent = await tx.consents.received_consent(connection.tenant, connection.id)
    if consent is not None:
        events.append(_event(EventKind.CONSENT_GRANTED, context, consent_id=consent.id))
    for waiting in await tx.consents.confirming(connection.tenant, connection.id):
        ends = {"consent_id": waiting.id, "until": waiting.confirm_by}
        events.append(_event(EventKind.CONSENT_RETURNED, context, **ends))
    for late in await tx.late_tokens.of_connection(connection.tenant, connection.id):
        events.append(_event(EventKind.LATE_TOKENS_RECEIVED, context, attempt_id=late.attempt_id))
    return tuple(events)


def _event(kind: EventKind, context: RequestContext, **brings: Any) -> LifecycleEvent:
    return LifecycleEvent(kind=kind, context=context, **brings)


def _with_pending_replies(start: ConnectionStart, pending_replies: tuple[str, ...]) -> ConnectionStart:
    """The message for a run that owes these workflows a reply, and sends it at once if it can."""
    if not pending_replies:
        return start
    life = start.state.__replace__(waiting_callers=pending_replies)
    waiting = (*start.pending_events, _event(EventKind.TIMER_FIRED, start.context))
    return start.__replace__(state=life, pending_events=waiting)
