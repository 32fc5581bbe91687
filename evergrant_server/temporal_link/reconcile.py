"""Rebuilds what Temporal should hold from what the store holds."""

from dataclasses import dataclass

from evergrant_server.core.clock import Clock
from evergrant_server.core.connection import Connection
from evergrant_server.core.errors import Failure
from evergrant_server.core.ids import ConnectionId, Tenant, workflow_id
from evergrant_server.core.lifecycle import life_of
from evergrant_server.core.messages import Asked, ConnectionStart, Event, Happening
from evergrant_server.core.schedule import NEWEST_RULES
from evergrant_server.crypto.keyring import KeyRing
from evergrant_server.store import Store, Tx
from evergrant_server.temporal_link.link import TemporalLink

_BY = Asked(by="reconcile")
_BATCH = 100


@dataclass(frozen=True)
class Reconciled:
    """How many live connections there are, and for how many a workflow had to be started.

    `behind` names those whose workflow knows a newer generation than the store: the store was
    restored from a backup, and their refresh tokens may be spent.
    """

    live: int
    started: int
    behind: tuple[str, ...] = ()


class Reconciler:
    """Starts a workflow for every live connection that has none. Harmless to repeat."""

    def __init__(self, store: Store, link: TemporalLink, ring: KeyRing, clock: Clock) -> None:
        self._store = store
        self._link = link
        self._ring = ring
        self._clock = clock

    async def all(self) -> Reconciled:
        """Go through the store in batches. Raises Failure TEMPORAL_UNAVAILABLE."""
        live = started = 0
        behind: list[str] = []
        after: str | None = None
        while True:
            async with self._store.read() as tx:
                batch = await tx.connections.live(after, _BATCH)
            for connection in batch:
                live += 1
                started += await self._one(connection)
                if await self._is_behind(connection):
                    behind.append(connection.id)
            if len(batch) < _BATCH:
                return Reconciled(live=live, started=started, behind=tuple(behind))
            after = batch[-1].id

    async def revive(self, tenant: Tenant, connection_id: ConnectionId) -> bool:
        """Start the workflow of one connection; False when it is not to live any more."""
        async with self._store.read() as tx:
            connection = await tx.connections.get(tenant, connection_id)
        if connection is None or connection.state.final:
            return False
        return await self._one(connection)

    async def _one(self, connection: Connection) -> bool:
        if await self._link.running(workflow_id(connection.tenant, connection.id)):
            return False
        async with self._store.read() as tx:  # after the look at Temporal: it may just have ended
            now = await tx.connections.get(connection.tenant, connection.id)
            if now is None or now.state.final:
                return False
            start = await self._start(tx, now)
        await self._link.start_connection(start, again=True)
        return True

    async def _is_behind(self, connection: Connection) -> bool:
        """Ask the workflow; what no worker answers for now is not accused."""
        try:
            known = await self._link.describe(connection.tenant, connection.id)
        except Failure:
            return False
        if known.generation <= connection.generation:
            return False
        async with self._store.read() as tx:  # it may have been refreshed while we asked
            now = await tx.connections.get(connection.tenant, connection.id)
        return now is not None and known.generation > now.generation

    async def _start(self, tx: Tx, connection: Connection) -> ConnectionStart:
        tenant, now = connection.tenant, self._clock.now()
        integration = await tx.integrations.get(tenant, connection.integration_id)
        grant = await tx.grants.get(tenant, connection.id)
        consent = await tx.consents.received_for(tenant, connection.id)
        waiting = ()
        if consent is not None:
            waiting = (Happening(event=Event.CONSENT_GRANTED, asked=_BY, consent_id=consent.id),)
        idle_s = integration.refresh.refresh_token_idle_s if integration else None
        return ConnectionStart(
            tenant=tenant,
            connection_id=connection.id,
            integration_id=connection.integration_id,
            integration=connection.integration,
            provider=connection.provider,
            subject_hash=self._ring.subject_hash(tenant, connection.subject),
            rules=NEWEST_RULES,
            life=life_of(connection, grant, idle_s, now),
            asked=_BY,
            waiting=waiting,
        )
