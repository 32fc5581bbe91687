"""One worker's activities, called without Temporal. A journal folder of its own makes it another host."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from temporalio.testing import ActivityEnvironment

from activities.single_use.attempt import JournaledReply, SingleUseAttempt
from activities.single_use.intent import CriticalSections
from activities.single_use.protocol import SingleUseProtocol
from evergrant_server.core.clock import Clock
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.consent import Consent
from evergrant_server.core.ids import AttemptId
from evergrant_server.core.integrations import Integration
from evergrant_server.core.messages.activities import (
    ConnectionCall,
    EndConsent,
    ExchangeCode,
    GrantResult,
    LapseConsent,
    LapseResult,
    RefreshGrant,
    RequestFirstTokens,
    RevocationResult,
    RevokeGrant,
    VerifyLateTokens,
)
from evergrant_server.core.messages.integrations import (
    DiscoverEndpoints,
    DiscoveryResult,
    PushAuthorizationRequest,
    PushResult,
)
from evergrant_server.core.single_use.attempt import LIMITS, TimeLimits
from evergrant_server.crypto import KeyPurpose
from evergrant_server.egress import Egress, EgressPolicy
from evergrant_server.journal import Journal
from evergrant_server.store import Store
from evergrant_server.wiring.worker_parts import build_worker_parts
from providers.requests.sender import Sender
from providers.responses.raw_reply import RawReply
from tests.fakes.patience import PATIENCE_S
from tests.fakes.platform.installation import ASKED, PROVENANCE, TENANT, Installation
from tests.unit.activities.single_use.protocol_worker import reservation_of


class Activities:
    """What one worker runs, on the installation's parts unless others are given."""

    def __init__(
        self,
        place: Installation,
        host: str = "here",
        limits: TimeLimits = LIMITS,
        store: Store | None = None,
        clock: Clock | None = None,
    ) -> None:
        here = place.parts
        self.clock = clock or here.clock
        settings = here.settings.model_copy(update={"circuit_threshold": 0})
        parts = replace(here, settings=settings, store=store or here.store, clock=self.clock)
        self.journal = Journal(settings.data_dir / host)
        sections = CriticalSections()
        self.single_use = SingleUseProtocol(
            parts.store, self.clock, sections, self.journal, Sender(Egress(EgressPolicy())), limits
        )
        work = build_worker_parts(parts, sections, self.journal, limits)
        self._does: dict[str, Callable[..., Any]] = {it.__name__: it for it in work.activities}
        self.replayer = work.replayer

    async def _run(self, name: str, order: Any, env: ActivityEnvironment | None = None) -> Any:
        return await (env or at_temporal()).run(self._does[name], order)

    def set_aside(self) -> list[Path]:
        """The entries of all journals of its host that no definition could read."""
        return list(self.journal.folder.glob("*/*.set-aside"))

    async def dies_with(
        self, use: SingleUseAttempt, request: ConnectionCall, reply: RawReply, *, provisional: bool = False
    ) -> Path:
        """Its process ends with this answer in the journal. Returns the entry."""
        answer = JournaledReply.for_request(request, reply, self.clock.now(), provisional=provisional)
        entry = reservation_of(use).write_entry(use.keys.current(KeyPurpose.REFRESH), answer.pack())
        self.journal.release()
        return entry.path

    async def refresh(
        self,
        connection: Connection,
        generation: int,
        env: ActivityEnvironment | None = None,
        *,
        token_over: bool = False,
        ahead: bool = False,
    ) -> GrantResult:
        said = {"generation": generation, "token_over": token_over, "may_be_postponed": ahead}
        order = RefreshGrant(**call_for(connection), **said)
        async with asyncio.timeout(PATIENCE_S):
            return await self._run("refresh_grant", order, env)

    async def revoke(self, connection: Connection) -> RevocationResult:
        return await self._run("revoke_grant", RevokeGrant(**call_for(connection)))

    async def verify(self, connection: Connection, late: AttemptId) -> GrantResult:
        order = VerifyLateTokens(**call_for(connection), attempt_id=late)
        return await self._run("verify_late_tokens", order)

    async def exchange(self, connection: Connection, consent: Consent) -> GrantResult:
        order = ExchangeCode(**call_for(connection), consent_id=consent.id, generation=0)
        return await self._run("exchange_code", order)

    async def end_consent(
        self, connection: Connection, deadline: datetime | None = None, *, denied: bool = False
    ) -> GrantResult | None:
        order = EndConsent(**call_for(connection), denied=denied, deadline=deadline)
        return await self._run("end_consent", order)

    async def lapse(self, connection: Connection, consent: Consent) -> LapseResult:
        return await self._run("lapse_consent", LapseConsent(**call_for(connection), consent_id=consent.id))

    async def push(self, connection: Connection, consent: Consent) -> PushResult:
        order = PushAuthorizationRequest(
            tenant=TENANT,
            connection_id=connection.id,
            consent_id=consent.id,
            revision=consent.revision,
            context=ASKED,
        )
        return await self._run("push_authorization_request", order)

    async def mint(self, connection: Connection, consent: Consent) -> GrantResult:
        order = RequestFirstTokens(**call_for(connection), consent_id=consent.id, generation=0)
        return await self._run("request_client_grant", order)

    async def poll(self, connection: Connection, consent: Consent) -> GrantResult:
        order = RequestFirstTokens(**call_for(connection), consent_id=consent.id, generation=0)
        return await self._run("poll_device", order)

    async def discover(self, integration: Integration) -> DiscoveryResult:
        order = DiscoverEndpoints(tenant=TENANT, integration_id=integration.id, context=ASKED)
        not_at_temporal = (
            ActivityEnvironment()
        )  # whose clock says when the activity began: it would stand still
        return await self._run("discover_endpoints", order, not_at_temporal)


def at_temporal(now: datetime | None = None) -> ActivityEnvironment:
    """Where an activity began just now, by Temporal's clock."""
    env = ActivityEnvironment()
    env.info = replace(env.info, started_time=now or datetime.now(UTC))
    return env


def call_for(connection: Connection) -> dict[str, Any]:
    """What every request to an activity says."""
    return {"tenant": TENANT, "connection_id": connection.id, "context": ASKED, "provenance": PROVENANCE}
