"""Shares a worker's activity slots between tenants, and a tenant's between its integrations.

An activity that calls a provider or a webhook's receiver may hang for as long as that does. Those of
one tenant take at most half of the slots, and those of one integration a third.
"""

from contextlib import AsyncExitStack
from typing import Any

from temporalio import activity
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.messages.names import ActivityName
from evergrant_server.fair_turns import FairTurns
from evergrant_server.telemetry import saturation

ACTIVITY_SLOTS = 100  # of a worker: Temporal's default
PATIENCE_S = 3.0  # below a heartbeat's timeout; then the slot is another's, and Temporal tries again
_CALLS_OUT = frozenset(
    {
        ActivityName.EXCHANGE_CODE,
        ActivityName.REQUEST_CLIENT_GRANT,
        ActivityName.POLL_DEVICE_TOKEN,
        ActivityName.REFRESH_GRANT,
        ActivityName.VERIFY_LATE_TOKENS,
        ActivityName.LOOK_UP_ACCOUNTS,
        ActivityName.REVOKE_GRANT,
        ActivityName.REVOKE_REPLACED_GRANTS,
        ActivityName.VERIFY_LOGIN,
        ActivityName.DISCOVER_ENDPOINTS,
        ActivityName.FETCH_RECEIVER_KEYS,
        ActivityName.PUSH_AUTHORIZATION_REQUEST,
        ActivityName.REQUEST_TEMPORARY_CREDENTIALS,
        ActivityName.CHECK_DEFINITION,
        ActivityName.DELIVER_WEBHOOKS,
    }
)


class TurnInterceptor(Interceptor):
    """Has activities that call out wait for their tenant's turn. Raises Failure WORKER_BUSY after a while."""

    def __init__(self, slots: int = ACTIVITY_SLOTS) -> None:
        self._turns = FairTurns(slots)

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        return _TakingTurns(next, self._turns)


class _TakingTurns(ActivityInboundInterceptor):
    def __init__(self, next: ActivityInboundInterceptor, turns: FairTurns) -> None:
        super().__init__(next)
        self._turns = turns

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        name = activity.info().activity_type
        if name not in _CALLS_OUT:
            return await self.next.execute_activity(input)
        request: Any = input.args[0]
        async with AsyncExitStack() as held:
            try:
                turn = self._turns.turn(request.tenant, _part(request), within_s=PATIENCE_S)
                await held.enter_async_context(turn)
            except TimeoutError:
                saturation.count_postponed(name)
                raise Failure(
                    ErrorCode.WORKER_BUSY, f"{request.tenant} has its share of this worker"
                ) from None
            return await self.next.execute_activity(input)


def _part(request: Any) -> str:
    """What a hanging call of this activity is likely to have in common with others."""
    return getattr(request, "integration_id", None) or getattr(request, "webhook_id", None) or ""
