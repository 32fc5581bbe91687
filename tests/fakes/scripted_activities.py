"""Activities that answer from a script, under the names the workflows call."""

import asyncio
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from temporalio import activity

from evergrant_server.core.connections.connection import LifecycleState, RevocationOutcome
from evergrant_server.core.connections.erasure import ErasureState
from evergrant_server.core.connections.incidents import IncidentState
from evergrant_server.core.definition import DefinitionState
from evergrant_server.core.messages import jobs
from evergrant_server.core.messages.activities import (
    GrantResult,
    LookUpAccounts,
    ReplacedRevocationResult,
    RevocationResult,
)
from evergrant_server.core.messages.agents import AgentStopProgress
from evergrant_server.core.messages.decisions import DecisionProgress
from evergrant_server.core.messages.erasure import ErasureProgress
from evergrant_server.core.messages.export import ExportProgress
from evergrant_server.core.messages.incidents import IncidentProgress
from evergrant_server.core.messages.integrations import (
    DefinitionResult,
    ReceiverKeysResult,
    RetryConnectionsResult,
)
from evergrant_server.core.messages.keys import KeyRotationProgress
from evergrant_server.core.messages.maintenance import (
    IntrospectGrantsResult,
    IssuerKeysResult,
    ReconcileResult,
    RereadMetadataResult,
)
from evergrant_server.core.messages.work import Activity


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

    def count(self, name: str) -> int:
        return sum(1 for called, _ in self.calls if called == name)

    def everything(self) -> list[Callable[..., Any]]:
        """Every activity of the table."""
        return [self._scripted(row) for row in jobs.ACTIVITIES.values()]

    def _scripted(self, row: Activity[Any, Any]) -> Callable[..., Any]:
        grants = (jobs.EXCHANGE_CODE, jobs.REQUEST_CLIENT_GRANT, jobs.POLL_DEVICE_TOKEN, jobs.REFRESH_GRANT)
        default: Any = self._result if row in (*grants, jobs.VERIFY_LATE_TOKENS) else _DEFAULTS.get(row.name)
        if default is None and isinstance(row.result, type):
            default = row.result()

        async def scripted(order: Any) -> Any:
            return await self.answer(row.name, order, default)

        scripted.__annotations__["order"] = row.request  # what Temporal's converter decodes it as
        return activity.defn(name=row.name)(scripted)

    async def answer(self, name: str, order: Any, default: Any) -> Any:
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


# what an activity returns that isn't scripted: a result, or a function of its request; any other one its
# result's defaults
_DEFAULTS: dict[str, Any] = {
    jobs.ADVANCE_ACCESS_REQUEST.name: DecisionProgress(state="expired"),
    jobs.ADVANCE_CALL_APPROVAL.name: DecisionProgress(state="expired"),
    jobs.ADVANCE_AGENT_STOP.name: AgentStopProgress(finished=True),
    jobs.ADVANCE_ERASURE.name: ErasureProgress(state=ErasureState.DONE),
    jobs.ADVANCE_INCIDENT.name: IncidentProgress(state=IncidentState.DONE),
    jobs.ADVANCE_BULK.name: IncidentProgress(state=IncidentState.DONE),
    jobs.REVOKE_GRANT.name: RevocationResult(revocation=RevocationOutcome.CONFIRMED),
    jobs.REVOKE_REPLACED_GRANTS.name: ReplacedRevocationResult(revoked=1),
    jobs.LOOK_UP_ACCOUNTS.name: _as_it_was,
    jobs.CHECK_DEFINITION.name: DefinitionResult(state=DefinitionState.REJECTED),
    jobs.APPLY_DEFINITION_DECISION.name: DefinitionResult(state=DefinitionState.REJECTED),
    jobs.EVALUATE_ROLLOUT.name: DefinitionResult(state=DefinitionState.REJECTED),
    jobs.ADVANCE_KEY_ROTATION.name: KeyRotationProgress(done=True),
    jobs.RETRY_CONNECTIONS.name: RetryConnectionsResult(signalled=7),
    jobs.SEAL_EXPORT_PAGE.name: ExportProgress(exported=0, skipped=0, done=True),
    jobs.RECONCILE.name: ReconcileResult(live=3, started=1),
    jobs.REREAD_METADATA.name: RereadMetadataResult(read=0, changed=0, refused=0),
    jobs.INTROSPECT_GRANTS.name: IntrospectGrantsResult(checked=3, ended=1),
    jobs.FETCH_RECEIVER_KEYS.name: ReceiverKeysResult(keys=2),
    jobs.FETCH_ISSUER_KEYS.name: IssuerKeysResult(keys=2),
}
