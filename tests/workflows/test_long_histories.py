"""Runs that get long, and floods: history stays bounded and nothing is lost."""

import asyncio

import pytest
from temporalio.client import Client

from evergrant_server.core.lifecycle.schedule import NEWEST_RULES, RULES
from evergrant_server.core.messages import connection as m
from evergrant_server.core.messages.names import ActivityName, SignalName
from tests.workflows.connection_runs import ASKED, living


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
