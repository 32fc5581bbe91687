"""The counterpart of a refresh: a workflow whose update runs one activity that does nothing.

`python -m bench.ceiling ADDRESS QUEUE` is its worker, in a process of its own like the product's.
"""

import asyncio
import signal
import sys
from datetime import timedelta

from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.worker import Worker

from evergrant_server.process import exit_process


@activity.defn
async def do_nothing(number: int) -> int:
    return number + 1


@workflow.defn
class Ceiling:
    """Runs until it is terminated; each `poke` is one activity on its own task queue."""

    @workflow.run
    async def run(self) -> None:
        await workflow.wait_condition(lambda: False)

    @workflow.update
    async def poke(self, number: int) -> int:
        return await workflow.execute_activity(
            do_nothing, number, start_to_close_timeout=timedelta(seconds=30)
        )


async def work(address: str, queue: str) -> None:
    """Work until a signal ends it."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    client = await Client.connect(address)
    async with Worker(client, task_queue=queue, workflows=[Ceiling], activities=[do_nothing]):
        print("worker ready", flush=True)
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(work(*sys.argv[1:3]))
    exit_process(0)
