"""A rotation of keys: page after page, pauses between them, and a new run before its history is too long."""

import pytest
from temporalio.client import Client

from evergrant_server.core import key_rotation
from evergrant_server.core.key_rotation import RotationStep
from evergrant_server.core.messages.keys import KeyRotationProgress
from tests.fakes.scripted_activities import ScriptedActivities
from tests.workflows.connection_runs import until_called
from tests.workflows.key_rotation_runs import ADVANCE, described, paused, rotating

PAGE = KeyRotationProgress(step=RotationStep.MOVE, after=("lease", "", "cky_1"), moved=100, total=150)


async def test_each_page_begins_where_the_last_one_ended(client: Client):
    scripted = ScriptedActivities()
    last = PAGE.__replace__(after=("intake", "consent", "cns_2"), moved=140)
    scripted.answers[ADVANCE] = [PAGE, last]
    async with rotating(client, scripted) as handle:
        result = await handle.result()
    assert result.done
    assert [call.progress for _, call in scripted.calls] == [KeyRotationProgress(), PAGE, last]


async def test_a_paused_rotation_moves_nothing_and_says_so(client: Client):
    scripted = ScriptedActivities()
    async with rotating(client, scripted, paused=True) as handle:
        assert (await described(handle)).paused
        assert scripted.calls == []
        await paused(handle, paused=False)
        await until_called(scripted, ADVANCE)
        await handle.result()


async def test_it_continues_as_new_where_it_was(client: Client, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(key_rotation, "LONGEST_HISTORY", 30)
    scripted = ScriptedActivities()
    scripted.answers[ADVANCE] = [PAGE.__replace__(moved=number) for number in range(20)]
    async with rotating(client, scripted) as handle:
        first = handle.result_run_id
        result = await handle.result()
        assert result.done
        assert (await client.get_workflow_handle(handle.id).describe()).run_id != first
    moved = [call.progress.moved for _, call in scripted.calls]
    assert moved == [0, *range(20)]
    assert len({call.provenance.run_id for _, call in scripted.calls}) >= 3
