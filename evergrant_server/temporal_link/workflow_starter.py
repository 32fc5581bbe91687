"""Begins the workflow of a connection with what the store says of it."""

import base64
import binascii
import json
from collections.abc import Callable, Sequence
from typing import Any

from evergrant_server.core.access import Integration
from evergrant_server.core.clock import Clock
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.grant import MAIN_SLOT
from evergrant_server.core.connections.refresh_rules import RefreshRules
from evergrant_server.core.definition import Definition
from evergrant_server.core.errors import Failure
from evergrant_server.core.lifecycle.schedule import NEWEST_RULES
from evergrant_server.core.lifecycle.transition import state_from_store
from evergrant_server.core.messages.connection import (
    ConnectionStart,
    EventKind,
    LifecycleEvent,
    RequestContext,
)
from evergrant_server.core.single_use.attempt import LIMITS
from evergrant_server.crypto.keyring import KeyRing
from evergrant_server.store import Store, Transaction
from evergrant_server.temporal_link.link import TemporalLink

RECONCILE_CONTEXT = RequestContext(by="reconcile")

RefreshRulesLookup = Callable[
    [str, Sequence[Definition], str], RefreshRules
]  # see `providers.definition.registry.Registry`


class WorkflowStarter:
    """Starts runs; which connections need one is its caller's to find out."""

    def __init__(
        self,
        store: Store,
        link: TemporalLink,
        ring: KeyRing,
        clock: Clock,
        known_rules: RefreshRulesLookup,
        announce_days: tuple[int, ...] | None = None,
    ) -> None:
        self._store = store
        self._link = link
        self._ring = ring
        self._clock = clock
        self._known_rules = known_rules
        self._announce_days = announce_days

    async def start(
        self,
        connection: Connection,
        *,
        known: int = 0,
        instead: bool = False,
        reply_later: tuple[str, ...] = (),
    ) -> bool:
        """Start its workflow, unless its row has ended meanwhile.

        `known` is a generation that an earlier run is known to have had: the new one remembers
        it, so that a store that is behind still shows. `reply_later` are the workflows that it
        was to tell. `instead` ends a running one in the same call.
        """
        async with self._store.read() as tx:  # after the look at Temporal: it may just have ended
            now = await tx.connections.get(connection.tenant, connection.id)
            if now is None or now.state.is_final:
                return False
            start = _with_pending_replies(await self._start_message(tx, now, known), reply_later)
        await self._link.start_connection(start, again=True, instead=instead)
        return True

    async def has_attempt_under_way(self, connection: Connection) -> bool:
        """True while a credential of it is being spent, as far as the store tells."""
        async with self._store.read() as tx:
            attempt = await tx.attempts.open_of_any_kind(connection.tenant, connection.id, MAIN_SLOT)
        return attempt is not None and self._clock.now() < attempt.send_by + LIMITS.answer

    async def _start_message(self, tx: Transaction, connection: Connection, known: int) -> ConnectionStart:
        tenant, now = connection.tenant, self._clock.now()
        integration = await tx.integrations.get(tenant, connection.integration_id)
        grant = await tx.grants.get(tenant, connection.id)
        consent = await tx.consents.received_consent(tenant, connection.id)
        waiting: tuple[LifecycleEvent, ...] = ()
        if consent is not None:
            waiting = (
                LifecycleEvent(
                    kind=EventKind.CONSENT_GRANTED, context=RECONCILE_CONTEXT, consent_id=consent.id
                ),
            )
        for late in await tx.late_tokens.of_connection(tenant, connection.id):
            came = LifecycleEvent(
                kind=EventKind.LATE_TOKENS_RECEIVED, context=RECONCILE_CONTEXT, attempt_id=late.attempt_id
            )
            waiting = (*waiting, came)
        rules = await self._refresh_rules(tx, connection, integration) if grant and integration else None
        life = state_from_store(connection, grant, rules, now, self._announce_days)
        return ConnectionStart(
            tenant=tenant,
            connection_id=connection.id,
            integration_id=connection.integration_id,
            integration=connection.integration,
            provider=connection.provider,
            subject_hash=self._ring.subject_hash(tenant, connection.subject),
            rules=NEWEST_RULES,
            life=life.model_copy(update={"generation": max(life.generation, known)}),
            context=RECONCILE_CONTEXT,
            waiting=waiting,
        )

    async def _refresh_rules(
        self, tx: Transaction, connection: Connection, integration: Integration
    ) -> RefreshRules:
        """As its provider's definition knows them now; one that is gone, or doesn't fit, says nothing."""
        versions = await tx.definitions.serving(connection.tenant, integration.provider)
        try:
            known = self._known_rules(integration.provider, versions, connection.id)
        except Failure:
            return integration.refresh
        return integration.with_provider_rules(known).refresh


def _with_pending_replies(start: ConnectionStart, later: tuple[str, ...]) -> ConnectionStart:
    """The same, and the run looks at once whether there is something to tell these workflows."""
    if not later:
        return start
    life = start.life.model_copy(update={"reply_later": later})
    look = LifecycleEvent(kind=EventKind.TIMER_FIRED, context=RECONCILE_CONTEXT)
    return start.model_copy(update={"life": life, "waiting": (*start.waiting, look)})


def newest_generation(events: list[dict[str, Any]]) -> int:
    """The newest generation that a run's history tells of; 0 when it tells of none."""
    return max((_generation_of(payload) for event in events for payload in _payloads(event)), default=0)


def _payloads(event: dict[str, Any]) -> list[dict[str, Any]]:
    for attributes in (value for name, value in event.items() if name.endswith("EventAttributes")):
        said = attributes.get("result") or attributes.get("input") or {}
        return said.get("payloads") or []
    return []


def _generation_of(payload: dict[str, Any]) -> int:
    try:
        said = json.loads(base64.b64decode(payload["data"]))
    except (KeyError, binascii.Error, ValueError):
        return 0
    if not isinstance(said, dict):
        return 0
    found = said.get("life", said)
    generation = found.get("generation") if isinstance(found, dict) else None
    return generation if isinstance(generation, int) else 0
