"""A year of one connection in seconds: what it costs at the provider and in Temporal's history.

The activities answer as the real ones would: who leases, when the provider is away, and how its
refresh tokens age are the story's. Time is the test server's, which skips what nobody waits for.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

from temporalio import activity
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest
from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.testing import WorkflowEnvironment

from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.lifecycle.schedule import NEWEST_RULES
from evergrant_server.core.messages import connection as m
from evergrant_server.core.messages.activities import GrantResult
from evergrant_server.core.messages.base import (
    ActivityName,
    SearchAttribute,
    SignalName,
    WorkflowName,
    connection_workflow_id,
)
from evergrant_server.core.single_use.circuit_breaker import (
    BreakerRules,
    CircuitBreaker,
    admit,
    answered,
    failed,
)
from tests.fakes.scripted_activities import ScriptedActivities
from tests.fakes.temporal import skipping_time
from tests.workflows.connection_runs import Handle, Life, a_consent, a_start, a_worker

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
REFRESH = ActivityName.REFRESH_GRANT


class Provider(ScriptedActivities):
    """Refreshes as the activity does, circuit included; `away` and `leased` get the time passed."""

    def __init__(
        self,
        *,
        away: Callable[[timedelta], bool] = lambda passed: False,
        leased: Callable[[timedelta], bool] = lambda passed: True,
        refresh_lives: timedelta | None = None,
    ) -> None:
        super().__init__()
        self._away, self._leased = away, leased
        self._refresh_lives = refresh_lives
        self._ends: datetime | None = None
        self._circuit, self._rules = CircuitBreaker(), BreakerRules()
        self.begin: datetime | None = None
        self.sent: list[timedelta] = []
        self.announced: list[int] = []

    async def _answer(self, name: ActivityName, order: Any, default: Callable[[], Any]) -> Any:
        now = activity.info().started_time
        self.begin = self.begin or now
        passed = now - self.begin
        self.calls.append((name, order))
        if name == ActivityName.ANNOUNCE_EXPIRY:
            self.announced.append(order.days)
        if name == REFRESH:
            return self._refreshed(order, now, passed)
        return self._dated(default(), now) if name == ActivityName.EXCHANGE_CODE else default()

    def _refreshed(self, order: Any, now: datetime, passed: timedelta) -> GrantResult:
        if order.only_if_leased and not self._leased(passed):
            return GrantResult(not_leased=True)
        at = now.timestamp()
        self._circuit, admission = admit(self._circuit, at, self._rules, 0.5)
        if admission.delay is None:
            return GrantResult(failure=ErrorCode.PROVIDER_ERROR, retry_after=admission.retry_after)
        self.sent.append(passed)
        if self._away(passed):
            self._circuit = failed(
                self._circuit, at, self._rules, ErrorCode.PROVIDER_ERROR, None, probe=admission.probe
            )
            return GrantResult(failure=ErrorCode.PROVIDER_ERROR)
        self._circuit = answered(self._circuit, at, self._rules)
        if self._ends is not None and now >= self._ends:
            return GrantResult(failure=ErrorCode.GRANT_REJECTED)
        return self._dated(self._news(), now)

    def _dated(self, news: GrantResult, now: datetime) -> GrantResult:
        if self._refresh_lives:
            self._ends = now + self._refresh_lives
        dates = {"obtained_at": now, "expires_at": now + self.lifetime, "refresh_expires_at": self._ends}
        return news.model_copy(update=dates)


@asynccontextmanager
async def skipping() -> AsyncIterator[WorkflowEnvironment]:
    async with skipping_time(data_converter=pydantic_data_converter) as env:
        request = AddSearchAttributesRequest(
            namespace=env.client.namespace,
            search_attributes=dict.fromkeys(SearchAttribute, IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD),
        )
        await env.client.operator_service.add_search_attributes(request)
        yield env


@asynccontextmanager
async def living_with(
    env: WorkflowEnvironment, provider: Provider, policy: str, rules: int = NEWEST_RULES
) -> AsyncIterator[Life]:
    begin = await env.get_current_time()
    start = a_start(policy=policy, consent_deadline=begin + HOUR).model_copy(update={"rules": rules})
    workflow = connection_workflow_id(start.tenant, start.connection_id)
    async with a_worker(env.client, provider.everything(), "year"):
        handle = await env.client.start_workflow(
            WorkflowName.CONNECTION, start, id=workflow, task_queue="year"
        )
        await handle.signal(SignalName.CONSENT_GRANTED, a_consent())
        newest = env.client.get_workflow_handle(workflow, result_type=m.ConnectionEnded)
        yield Life(newest, provider, start)


async def events_of(client: Client, handle: Handle, first_run: str | None) -> tuple[int, int]:
    """History events of all runs, and the number of runs."""
    events, runs, run = 0, 0, first_run
    while run:
        one = client.get_workflow_handle(handle.id, run_id=run)
        history = await one.fetch_history()
        events, runs = events + len(history.events), runs + 1
        last = history.events[-1]
        run = last.workflow_execution_continued_as_new_event_attributes.new_execution_run_id
    return events, runs


async def pass_by(env: WorkflowEnvironment, time: timedelta) -> None:
    """Skip, a week a call: one that is under way for minutes is cut off."""
    while time > timedelta(0):
        await env.sleep(min(time, 7 * DAY))
        time -= 7 * DAY
