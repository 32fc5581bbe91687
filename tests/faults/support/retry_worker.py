"""A worker process that tells failing connections to try again, and is killed meanwhile.

`python -m tests.faults.support.retry_worker TEMPORAL QUEUE DATABASE KEYS`; messages stay in the outbox.
"""

import asyncio
import sys
from pathlib import Path

from temporalio.client import Client

from activities.integrations.retries import ConnectionRetryActivities
from evergrant_server.core.clock import SystemClock
from evergrant_server.crypto import KeyRing, Role
from evergrant_server.store import Store
from evergrant_server.temporal_link.received import DATA_CONVERTER
from tests.workflows.connection_runs import a_worker

PAGE_ROWS = 20
PAUSE_S = 0.5  # after each page


async def work(address: str, queue: str, database_url: str, keys: str) -> None:
    client = await Client.connect(address, data_converter=DATA_CONVERTER)
    clock = SystemClock()
    store = await Store.open(database_url, KeyRing.open(Path(keys), Role.WORKER), clock)
    walk = ConnectionRetryActivities(store, clock, page_rows=PAGE_ROWS, longest_wait_s=PAUSE_S)
    async with a_worker(client, [walk.retry_connections], queue):
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(work(*sys.argv[1:]))
