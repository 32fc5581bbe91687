"""Activities that answer from a script, under the names the workflows call."""

import asyncio
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from temporalio import activity

from evergrant_server.core.connections.connection import LifecycleState, RevocationOutcome
from evergrant_server.core.messages.activities import (
    AnnounceExpiry,
    BeginRevocation,
    EndConsent,
    ExchangeCode,
    ExportRunHistory,
    GrantResult,
    LookUpAccounts,
    RefreshGrant,
    RequestFirstTokens,
    RevocationResult,
    RevokeGrant,
    VerifyLateTokens,
)
from evergrant_server.core.messages.base import ActivityName
from evergrant_server.core.messages.integrations import (
    FetchReceiverKeys,
    PushAuthorizationRequest,
    PushResult,
    ReceiverKeysResult,
)
from evergrant_server.core.messages.maintenance import (
    IntrospectGrants,
    IntrospectGrantsResult,
    ReconcileRequest,
    ReconcileResult,
    RereadMetadata,
    RereadMetadataResult,
)
from evergrant_server.core.messages.webhooks import DeliverWebhooks, DeliveryRound


class ScriptedActivities:
    """`answers[name]` holds what the next calls return; a default follows. `calls` counts.

    An answer that is an asyncio.Event is waited for before the default is returned.
    """

    def __init__(self, lifetime: timedelta = timedelta(hours=1), idle_s: float | None = None) -> None:
        self.lifetime = lifetime
        self.idle_s = idle_s
        self.generation = 0
        self.answers: dict[str, list[Any]] = defaultdict(list)
        self.calls: list[tuple[str, Any]] = []
        self.now: Callable[[], datetime] = lambda: datetime.now(UTC)

    def count(self, name: ActivityName) -> int:
        return sum(1 for called, _ in self.calls if called == name)

    def everything(self) -> list[Callable[..., Any]]:
        return [
            self.exchange_code,
            self.mint_grant,
            self.poll_device,
            self.refresh_grant,
            self.verify_late_answer,
            self.end_consent,
            self.ask_revocation,
            self.revoke_grant,
            self.run_ends,
            self.reread_metadata,
            self.look_elsewhere,
            self.fetch_keys,
            self.push_request,
            self.reconcile,
            self.deliver_due,
            self.announce_expiry,
            self.look_up,
        ]

    async def _answer(self, name: ActivityName, order: Any, default: Callable[[], Any]) -> Any:
        self.calls.append((name, order))
        if self.answers[name]:
            answer = self.answers[name].pop(0)
            if isinstance(answer, asyncio.Event):
                await answer.wait()
            else:
                return answer
        return default()

    def _news(self) -> GrantResult:
        self.generation += 1
        now = activity.info().started_time
        return GrantResult(
            state=LifecycleState.ACTIVE,
            generation=self.generation,
            obtained_at=now,
            expires_at=now + self.lifetime,
            refreshable=True,
            refresh_token_idle_s=self.idle_s,
        )

    @activity.defn(name=ActivityName.EXCHANGE_CODE)
    async def exchange_code(self, order: ExchangeCode) -> GrantResult:
        return await self._answer(ActivityName.EXCHANGE_CODE, order, self._news)

    @activity.defn(name=ActivityName.REQUEST_CLIENT_GRANT)
    async def mint_grant(self, order: RequestFirstTokens) -> GrantResult:
        return await self._answer(ActivityName.REQUEST_CLIENT_GRANT, order, self._news)

    @activity.defn(name=ActivityName.POLL_DEVICE_TOKEN)
    async def poll_device(self, order: RequestFirstTokens) -> GrantResult:
        return await self._answer(ActivityName.POLL_DEVICE_TOKEN, order, self._news)

    @activity.defn(name=ActivityName.REFRESH_GRANT)
    async def refresh_grant(self, order: RefreshGrant) -> GrantResult:
        return await self._answer(ActivityName.REFRESH_GRANT, order, self._news)

    @activity.defn(name=ActivityName.VERIFY_LATE_TOKENS)
    async def verify_late_answer(self, order: VerifyLateTokens) -> GrantResult:
        return await self._answer(ActivityName.VERIFY_LATE_TOKENS, order, self._news)

    @activity.defn(name=ActivityName.END_CONSENT)
    async def end_consent(self, order: EndConsent) -> None:
        await self._answer(ActivityName.END_CONSENT, order, lambda: None)

    @activity.defn(name=ActivityName.BEGIN_REVOCATION)
    async def ask_revocation(self, order: BeginRevocation) -> None:
        await self._answer(ActivityName.BEGIN_REVOCATION, order, lambda: None)

    @activity.defn(name=ActivityName.REVOKE_GRANT)
    async def revoke_grant(self, order: RevokeGrant) -> RevocationResult:
        done = RevocationResult(revocation=RevocationOutcome.CONFIRMED)
        return await self._answer(ActivityName.REVOKE_GRANT, order, lambda: done)

    @activity.defn(name=ActivityName.LOOK_UP_ACCOUNTS)
    async def look_up(self, order: LookUpAccounts) -> GrantResult:
        known = GrantResult(generation=order.generation)
        return await self._answer(ActivityName.LOOK_UP_ACCOUNTS, order, lambda: known)

    @activity.defn(name=ActivityName.EXPORT_RUN_HISTORY)
    async def run_ends(self, order: ExportRunHistory) -> None:
        await self._answer(ActivityName.EXPORT_RUN_HISTORY, order, lambda: None)

    @activity.defn(name=ActivityName.RECONCILE)
    async def reconcile(self, order: ReconcileRequest) -> ReconcileResult:
        return await self._answer(ActivityName.RECONCILE, order, lambda: ReconcileResult(live=3, started=1))

    @activity.defn(name=ActivityName.DELIVER_WEBHOOKS)
    async def deliver_due(self, order: DeliverWebhooks) -> DeliveryRound:
        return await self._answer(ActivityName.DELIVER_WEBHOOKS, order, DeliveryRound)

    @activity.defn(name=ActivityName.ANNOUNCE_EXPIRY)
    async def announce_expiry(self, order: AnnounceExpiry) -> None:
        await self._answer(ActivityName.ANNOUNCE_EXPIRY, order, lambda: None)

    @activity.defn(name=ActivityName.REREAD_METADATA)
    async def reread_metadata(self, order: RereadMetadata) -> RereadMetadataResult:
        none = RereadMetadataResult(read=0, changed=0, refused=0)
        return await self._answer(ActivityName.REREAD_METADATA, order, lambda: none)

    @activity.defn(name=ActivityName.INTROSPECT_GRANTS)
    async def look_elsewhere(self, order: IntrospectGrants) -> IntrospectGrantsResult:
        return IntrospectGrantsResult(checked=3, ended=1)

    @activity.defn(name=ActivityName.PUSH_AUTHORIZATION_REQUEST)
    async def push_request(self, order: PushAuthorizationRequest) -> PushResult:
        return PushResult()

    @activity.defn(name=ActivityName.FETCH_RECEIVER_KEYS)
    async def fetch_keys(self, order: FetchReceiverKeys) -> ReceiverKeysResult:
        return ReceiverKeysResult(keys=2)
