"""Runs that get long, floods, and a year: history stays bounded and nothing is lost."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from temporalio import activity
from temporalio.client import Client

from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.lifecycle.schedule import NEWEST_RULES, RULES
from evergrant_server.core.messages import connection as m
from evergrant_server.core.messages.activities import RevocationResult
from evergrant_server.core.messages.base import (
    ActivityName,
    SignalName,
)
from tests.workflows.connection_runs import ASKED, living
from tests.workflows.year import DAY, Provider, living_with, skipping

REFRESH = ActivityName.REFRESH_GRANT


@pytest.fixture
def short_histories(monkeypatch: pytest.MonkeyPatch) -> None:
    short = RULES[NEWEST_RULES].model_copy(update={"longest_history": 120})
    monkeypatch.setitem(RULES, NEWEST_RULES, short)


async def test_a_flood_of_signals_is_bounded_by_continue_as_new_and_loses_none(
    client: Client, short_histories: None
):
    """Every rotate is a signal of its own; each must lead to its refresh, across runs."""
    async with living(client) as life:
        await life.consent()
        rotate = m.Rotate(reason="flood", context=ASKED)
        await asyncio.gather(*(life.handle.signal(SignalName.ROTATE, rotate) for _ in range(60)))
        await life.until(lambda d: d.generation == 61)
        newest = client.get_workflow_handle(life.handle.id)
        assert (await newest.describe()).run_id != life.handle.first_execution_run_id
        length = (await newest.describe()).history_length
        assert length < 400
        runs = life.scripted.count(ActivityName.EXPORT_RUN_HISTORY)
        assert runs >= 2, "each run that ended was exported"


async def test_updates_are_answered_across_continue_as_new(client: Client, short_histories: None):
    async with living(client) as life:
        generation = (await life.consent()).generation
        life.handle = client.get_workflow_handle(life.handle.id)
        for _ in range(25):
            answer = await life.ensure_fresh(generation)
            assert answer.generation == generation + 1
            generation = answer.generation
        assert life.scripted.count(ActivityName.EXPORT_RUN_HISTORY) >= 1


class DaysDown(Provider):
    """The provider's revocation endpoint is down for five days."""

    async def _answer(self, name: ActivityName, order: Any, default: Callable[[], Any]) -> Any:
        answer = await super()._answer(name, order, default)
        assert self.begin is not None
        if name == ActivityName.REVOKE_GRANT and activity.info().started_time - self.begin < 5 * DAY:
            return RevocationResult(failure=ErrorCode.PROVIDER_UNREACHABLE)
        return answer


@pytest.mark.parametrize("rules", RULES)
async def test_a_revocation_outlasts_five_days_without_the_provider(rules: int):
    """Never given up, at most once an hour, and what fails and since when is said all along."""
    provider = DaysDown()
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
        tries = provider.count(ActivityName.REVOKE_GRANT)
        assert 5 * 24 * 0.7 < tries < 5 * 24 * 1.4 + 12
        print(f"rules {rules}: {tries} tries")
