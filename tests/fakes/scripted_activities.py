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
    LapseConsent,
    LapseResult,
    LookUpAccounts,
    RefreshGrant,
    ReplacedRevocationResult,
    RequestFirstTokens,
    RevocationResult,
    RevokeGrant,
    RevokeReplacedGrants,
    VerifyLateTokens,
)
from evergrant_server.core.messages.agents import AgentStopCall, AgentStopProgress
from evergrant_server.core.messages.decisions import (
    AccessRequestCall,
    CallApprovalCall,
    DecisionProgress,
    ReviewPermits,
    ReviewPermitsResult,
)
from evergrant_server.core.messages.integrations import (
    ClientDocumentResult,
    FetchReceiverKeys,
    LoginResult,
    PushAuthorizationRequest,
    PushResult,
    ReadClientDocument,
    ReceiverKeysResult,
    RetryConnections,
    RetryConnectionsResult,
    VerifyLogin,
    VerifyPerson,
)
from evergrant_server.core.messages.maintenance import (
    DeliverWebhooks,
    DeliveryRound,
    FetchIssuerKeys,
    IntrospectGrants,
    IntrospectGrantsResult,
    IssuerKeysResult,
    ReconcileRequest,
    ReconcileResult,
    RereadMetadata,
    RereadMetadataResult,
)
from evergrant_server.core.messages.names import ActivityName


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
        none_read = RereadMetadataResult(read=0, changed=0, refused=0)
        confirmed = RevocationResult(revocation=RevocationOutcome.CONFIRMED)
        return [
            self._scripted(ActivityName.EXCHANGE_CODE, ExchangeCode, self._result),
            self._scripted(ActivityName.REQUEST_CLIENT_GRANT, RequestFirstTokens, self._result),
            self._scripted(ActivityName.POLL_DEVICE_TOKEN, RequestFirstTokens, self._result),
            self._scripted(ActivityName.REFRESH_GRANT, RefreshGrant, self._result),
            self._scripted(ActivityName.VERIFY_LATE_TOKENS, VerifyLateTokens, self._result),
            self._scripted(ActivityName.END_CONSENT, EndConsent, None),
            self._scripted(ActivityName.LAPSE_CONSENT, LapseConsent, LapseResult()),
            self._scripted(
                ActivityName.ADVANCE_ACCESS_REQUEST, AccessRequestCall, DecisionProgress(state="expired")
            ),
            self._scripted(
                ActivityName.ADVANCE_CALL_APPROVAL, CallApprovalCall, DecisionProgress(state="expired")
            ),
            self._scripted(ActivityName.ADVANCE_AGENT_STOP, AgentStopCall, AgentStopProgress(finished=True)),
            self._scripted(ActivityName.REVIEW_PERMITS, ReviewPermits, ReviewPermitsResult()),
            self._scripted(ActivityName.BEGIN_REVOCATION, BeginRevocation, None),
            self._scripted(ActivityName.REVOKE_GRANT, RevokeGrant, confirmed),
            self._scripted(
                ActivityName.REVOKE_REPLACED_GRANTS, RevokeReplacedGrants, ReplacedRevocationResult(revoked=1)
            ),
            self._scripted(ActivityName.LOOK_UP_ACCOUNTS, LookUpAccounts, _as_it_was),
            self._scripted(ActivityName.EXPORT_RUN_HISTORY, ExportRunHistory, None),
            self._scripted(ActivityName.RECONCILE, ReconcileRequest, ReconcileResult(live=3, started=1)),
            self._scripted(ActivityName.DELIVER_WEBHOOKS, DeliverWebhooks, DeliveryRound()),
            self._scripted(ActivityName.ANNOUNCE_EXPIRY, AnnounceExpiry, None),
            self._scripted(ActivityName.REREAD_METADATA, RereadMetadata, none_read),
            self._scripted(
                ActivityName.INTROSPECT_GRANTS, IntrospectGrants, IntrospectGrantsResult(checked=3, ended=1)
            ),
            self._scripted(ActivityName.PUSH_AUTHORIZATION_REQUEST, PushAuthorizationRequest, PushResult()),
            self._scripted(ActivityName.VERIFY_LOGIN, VerifyLogin, LoginResult()),
            self._scripted(ActivityName.VERIFY_PERSON, VerifyPerson, LoginResult()),
            self._scripted(ActivityName.READ_CLIENT_DOCUMENT, ReadClientDocument, ClientDocumentResult()),
            self._scripted(
                ActivityName.RETRY_CONNECTIONS, RetryConnections, RetryConnectionsResult(signalled=7)
            ),
            self._scripted(ActivityName.FETCH_RECEIVER_KEYS, FetchReceiverKeys, ReceiverKeysResult(keys=2)),
            self._scripted(ActivityName.FETCH_ISSUER_KEYS, FetchIssuerKeys, IssuerKeysResult(keys=2)),
        ]

    def _scripted(self, name: ActivityName, order_type: type, default: Any) -> Callable[..., Any]:
        """An activity of this name. `default` is its result, or a function of the order that makes it."""

        async def scripted(order: Any) -> Any:
            return await self.answer(name, order, default)

        scripted.__annotations__["order"] = order_type  # what Temporal's converter decodes it as
        return activity.defn(name=name)(scripted)

    async def answer(self, name: ActivityName, order: Any, default: Any) -> Any:
        self.calls.append((name, order))
        answer = self.answers[name].pop(0) if self.answers[name] else default
        if isinstance(answer, asyncio.Event):
            await answer.wait()
            answer = default
        return answer(order) if callable(answer) else answer

    def _result(self, order: Any) -> GrantResult:
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


def _as_it_was(order: LookUpAccounts) -> GrantResult:
    return GrantResult(generation=order.generation)
