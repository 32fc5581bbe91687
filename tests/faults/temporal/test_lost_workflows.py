"""Temporal's database is lost: the doctor says so, and a worker without a schedule starts workflows anew."""

from datetime import timedelta
from typing import Any

import pytest

from evergrant_server.cli.doctor import CheckFailed, installation
from evergrant_server.core.messages.jobs import RECONCILE
from evergrant_server.core.messages.names import connection_workflow_id
from evergrant_server.temporal_link.runs import WorkflowNotRunning
from evergrant_server.temporal_link.schedules import declare_schedules, schedule_id
from tests.fakes.patience import eventually
from tests.fakes.platform.installation import Installation


@pytest.fixture
def settings() -> dict[str, Any]:
    return {"reconcile_interval": timedelta(days=1)}


async def test_a_worker_starts_lost_workflows_at_once_and_the_doctor_names_them_before(place: Installation):
    connection = await place.connect()
    workflow = connection_workflow_id(connection.tenant, connection.id)
    assert "each of 1" in await installation.workflows(place.parts.settings)
    run = await place.parts.link.newest_run(workflow)
    assert run is not None
    await place.parts.link.terminate_run(workflow, run.run_id, "lost")
    with pytest.raises(CheckFailed, match=f"1 of 1 .* {connection.id} .* database lost") as found:
        await installation.workflows(place.parts.settings)
    assert "reconcile" in found.value.repair

    handle = place.parts.client.get_schedule_handle(schedule_id(place.parts.settings, RECONCILE))
    await handle.delete()
    await declare_schedules(place.parts.client, place.parts.settings)

    async def named() -> bool:
        try:
            return bool(await installation.workflows(place.parts.settings))
        except (CheckFailed, WorkflowNotRunning):
            return False

    await eventually(named)
