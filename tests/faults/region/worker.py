"""A worker of the drill, whose attempts are over sooner: `python -m tests.faults.region.worker`."""

import asyncio
import signal
from datetime import timedelta

import worker
from evergrant_server.core.single_use.attempt import TimeLimits
from evergrant_server.process import exit_process
from evergrant_server.settings import load_settings
from evergrant_server.temporal_link.telemetry import start_telemetry

SHORT = TimeLimits(
    send=timedelta(seconds=6), answer=timedelta(seconds=8), poll_interval=timedelta(seconds=0.5)
)


async def main() -> None:
    settings, stop = load_settings(), asyncio.Event()
    start_telemetry(settings, worker.SERVICE)
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await worker.run(settings, stop, SHORT, with_schedules=False)


if __name__ == "__main__":
    asyncio.run(main())
    exit_process(0)
