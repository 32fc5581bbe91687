"""Shares a worker's activity slots between tenants, and a tenant's between its integrations.

An activity that calls a provider or a webhook's receiver may hang for as long as that does. Those of
one tenant take at most half of the slots, and those of one integration a third. Whose turn an activity
takes is in the table of jobs; where it takes none, the worker's egress sends nothing for it.
"""

from contextlib import AsyncExitStack
from typing import Any

from temporalio import activity
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.messages.jobs import ACTIVITIES
from evergrant_server.egress import may_call_out
from evergrant_server.fair_turns import FairTurns
from evergrant_server.telemetry import saturation

ACTIVITY_SLOTS = 100  # of a worker: Temporal's default
PATIENCE_S = 3.0  # below a heartbeat's timeout; then the slot is another's, and Temporal tries again


class TurnInterceptor(Interceptor):
    """Has activities that call out wait for their turn. Raises Failure WORKER_BUSY after a while."""

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
        row, request = ACTIVITIES.get(name), input.args[0]
        if row is None or row.turn is None:
            return await self._without_calls(input)
        turn = row.turn(request)
        async with AsyncExitStack() as held:
            try:
                await held.enter_async_context(self._turns.turn(*turn, within_s=PATIENCE_S))
            except TimeoutError:
                saturation.count_postponed(name)
                raise Failure(
                    ErrorCode.WORKER_BUSY, f"{turn.tenant or 'the installation'} has its share of this worker"
                ) from None
            return await self.next.execute_activity(input)

    async def _without_calls(self, input: ExecuteActivityInput) -> Any:
        token = may_call_out.set(False)
        try:
            return await self.next.execute_activity(input)
        finally:
            may_call_out.reset(token)
