"""One worker without Temporal, whose time is skipped: real activities, a SQLite store, a scripted provider.

    async with lone_worker(folder, server.allowance) as place:
        connection = await place.connected(await place.integration(**discovered(server)))
        await place.refresh_until(connection, timedelta(days=2))

What the workflow would do, `refresh_until` does by the same decisions: it asks again when its timer says so.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast

from temporalio.testing import ActivityEnvironment

from activities.consents.code_exchange import CodeExchangeActivities
from activities.grants.late_tokens import LateTokenActivities
from activities.grants.refresh import RefreshActivities
from activities.grants.revocation import RevocationActivities
from activities.single_use.intent import CriticalSections
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.consent import Consent, ConsentStatus
from evergrant_server.core.connections.grant import Grant, Origin, TokenSet
from evergrant_server.core.ids import Tenant, new_id
from evergrant_server.core.integrations import Integration
from evergrant_server.core.lifecycle.schedule import NEWEST_RULES, RULES, jitter
from evergrant_server.core.lifecycle.snapshot import state_from_store
from evergrant_server.core.lifecycle.timers import next_timer
from evergrant_server.core.lifecycle.transition import next_step
from evergrant_server.core.messages.activities import (
    ConnectionCall,
    ExchangeCode,
    GrantResult,
    RefreshGrant,
    RevocationResult,
    RevokeGrant,
    VerifyLateTokens,
)
from evergrant_server.core.messages.base import Provenance, RequestContext
from evergrant_server.core.messages.connection import ConnectionState, EventKind, LifecycleEvent
from evergrant_server.core.secret import Secret
from evergrant_server.core.single_use.attempt import AttemptOutcome
from evergrant_server.crypto import KeyRing, Role
from evergrant_server.journal import Journal
from evergrant_server.settings import Settings
from evergrant_server.store import Store
from evergrant_server.wiring.platform import Platform
from evergrant_server.wiring.worker_parts import build_worker_parts
from providers.definition.registry import Registry
from tests.fakes.clock import SetClock
from tests.fakes.databases import NOW, migrated_sqlite, sqlite_url
from tests.fakes.rows import a_connection, a_consent, add_refresh, an_integration, pinned_hosts

TENANT = Tenant("acme")
REDIRECT_URI = "https://evergrant.example/oauth/callback/int_1"
_CONTEXT = RequestContext(by="app:crm-sync")
_RULES = RULES[NEWEST_RULES]


class LoneWorker:
    """The activities of one worker, and the rows that they need."""

    def __init__(self, parts: Platform, clock: SetClock, journal: Journal) -> None:
        self.store = parts.store
        self.clock = clock
        work = build_worker_parts(parts, CriticalSections(), journal)
        self.replayer = work.replayer
        self._activities = {it.__name__: it for it in work.activities}
        self._states: dict[str, ConnectionState] = {}

    async def integration(self, secret: str = "s3cret", **changes: Any) -> Integration:
        made = an_integration(TENANT, self.clock.now(), **changes)
        async with self.store.write() as tx:
            return await tx.integrations.put(made, Secret(secret), expected=None)

    async def repaired(self, integration: Integration, secret: str, *connections: Connection) -> Integration:
        """An admin puts another secret, and the workflows of these connections hear of it."""
        changed = integration.__replace__(changed_at=self.clock.now())
        async with self.store.write() as tx:
            put = await tx.integrations.put(changed, Secret(secret), expected=integration.revision)
        for connection in connections:
            event = LifecycleEvent(kind=EventKind.PROVIDER_CHANGED, context=_CONTEXT)
            await self._tell(await self.row(connection), event)
        return put

    async def connected(
        self,
        integration: Integration,
        subject: str = "user-1",
        tokens: TokenSet | None = None,
        **facts: Any,
    ) -> Connection:
        """A connection whose grant is an hour's, and can be refreshed with the token `rt-<subject>`."""
        now = self.clock.now()
        connection = a_connection(integration, now, subject=subject)
        tokens = tokens or TokenSet(
            access_token=Secret("at-1"), refresh_token=Secret(f"rt-{subject}"), expires_in=3600
        )
        grant = Grant.from_tokens(tokens, generation=1, requested=("read",), at=now)
        grant = grant.model_copy(update=facts)
        async with self.store.write() as tx:
            await tx.connections.add(connection)
            return await tx.grants.install(
                connection.granted(now),
                tokens,
                grant,
                origin=Origin.NEW,
                expected=connection.revision,
                hosts=pinned_hosts(integration),
            )

    async def row(self, connection: Connection) -> Connection:
        async with self.store.read() as tx:
            found = await tx.connections.get(TENANT, connection.id)
        assert found is not None
        return found

    async def refresh(self, connection: Connection, *, only_with_evidence: bool = False) -> GrantResult:
        """One refresh, and what the workflow makes of its result."""
        row = await self.row(connection)
        request = RefreshGrant(**_call(row), generation=row.generation, only_with_evidence=only_with_evidence)
        result = await self._run(RefreshActivities.refresh_grant.__name__, request)
        await self._tell(row, LifecycleEvent(kind=EventKind.REFRESH_ENDED, context=_CONTEXT, result=result))
        return result

    async def verify(self, connection: Connection) -> GrantResult:
        """The last try of a grant that is probably over, as its workflow has it made."""
        row, late = await self.row(connection), self._states[connection.id].late_attempt
        assert late is not None
        request = VerifyLateTokens(**_call(row), attempt_id=late)
        result = await self._run(LateTokenActivities.verify_late_tokens.__name__, request)
        ended = EventKind.LATE_VERIFICATION_ENDED
        await self._tell(row, LifecycleEvent(kind=ended, context=_CONTEXT, result=result))
        return result

    async def revoke(self, connection: Connection) -> RevocationResult:
        """Revoke at the provider, once."""
        request = RevokeGrant(**_call(await self.row(connection)))
        return await self._run(RevocationActivities.revoke_grant.__name__, request)

    async def refresh_until(self, connection: Connection, limit: timedelta) -> Connection:
        """Refresh whenever its timer fires, until the subject has to act or so much time has passed."""
        until = self.clock.now() + limit
        while (row := await self.row(connection)).state is LifecycleState.ACTIVE:
            due = self.due_at(connection)
            if due is not None and due > until:
                self.clock.advance((until - self.clock.now()).total_seconds())
                break
            if due is not None and due > self.clock.now():
                self.clock.advance((due - self.clock.now()).total_seconds())
            await self.refresh(connection)
        return row

    async def exchange(
        self,
        integration: Integration,
        facts: dict[str, Any],
        *,
        subject: str = "user-1",
        code: str = "code",
        verifier: str = "v" * 43,
    ) -> tuple[GrantResult, Consent]:
        """The code exchange of a new connection's consent, whose callback brought `facts`."""
        now = self.clock.now()
        connection = a_connection(integration, now, subject=subject)
        endpoints = integration.endpoints
        assert endpoints is not None
        where = {"token_endpoint": endpoints.token_endpoint, "issuer": endpoints.issuer}
        said = {"state_hash": new_id("cns"), "redirect_uri": REDIRECT_URI}
        consent = a_consent(connection, now, facts=facts, **where, **said)
        async with self.store.write() as tx:
            await tx.connections.add(connection)
            await tx.consents.add(consent, Secret("link"))
            received = consent.model_copy(update={"status": ConsentStatus.CODE_RECEIVED})
            await tx.consents.replace(received, expected=1, verifier=Secret(verifier), code=Secret(code))
        request = ExchangeCode(**_call(connection), consent_id=consent.id, generation=0)
        result = await self._run(CodeExchangeActivities.exchange_code.__name__, request)
        async with self.store.read() as tx:
            ended = await tx.consents.get(TENANT, consent.id)
        assert ended is not None
        return result, ended

    async def others_are_refreshed(self, integration: Integration) -> None:
        """Another connection of the integration, whose refreshes work now and in the next two days."""
        other = a_connection(integration, self.clock.now(), subject="other")
        async with self.store.write() as tx:
            await tx.connections.add(other)
            for hours in (0, 1, 13, 26, 39):
                await add_refresh(
                    tx, other, self.clock.now() + timedelta(hours=hours), AttemptOutcome.INSTALLED
                )

    async def _run(self, activity: str, request: ConnectionCall) -> Any:
        env = ActivityEnvironment()
        env.info = replace(env.info, started_time=self.clock.now())
        return await env.run(self._activities[activity], request)

    def due_at(self, connection: Connection) -> datetime | None:
        """When the workflow refreshes next; None: it hasn't begun to."""
        state = self._states.get(connection.id)
        timer = None if state is None else next_timer(state, _RULES, jitter(connection.id, state.generation))
        return None if timer is None else timer.at

    async def _tell(self, row: Connection, event: LifecycleEvent) -> None:
        state = self._states.get(row.id)
        if state is None:
            async with self.store.read() as tx:
                grant = await tx.grants.get(TENANT, row.id)
            state = state_from_store(row, grant, None, self.clock.now())
        share = jitter(row.id, state.generation)
        self._states[row.id] = next_step(state, event, self.clock.now(), _RULES, share).state


def _call(connection: Connection) -> dict[str, Any]:
    return {
        "tenant": TENANT,
        "connection_id": connection.id,
        "context": _CONTEXT,
        "provenance": Provenance(workflow_id="w", run_id="r", event_id=1),
    }


@asynccontextmanager
async def lone_worker(
    folder: Path, *allow: str, registry: Registry | None = None, now: datetime = NOW, **set_to: Any
) -> AsyncIterator[LoneWorker]:
    """A worker on a database of its own; `allow` names who may be called."""
    await migrated_sqlite(folder)
    KeyRing.create(folder / "keys.json")
    ring, clock = KeyRing.open(folder / "keys.json", Role.WORKER), SetClock(now)
    settings = Settings(
        data_dir=folder,
        database_url=sqlite_url(folder),
        key_file=folder / "keys.json",
        egress_allow=allow,
        circuit_threshold=0,
        **set_to,
    )
    store = await Store.open(settings.database_url, ring, clock)
    nothing = cast(Any, None)
    catalogue = registry or Registry.load()
    parts = Platform(settings, clock, ring, store, catalogue, nothing, nothing, nothing, nothing)
    try:
        yield LoneWorker(parts, clock, Journal(folder / "journals"))
    finally:
        await store.close()
