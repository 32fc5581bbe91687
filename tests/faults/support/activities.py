"""One worker's activities, called without Temporal. A journal folder of its own makes it another host."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from temporalio.testing import ActivityEnvironment

from activities.consents.code_exchange import CodeExchangeActivities
from activities.consents.consent_end import ConsentEndActivities
from activities.consents.first_tokens import ClientGrantActivities, DeviceActivities
from activities.grants import GrantServices
from activities.grants.late_verification import LateTokenActivities
from activities.grants.refresh import RefreshActivities
from activities.grants.revocation import RevocationActivities
from activities.single_use.circuit_breakers import CircuitBreakers
from activities.single_use.critical_section import CriticalSections
from activities.single_use.journal_replay import JournalReplayer
from activities.single_use.protocol import SingleUseProtocol
from activities.support.context_loader import ProviderContextLoader
from evergrant_server.core.clock import Clock
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.consent import Consent
from evergrant_server.core.ids import AttemptId
from evergrant_server.core.messages.activities import (
    ExchangeCode,
    GrantResult,
    RefreshGrant,
    RequestFirstTokens,
    RevocationResult,
    RevokeGrant,
    VerifyLateTokens,
)
from evergrant_server.core.messages.base import Provenance, connection_workflow_id
from evergrant_server.core.single_use.attempt import LIMITS, AttemptKind, TimeLimits
from evergrant_server.core.single_use.circuit_breaker import BreakerRules
from evergrant_server.egress import Egress, EgressPolicy
from evergrant_server.journal import Journal
from evergrant_server.store import Store
from providers.requests.sender import Sender
from tests.fakes.patience import PATIENCE_S
from tests.fakes.platform.installation import ASKED, TENANT, Installation


class Activities:
    """What one worker would run, called without Temporal."""

    def __init__(
        self,
        place: Installation,
        allow: tuple[str, ...],
        journals: Path,
        limits: TimeLimits = LIMITS,
        store: Store | None = None,
        clock: Clock | None = None,
    ) -> None:
        parts = place.parts
        store, clock = store or parts.store, clock or parts.clock
        self.journal = Journal(journals)
        sections = CriticalSections()
        sender = Sender(Egress(EgressPolicy(allow=allow)))
        protocol = SingleUseProtocol(store, clock, sections, self.journal, limits)
        holder = ProviderContextLoader(store, parts.registry, parts.settings.public_url, clock)
        services = GrantServices(store, holder, sender, protocol, clock)
        self.single_use = protocol
        self._refresh = RefreshActivities(services, CircuitBreakers(BreakerRules(threshold=0)))
        self._revocation = RevocationActivities(services)
        self._consent = CodeExchangeActivities(services)
        self._minting = ClientGrantActivities(services)
        self._devices = DeviceActivities(services)
        self._late = LateTokenActivities(services)
        self._consent_end = ConsentEndActivities(services)
        endings = {
            AttemptKind.REFRESH: self._refresh.replay,
            AttemptKind.CODE_EXCHANGE: self._consent.replay,
            AttemptKind.LATE_TOKENS: self._late.replay,
            AttemptKind.CLIENT_GRANT: self._minting.replay,
            AttemptKind.DEVICE_CODE: self._devices.replay,
        }
        self.replayer = JournalReplayer(store, clock, self.journal, sections, endings)

    async def refresh(
        self,
        connection: Connection,
        generation: int,
        env: ActivityEnvironment | None = None,
        *,
        token_over: bool = False,
    ) -> GrantResult:
        order = RefreshGrant(**_call(connection), generation=generation, token_over=token_over)
        async with asyncio.timeout(PATIENCE_S):
            return await (env or at_temporal()).run(self._refresh.refresh_grant, order)

    async def revoke(self, connection: Connection) -> RevocationResult:
        order = RevokeGrant(**_call(connection))
        return await at_temporal().run(self._revocation.revoke_grant, order)

    async def verify(self, connection: Connection, late: AttemptId) -> GrantResult:
        order = VerifyLateTokens(**_call(connection), attempt_id=late)
        return await at_temporal().run(self._late.verify_late_tokens, order)

    async def exchange(self, connection: Connection, consent: Consent) -> GrantResult:
        order = ExchangeCode(**_call(connection), consent_id=consent.id, generation=0)
        return await at_temporal().run(self._consent.exchange_code, order)

    async def mint(self, connection: Connection, consent: Consent) -> GrantResult:
        order = RequestFirstTokens(**_call(connection), consent_id=consent.id, generation=0)
        return await at_temporal().run(self._minting.request_client_grant, order)

    async def poll(self, connection: Connection, consent: Consent) -> GrantResult:
        order = RequestFirstTokens(**_call(connection), consent_id=consent.id, generation=0)
        return await at_temporal().run(self._devices.poll_device, order)


def at_temporal(now: datetime | None = None) -> ActivityEnvironment:
    """Where an activity began just now, by Temporal's clock."""
    env = ActivityEnvironment()
    env.info = replace(env.info, started_time=now or datetime.now(UTC))
    return env


def _call(connection: Connection) -> dict[str, Any]:
    workflow = connection_workflow_id(TENANT, connection.id)
    provenance = Provenance(workflow_id=workflow, run_id="r", event_id=1)
    return {"tenant": TENANT, "connection_id": connection.id, "context": ASKED, "provenance": provenance}
