"""The order of a rollout: checks, a decision or none, stages, an admin's roll-back."""

from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter

from evergrant_server.core.definition import DefinitionState
from tests.fakes.temporal import skipping_time
from tests.workflows.rollout_runs import FOREVER, ScriptedRollout, decided, running_rollout, wanted_back

WAITING, STAGED, ACTIVE = DefinitionState.WAITING, DefinitionState.STAGED, DefinitionState.ACTIVE


def done(scripted: ScriptedRollout) -> list[str]:
    return [what for what, _ in scripted.orders]


async def test_an_unsound_definition_needs_no_decision(client: Client):
    scripted = ScriptedRollout(DefinitionState.UNSOUND)
    async with running_rollout(client, scripted) as handle:
        assert (await handle.result()).state is DefinitionState.UNSOUND
    assert done(scripted) == ["check"]


async def test_an_admins_roll_back_does_not_wait_for_the_next_look(client: Client):
    scripted = ScriptedRollout(WAITING, STAGED)
    async with running_rollout(client, scripted, watch_s=FOREVER) as handle:
        await decided(handle)
        await wanted_back(handle)
        assert (await handle.result()).state is DefinitionState.ROLLED_BACK
    assert scripted.orders[-1][1].roll_back == "support tickets"


async def test_a_month_without_a_decision_rejects_the_definition():
    scripted = ScriptedRollout(WAITING)
    async with (
        skipping_time(data_converter=pydantic_data_converter) as env,
        running_rollout(env.client, scripted) as handle,
    ):
        assert (await handle.result()).state is DefinitionState.REJECTED
    assert scripted.orders[-1][1].overdue
