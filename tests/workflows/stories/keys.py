"""Stories of rotations of keys."""

from temporalio.client import Client

from evergrant_server.core.key_rotation import RotationStep
from evergrant_server.core.messages.keys import KeyRotationProgress
from tests.fakes.patience import eventually
from tests.fakes.scripted_activities import ScriptedActivities
from tests.workflows.connection_runs import Handle, until_called
from tests.workflows.key_rotation_runs import ADVANCE, described, paused, rotating
from tests.workflows.maintenance_runs import FOREVER


async def keys_rotated_with_a_pause_and_a_second_pass(client: Client) -> Handle:
    """An admin pauses it while it waits, and has it go on; something is left, and is counted again."""
    scripted = ScriptedActivities()
    moved = KeyRotationProgress(step=RotationStep.MOVE, after=("lease", "", "cky_1"), moved=100, total=150)
    left = moved.__replace__(after=(), moved=150, left=1, passes=1, wait_s=0.5)
    scripted.answers[ADVANCE] = [moved, moved.__replace__(wait_s=FOREVER), left]
    async with rotating(client, scripted) as handle:
        await until_called(scripted, ADVANCE, 2)
        await eventually(lambda: described(handle), lambda start: start.progress.wait_s)
        await paused(handle)
        await eventually(lambda: described(handle), lambda start: start.paused)
        await paused(handle, paused=False)
        await handle.result()
        return handle
