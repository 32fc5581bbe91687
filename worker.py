"""The worker: runs workflows and activities. Any number may run, each with a journal of its own."""

import asyncio
import signal
from contextlib import suppress
from datetime import timedelta

from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from activities.single_use.intent import CriticalSections
from activities.support.interceptor import ACTIVITY_SLOTS, ActivityInterceptor
from evergrant_server.core.single_use.attempt import LIMITS, TimeLimits
from evergrant_server.crypto.keyring import Role
from evergrant_server.journal import Journal
from evergrant_server.process import exit_process
from evergrant_server.regions.serving_region import Region
from evergrant_server.settings import Settings, load_settings
from evergrant_server.temporal_link.connect import require_prepared_namespace
from evergrant_server.temporal_link.queue_order import QueueOrderInterceptor
from evergrant_server.temporal_link.received import ReceivedInterceptor
from evergrant_server.temporal_link.schedules import keep_schedules
from evergrant_server.temporal_link.telemetry import (
    RequestTraceInterceptor,
    flush_telemetry,
    serve_worker_pages,
    start_telemetry,
)
from evergrant_server.wiring.heartbeat import Heartbeat
from evergrant_server.wiring.platform import Platform, open_platform
from evergrant_server.wiring.worker_parts import WorkerParts, build_worker_parts
from workflows.registry import WORKFLOWS

SERVICE = "evergrant-worker"
GRACEFUL_SHUTDOWN = timedelta(seconds=100)  # longer than any activity that sends a request to a provider
_LOOK_S = 1.0  # of a region that another one serves for, at whether it still does
COMMIT_LIMIT = timedelta(seconds=10)  # then for answers that still have to be committed


async def run(
    settings: Settings, stop: asyncio.Event, limits: TimeLimits = LIMITS, *, with_schedules: bool = True
) -> None:
    """Work until `stop` is set, then finish the activities that have begun. Tests pass shorter `limits`, and
    leave the schedules out where nothing recurs."""
    sections = CriticalSections()
    journal = Journal(settings.data_dir / "journals")
    async with (
        serve_worker_pages(settings, SERVICE) as pages,
        open_platform(settings, Role.WORKER, **pages.client_options) as platform,
        Heartbeat(platform.store, platform.clock).running(),
    ):
        await require_prepared_namespace(platform.client)
        if platform.region is not None and not await _until_here(platform.region, stop):
            return journal.release()
        parts = build_worker_parts(platform, sections, journal, limits)
        background = [
            asyncio.create_task(platform.relay.run()),
            asyncio.create_task(parts.replayer.run()),
            asyncio.create_task(parts.audit_log.run()),
            asyncio.create_task(parts.streams.run()),
        ]
        if with_schedules:
            background.append(asyncio.create_task(keep_schedules(platform.client, settings)))
        try:
            async with _temporal_worker(platform, parts):
                print("worker ready", flush=True)
                pages.is_ready = True
                await stop.wait()
        finally:
            pages.is_ready = False
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)  # before the platform is closed
            await sections.drain(COMMIT_LIMIT)
    journal.release()


async def _until_here(region: Region, stop: asyncio.Event) -> bool:
    """Wait until this region serves; False: told to stop first. A worker of the region that waits would
    start workflows for connections that the other one refreshes."""
    while not await region.is_here():
        print(f"worker waits until region {region.name} serves", flush=True)
        with suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_S):
                await stop.wait()
        if stop.is_set():
            return False
    return True


def _temporal_worker(platform: Platform, parts: WorkerParts) -> Worker:
    return Worker(
        platform.client,
        task_queue=platform.settings.temporal_task_queue,
        workflows=WORKFLOWS,
        activities=parts.activities,
        interceptors=[
            ReceivedInterceptor(),
            RequestTraceInterceptor(),
            QueueOrderInterceptor(),
            ActivityInterceptor(platform.ring, platform.clock),
        ],
        max_concurrent_activities=ACTIVITY_SLOTS,
        max_cached_workflows=platform.settings.cached_workflows,
        workflow_runner=UnsandboxedWorkflowRunner(),
        graceful_shutdown_timeout=GRACEFUL_SHUTDOWN,
        # after this, another worker takes over the workflows of one that crashed
        sticky_queue_schedule_to_start_timeout=timedelta(seconds=2),
    )


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
