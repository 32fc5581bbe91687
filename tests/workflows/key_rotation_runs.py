"""A rotation of keys under test: its start, its signal and its query."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from temporalio.client import Client, WorkflowHandle

from evergrant_server.core.ids import KeyRotationId, new_id
from evergrant_server.core.key_rotation import RotationCommand, RotationKind
from evergrant_server.core.messages import jobs
from evergrant_server.core.messages.keys import KeyRotationProgress, KeyRotationStart, PauseKeyRotation
from evergrant_server.core.messages.names import QueryName, SignalName
from evergrant_server.temporal_link import start_requests
from tests.fakes.scripted_activities import ScriptedActivities
from tests.workflows.connection_runs import ASKED, Handle, a_worker
from tests.workflows.maintenance_runs import TENANT

ADVANCE = jobs.ADVANCE_KEY_ROTATION.name


@asynccontextmanager
async def rotating(
    client: Client, scripted: ScriptedActivities, **changes: Any
) -> AsyncIterator[WorkflowHandle[Any, KeyRotationProgress]]:
    """A rotation on a worker of its own."""
    values: dict[str, Any] = {
        "tenant": TENANT,
        "rotation_id": KeyRotationId(new_id("rot")),
        "kind": RotationKind.TENANT,
        "command": RotationCommand.ROTATE,
        "begun_at": datetime.now(UTC),
        "context": ASKED,
        **changes,
    }
    start = start_requests.key_rotation(KeyRotationStart(**values))
    queue = f"queue-{values['rotation_id']}"
    async with a_worker(client, scripted.everything(), queue):
        yield await client.start_workflow(
            start.workflow,
            start.argument,
            id=f"{start.workflow_id}:{values['rotation_id']}",
            task_queue=queue,
            result_type=KeyRotationProgress,
        )


async def paused(handle: Handle, *, paused: bool = True) -> None:
    await handle.signal(SignalName.PAUSE_KEY_ROTATION, PauseKeyRotation(paused=paused, context=ASKED))


async def described(handle: Handle) -> KeyRotationStart:
    return await handle.query(QueryName.DESCRIBE_KEY_ROTATION, result_type=KeyRotationStart)
