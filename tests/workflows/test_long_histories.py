"""Runs that get long, floods, and a year: history stays bounded and nothing is lost."""

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from temporalio import activity
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest
from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.testing import WorkflowEnvironment

from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.lifecycle.schedule import NEWEST_RULES, RULES
from evergrant_server.core.messages import connection as m
from evergrant_server.core.messages.activities import GrantResult, RevocationResult
from evergrant_server.core.messages.base import (
    ActivityName,
    SearchAttribute,
    SignalName,
    UpdateName,
    WorkflowName,
    connection_workflow_id,
)
from tests.fakes.scripted_activities import ScriptedActivities
from tests.fakes.temporal import skipping_time
from tests.workflows.connection_runs import ASKED, Life, a_consent, a_start, a_worker, living

REFRESH = ActivityName.REFRESH_GRANT


@pytest.fixture
def short_histories(monkeypatch: pytest.MonkeyPatch) -> None:
    short = RULES[NEWEST_RULES].model_copy(update={"longest_history": 120})
    monkeypatch.setitem(RULES, NEWEST_RULES, short)


async def test_a_flood_of_signals_is_bounded_by_continue_as_new_and_loses_none(
    client: Client, short_histories: None
):
    """Every rotate is a signal of its own; each must lead to its refresh, across runs."""
    scripted = ScriptedActivities()
    async with living(client, scripted) as life:
        await life.consent()
        rotate = m.Rotate(reason="flood", context=ASKED)
        await asyncio.gather(*(life.handle.signal(SignalName.ROTATE, rotate) for _ in range(60)))
        await life.until(lambda d: d.generation == 61)
        newest = client.get_workflow_handle(life.handle.id)
        assert (await newest.describe()).run_id != life.handle.first_execution_run_id
        length = (await newest.describe()).history_length
        assert length < 400
        runs = scripted.count(ActivityName.EXPORT_RUN_HISTORY)
        assert runs >= 2, "each run that ended was exported"


async def test_updates_are_answered_across_continue_as_new(client: Client, short_histories: None):
    async with living(client) as life:
        generation = (await life.consent()).generation
        handle = client.get_workflow_handle(life.handle.id)
        for _ in range(25):
            ask = m.EnsureFresh(seen_generation=generation, context=ASKED)
            answer = await handle.execute_update(
                UpdateName.ENSURE_FRESH, ask, result_type=m.EnsureFreshResult
            )
            assert answer.generation == generation + 1
            generation = answer.generation
        assert life.scripted.count(ActivityName.EXPORT_RUN_HISTORY) >= 1


class Year(ScriptedActivities):
    """Days in `outage` answer `provider_error`; without `leased` no app has leased the token."""

    def __init__(self, begin: datetime, outage: range, leased: bool, idle_s: float | None):
        super().__init__(idle_s=idle_s)
        self._begin, self._outage, self._leased = begin, outage, leased

    async def _answer(self, name: ActivityName, order: Any, default: Callable[[], Any]) -> Any:
        day = (activity.info().started_time - self._begin).days
        if name == REFRESH and order.only_if_leased and not self._leased:
            self.answers[name] = [GrantResult(not_leased=True)]
        elif name == REFRESH and day in self._outage:
            self.answers[name] = [GrantResult(failure=ErrorCode.PROVIDER_ERROR)]
        return await super()._answer(name, order, default)


async def one_year(policy: str, *, idle_s: float | None, leased: bool, outage: range = range(0)) -> int:
    """How many times a year of one connection, with hourly tokens, asks for a refresh."""
    async with skipping_time(data_converter=pydantic_data_converter) as env:
        await prepare_search_attributes(env)
        begin = await env.get_current_time()
        scripted = Year(begin, outage, leased, idle_s)
        start = a_start(policy=policy, consent_deadline=begin + timedelta(hours=1))
        async with a_worker(env.client, scripted, "year"):
            handle = await env.client.start_workflow(
                WorkflowName.CONNECTION, start, id=connection_workflow_id(start.tenant, start.connection_id),
                task_queue="year", result_type=m.ConnectionEnded,
            )  # fmt: skip
            await handle.signal(SignalName.CONSENT_GRANTED, a_consent())
            await env.sleep(timedelta(days=365))
            life = Life(
                env.client.get_workflow_handle(handle.id, result_type=m.ConnectionEnded), scripted, start
            )
            assert (await life.describe()).state is LifecycleState.ACTIVE
            return scripted.count(REFRESH)


