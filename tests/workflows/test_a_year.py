"""A year of one connection in seconds: calls at the provider and history events, asserted as counts.

The activities answer as the real ones would: who leases, when the provider is away, and how its
refresh tokens age are the story's. Time is the test server's, which skips what nobody waits for.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

import pytest
from temporalio import activity
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest
from temporalio.client import Client
from temporalio.testing import WorkflowEnvironment

from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.lifecycle.schedule import NEWEST_RULES, RULES
from evergrant_server.core.messages import connection as m
from evergrant_server.core.messages import jobs
from evergrant_server.core.messages.activities import GrantResult, RevocationResult
from evergrant_server.core.messages.names import (
    SearchAttribute,
    SignalName,
    WorkflowName,
    connection_workflow_id,
)
from evergrant_server.core.single_use.circuit_breaker import CircuitBreaker, admit, answered, failed
from evergrant_server.core.single_use.retry_budget import BreakerRules
from evergrant_server.temporal_link.received import DATA_CONVERTER
from tests.fakes.scripted_activities import ScriptedActivities
from tests.fakes.temporal import skipping_time
from tests.workflows.connection_runs import ASKED, Handle, Life, a_consent, a_start, a_worker

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
REFRESH = jobs.REFRESH_GRANT.name


class Provider(ScriptedActivities):
    """Refreshes as the activity does, circuit included; what is asked of it gets the time passed."""

    def __init__(
        self,
        *,
        away: Callable[[timedelta], bool] = lambda passed: False,
        leased: Callable[[timedelta], bool] = lambda passed: True,
        revocable: Callable[[timedelta], bool] = lambda passed: True,
        refresh_lives: timedelta | None = None,
    ) -> None:
        super().__init__()
        self._away, self._leased, self._revocable = away, leased, revocable
        self._refresh_lives = refresh_lives
        self._ends: datetime | None = None
        self._circuit, self._rules = CircuitBreaker(), BreakerRules()
        self.begin: datetime | None = None
        self.sent: list[timedelta] = []
        self.announced: list[int] = []

    async def answer(self, name: str, order: Any, default: Any) -> Any:
        now = activity.info().started_time
        self.begin = self.begin or now
        passed = now - self.begin
        if name == jobs.ANNOUNCE_EXPIRY.name:
            self.announced.append(order.days)
        if name == REFRESH:
            default = self._refreshed(order, now, passed)
        elif name == jobs.REVOKE_GRANT.name and not self._revocable(passed):
            default = RevocationResult(failure=ErrorCode.PROVIDER_UNREACHABLE)
        result = await super().answer(name, order, default)
        return self._dated(result, now) if name == jobs.EXCHANGE_CODE.name else result

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
        return self._dated(self._result(order), now)

    def _dated(self, news: GrantResult, now: datetime) -> GrantResult:
        if self._refresh_lives:
            self._ends = now + self._refresh_lives
        dates = {"obtained_at": now, "expires_at": now + self.lifetime, "refresh_expires_at": self._ends}
        return news.model_copy(update=dates)


@asynccontextmanager
async def skipping() -> AsyncIterator[WorkflowEnvironment]:
    async with skipping_time(data_converter=DATA_CONVERTER) as env:
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


OUTAGE = (100 * DAY, 100 * DAY + 12 * HOUR)
QUARTER = (180 * DAY, 271 * DAY)


def away(passed: timedelta) -> bool:
    return OUTAGE[0] <= passed < OUTAGE[1]


def leased(passed: timedelta) -> bool:
    return not QUARTER[0] <= passed < QUARTER[1]


@pytest.mark.soak
async def test_a_year_with_an_outage_and_an_idle_quarter():
    """Hourly tokens, leased all the time but for a quarter; the refresh token lives 90 days from each use."""
    async with skipping() as env:
        provider = Provider(away=away, leased=leased, refresh_lives=90 * DAY)
        async with living_with(env, provider, "adaptive") as life:
            first_run = (await life.handle.describe()).run_id
            await pass_by(env, QUARTER[1])
            idle = [it for it in provider.sent if QUARTER[0] + HOUR <= it]
            woken = await life.describe()
            fresh = await life.ensure_fresh(woken.generation)
            assert fresh.problem is None, "the quarter has not cost the grant"
            await pass_by(env, 365 * DAY - QUARTER[1])
            assert (await life.describe()).state is LifecycleState.ACTIVE
            events, runs = await events_of(env.client, life.handle, first_run)
    during = [it for it in provider.sent if away(it)]
    busy = (365 * DAY - (QUARTER[1] - QUARTER[0]) - 12 * HOUR) / HOUR
    assert len(during) <= 15
    assert 1 <= len(idle) <= 4, "kept alive"
    # every 52 minutes or so: an hour less the margin and a share of the six minutes of its spread
    assert busy <= len(provider.sent) <= busy * 60 / 50
    assert events <= 13 * len(provider.sent) + 10 * runs + 400
    assert not provider.announced


@pytest.mark.parametrize(
    "rules", [pytest.param(it, marks=() if it == NEWEST_RULES else pytest.mark.soak) for it in RULES]
)
async def test_a_revocation_outlasts_five_days_without_the_provider(rules: int):
    """Never given up, at most once an hour, and what fails and since when is said all along."""
    provider = Provider(revocable=lambda passed: passed >= 5 * DAY)
    async with skipping() as env, living_with(env, provider, "on_demand", rules) as life:
        await life.handle.signal(SignalName.REVOKE, m.Revoke(reason="left", context=ASKED))
        await env.sleep(3 * DAY)
        said = await life.describe()
        assert said.state is LifecycleState.REVOKING
        assert said.revocation_failure is ErrorCode.PROVIDER_UNREACHABLE
        assert said.revocation_failing_since is not None
        assert provider.begin is not None
        assert said.revocation_failing_since - provider.begin < timedelta(minutes=1)
        assert said.next_at is not None
        await env.sleep(timedelta(days=2, hours=2))
        assert (await life.describe()).state is LifecycleState.REVOKED
        tries = provider.count(jobs.REVOKE_GRANT.name)
        assert 5 * 24 * 0.7 < tries < 5 * 24 * 1.4 + 12
