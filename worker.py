"""The worker: runs workflows and activities. Any number of copies, a journal each."""

import asyncio
import signal
from datetime import timedelta

from temporalio.worker import Worker
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions

from activities.single_use.critical_section import CriticalSections
from activities.support.failures import FailureInterceptor
from evergrant_server.core.single_use.attempt import LIMITS, TimeLimits
from evergrant_server.crypto.keyring import Role
from evergrant_server.journal import Journal
from evergrant_server.process_exit import exit_process
from evergrant_server.settings import Settings, load_settings
from evergrant_server.temporal_link.namespace import require_prepared_namespace
from evergrant_server.temporal_link.schedules import keep_schedules
from evergrant_server.temporal_link.tracing import RequestTraceInterceptor
from evergrant_server.temporal_link.worker_metrics import serve_worker_metrics
from evergrant_server.wiring import build_activities, flush_telemetry, open_platform, start_telemetry
from workflows.registry import WORKFLOWS

SERVICE = "evergrant-worker"
GRACEFUL_SHUTDOWN = timedelta(seconds=100)  # longer than any activity that talks to a provider
COMMIT_LIMIT = timedelta(seconds=10)  # after that: for what has been answered, and waits for the store


async def run(settings: Settings, stop: asyncio.Event, limits: TimeLimits = LIMITS) -> None:
    """Work until `stop` is set, then let what has begun come to its end. Tests give shorter `limits`."""
    sections = CriticalSections()
    journal = Journal(settings.data_dir / "journals")
    async with (
        serve_worker_metrics(settings, SERVICE) as options,
        open_platform(settings, Role.WORKER, **options) as parts,
    ):
        await require_prepared_namespace(parts.client)
        work = build_activities(parts, sections, journal, limits)
        worker = Worker(
            parts.client,
            task_queue=settings.temporal_task_queue,
            workflows=WORKFLOWS,
            activities=work.activities,
            interceptors=[FailureInterceptor(), RequestTraceInterceptor()],
            workflow_runner=SandboxedWorkflowRunner(
                SandboxRestrictions.default.with_passthrough_modules("evergrant_server.core", "pydantic")
            ),
            graceful_shutdown_timeout=GRACEFUL_SHUTDOWN,
            sticky_queue_schedule_to_start_timeout=timedelta(seconds=2),  # a dead worker's share moves on
        )
        running = (parts.relay.run(), work.replayer.run(), keep_schedules(parts.client, settings))
        beside = [asyncio.create_task(it) for it in running]
        try:
            async with worker:
                print("worker ready", flush=True)
                await stop.wait()
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)  # before what they use is closed
            await sections.drain(COMMIT_LIMIT)
    journal.release()


async def main(settings: Settings) -> None:
    start_telemetry(settings, SERVICE)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await run(settings, stop)
    await asyncio.to_thread(flush_telemetry)


if __name__ == "__main__":
    asyncio.run(main(load_settings()))
    exit_process(0)