async def prepare_search_attributes(env: WorkflowEnvironment) -> None:
    request = AddSearchAttributesRequest(
        namespace=env.client.namespace,
        search_attributes=dict.fromkeys(SearchAttribute, IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD),
    )
    await env.client.operator_service.add_search_attributes(request)


async def test_an_idle_year_costs_one_look_and_the_keep_alives():
    """Nobody leases; the refresh token dies after 90 idle days, so it is used every 45."""
    refreshes = await one_year("adaptive", idle_s=90 * 86_400.0, leased=False)
    keep_alives = 365 / 45
    looks_and_keep_alives = 2 * keep_alives + 2  # each new generation is looked at once
    assert 12 <= refreshes <= looks_and_keep_alives


async def test_an_idle_year_without_idle_expiry_costs_a_single_look():
    refreshes = await one_year("adaptive", idle_s=None, leased=False)
    assert refreshes == 1


async def test_an_outage_of_a_day_costs_a_handful_of_calls():
    """Half an hour between tries at the most: 48 in a day, and the climb to it."""
    with_outage = await one_year("on_demand", idle_s=2 * 86_400.0, leased=True, outage=range(10, 11))
    without = await one_year("on_demand", idle_s=2 * 86_400.0, leased=True)
    assert with_outage - without <= 65


class DaysDown(Year):
    """The provider's revocation endpoint is down for five days."""

    async def _answer(self, name: ActivityName, order: Any, default: Callable[[], Any]) -> Any:
        up_again = activity.info().started_time - self._begin >= timedelta(days=5)
        if name == ActivityName.REVOKE_GRANT and not up_again:
            self.answers[name] = [RevocationResult(failure=ErrorCode.PROVIDER_UNREACHABLE)]
        return await super()._answer(name, order, default)


@pytest.mark.parametrize("rules", RULES)
async def test_a_revocation_outlasts_five_days_without_the_provider(rules: int):
    """Never given up, at most once an hour, and what fails and since when is said all along."""
    async with skipping_time(data_converter=pydantic_data_converter) as env:
        await prepare_search_attributes(env)
        begin = await env.get_current_time()
        scripted = DaysDown(begin, range(0), leased=False, idle_s=None)
        start = a_start(policy="on_demand", consent_deadline=begin + timedelta(hours=1))
        start = start.model_copy(update={"rules": rules})
        async with a_worker(env.client, scripted, "days"):
            handle = await env.client.start_workflow(
                WorkflowName.CONNECTION, start, id=connection_workflow_id(start.tenant, start.connection_id),
                task_queue="days", result_type=m.ConnectionEnded,
            )  # fmt: skip
            await handle.signal(SignalName.CONSENT_GRANTED, a_consent())
            await handle.signal(SignalName.REVOKE, m.Revoke(reason="left", context=ASKED))
            await env.sleep(timedelta(days=3))
            life = Life(
                env.client.get_workflow_handle(handle.id, result_type=m.ConnectionEnded), scripted, start
            )
            said = await life.describe()
            assert (said.state, said.revocation_failure) == (
                LifecycleState.REVOKING,
                ErrorCode.PROVIDER_UNREACHABLE,
            )
            assert said.revocation_failing_since is not None
            assert said.revocation_failing_since - begin < timedelta(minutes=1)
            assert said.next_at is not None
            await env.sleep(timedelta(days=2, hours=2))
            assert (await life.describe()).state is LifecycleState.REVOKED
            tries = scripted.count(ActivityName.REVOKE_GRANT)
            assert 5 * 24 * 0.7 < tries < 5 * 24 * 1.4 + 12
            print(f"rules {rules}: {tries} tries")
