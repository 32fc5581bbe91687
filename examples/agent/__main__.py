"""`python -m examples.agent`: runs the worker, with TEMPORAL_ADDRESS and the EVERGRANT_ settings.

It prints each link that a consent needs; a real one sends it to the subject.
"""

import asyncio
import os
from datetime import timedelta

from evergrant import AsyncEvergrant, ConsentRequired
from evergrant.temporal import EvergrantPlugin
from evergrant.temporal.workflow import EnsureToken
from temporalio.client import Client
from temporalio.worker import Worker

from examples.agent.activities import AgentActivities
from examples.agent.messages import TASK_QUEUE
from examples.agent.workflow import TakesNote


async def show_link(wanted: EnsureToken, required: ConsentRequired) -> None:
    print(f"{wanted.subject} has to consent: {required.connect_url}", flush=True)


async def main() -> None:
    client = await Client.connect(os.environ.get("TEMPORAL_ADDRESS", "127.0.0.1:8482"))
    async with AsyncEvergrant() as evergrant:
        agent = AgentActivities(evergrant)
        worker = Worker(
            client,
            task_queue=TASK_QUEUE,
            workflows=[TakesNote],
            activities=[agent.ask, agent.decision, agent.write],
            plugins=[EvergrantPlugin(on_consent_required=show_link)],
            # how long a workflow waits for the worker that had it last, before another one may take it over
            sticky_queue_schedule_to_start_timeout=timedelta(seconds=1),
        )
        print("the agent's worker is running", flush=True)
        await worker.run()


if __name__ == "__main__":
    asyncio.run(main())
