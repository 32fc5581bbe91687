"""Begins the workflow of a connection with what the store says of it."""

import base64
import binascii
import json
from collections.abc import Callable, Sequence
from typing import Any

from evergrant_server.core.access import Integration
from evergrant_server.core.attempt import LIMITS
from evergrant_server.core.clock import Clock
from evergrant_server.core.connection import Connection
from evergrant_server.core.definition import Definition
from evergrant_server.core.errors import Failure
from evergrant_server.core.grant import MAIN
from evergrant_server.core.lifecycle import life_of
from evergrant_server.core.messages import Asked, ConnectionStart, Event, Happening
from evergrant_server.core.provider import RefreshRules
from evergrant_server.core.schedule import NEWEST_RULES
from evergrant_server.crypto.keyring import KeyRing
from evergrant_server.store import Store, Tx
from evergrant_server.temporal_link.link import TemporalLink

BY = Asked(by="reconcile")

KnownRules = Callable[[str, Sequence[Definition], str], RefreshRules]  # see `providers.registry.Registry`


class Lives:
    """Starts runs; which connections need one is its caller's to find out."""

    def __init__(
        self,
        store: Store,
        link: TemporalLink,
        ring: KeyRing,
        clock: Clock,
        known_rules: KnownRules,
        announce_days: tuple[int, ...] | None = None,
    ) -> None:
        self._store = store
        self._link = link
        self._ring = ring
        self._clock = clock
        self._known_rules = known_rules
        self._announce_days = announce_days

    async def begin(
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
            if now is None or now.state.final:
                return False
            start = _telling(await self._start(tx, now, known), reply_later)
        await self._link.start_connection(start, again=True, instead=instead)
        return True

    async def may_be_answered(self, connection: Connection) -> bool:
        """True while a credential of it is being spent, as far as the store tells."""
        async with self._store.read() as tx:
            attempt = await tx.attempts.opened(connection.tenant, connection.id, MAIN)
        return attempt is not None and self._clock.now() < attempt.send_by + LIMITS.answer

    async def _start(self, tx: Tx, connection: Connection, known: int) -> ConnectionStart:
        tenant, now = connection.tenant, self._clock.now()
        integration = await tx.integrations.get(tenant, connection.integration_id)
        grant = await tx.grants.get(tenant, connection.id)
        consent = await tx.consents.received_for(tenant, connection.id)
        waiting: tuple[Happening, ...] = ()
        if consent is not None:
            waiting = (Happening(event=Event.CONSENT_GRANTED, asked=BY, consent_id=consent.id),)
        for late in await tx.late_answers.of(tenant, connection.id):
            came = Happening(event=Event.ANSWER_CAME_LATE, asked=BY, attempt_id=late.attempt_id)
            waiting = (*waiting, came)
        rules = await self._rules(tx, connection, integration) if grant and integration else None
        life = life_of(connection, grant, rules, now, self._announce_days)
        return ConnectionStart(
            tenant=tenant,
            connection_id=connection.id,
            integration_id=connection.integration_id,
            integration=connection.integration,
            provider=connection.provider,
            subject_hash=self._ring.subject_hash(tenant, connection.subject),
            rules=NEWEST_RULES,
            life=life.model_copy(update={"generation": max(life.generation, known)}),
            asked=BY,
            waiting=waiting,
        )

    async def _rules(self, tx: Tx, connection: Connection, integration: Integration) -> RefreshRules:
        """As its provider's definition knows them now; one that is gone, or doesn't fit, says nothing."""
        versions = await tx.definitions.serving(connection.tenant, integration.provider)
        try:
            known = self._known_rules(integration.provider, versions, connection.id)
        except Failure:
            return integration.refresh
        return integration.under(known).refresh


def _telling(start: ConnectionStart, later: tuple[str, ...]) -> ConnectionStart:
    """The same, and the run looks at once whether there is something to tell these workflows."""
    if not later:
        return start
    life = start.life.model_copy(update={"reply_later": later})
    look = Happening(event=Event.TIME_CAME, asked=BY)
    return start.model_copy(update={"life": life, "waiting": (*start.waiting, look)})


def generation_in(events: list[dict[str, Any]]) -> int:
    """The newest generation that a run's history tells of; 0 when it tells of none."""
    return max((_generation(payload) for event in events for payload in _payloads(event)), default=0)


def _payloads(event: dict[str, Any]) -> list[dict[str, Any]]:
    for attributes in (value for name, value in event.items() if name.endswith("EventAttributes")):
        said = attributes.get("result") or attributes.get("input") or {}
        return said.get("payloads") or []
    return []


def _generation(payload: dict[str, Any]) -> int:
    try:
        said = json.loads(base64.b64decode(payload["data"]))
    except (KeyError, binascii.Error, ValueError):
        return 0
    if not isinstance(said, dict):
        return 0
    found = said.get("life", said)
    generation = found.get("generation") if isinstance(found, dict) else None
    return generation if isinstance(generation, int) else 0
