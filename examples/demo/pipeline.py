"""The pipeline's step: a workflow of another team signals for its token."""

import os
from pathlib import Path
from uuid import uuid4

from temporalio.client import Client

from examples.demo.claims import Claim, expect
from examples.demo.processes import Process
from examples.demo.story import Story
from examples.pipeline.messages import TASK_QUEUE, SyncReport, SyncRequest


async def start_worker(story: Story, data: Path) -> Process:
    """Start the worker of `examples.pipeline` with the app's key and the same Temporal."""
    key_file = data / "pipeline.key"
    key_file.touch(mode=0o600)
    key_file.write_text(story.app_key)
    platform = story.platform
    command = ["-m", "examples.pipeline", "--temporal", platform.temporal, "--namespace", platform.namespace]
    command += ["worker", "--evergrant-url", platform.api, "--api-key-file", str(key_file)]
    env = {name: value for name, value in os.environ.items() if not name.startswith("TEMPORAL_")}
    return await Process.start("pipeline", command, ready_prefix="pipeline worker is running", env=env)


async def run_pipeline(story: Story, client: Client) -> str:
    """Run one of its workflows. Returns the workflow's id."""
    order = SyncRequest(
        connection=story.workflow_id,
        integration=story.integration,
        subject=story.subject,
        resource_url=f"{story.server.issuer}/api/whoami",
    )
    workflow_id = f"sync-contacts-{uuid4()}"
    report = await client.execute_workflow(
        "SyncContacts", order, id=workflow_id, task_queue=TASK_QUEUE, result_type=SyncReport
    )
    expect(report.ids == [story.server.user], f"the pipeline read {report.ids}")
    story.claims.observed(
        Claim.PIPELINE, f"it read {', '.join(report.ids)} with generation {report.generation}"
    )
    return workflow_id
