"""Lives worth keeping: each is run once, and its history kept for replay.

`python -m tests.workflows.stories.record [NAME …]` records them into `histories/`; an existing file is never
overwritten, since a history that was once real must replay for ever. A change of the
workflow adds a story, or a second recording under a new name.
"""

import asyncio
import sys
import tempfile
from collections.abc import Awaitable, Callable
from datetime import timedelta
from inspect import iscoroutinefunction
from pathlib import Path

from temporalio.client import Client

from evergrant_server.temporal_link.connect import prepare_namespace
from evergrant_server.temporal_link.received import DATA_CONVERTER
from tests.fakes.temporal import running_temporal
from tests.workflows.connection_runs import Handle
from tests.workflows.stories import (
    client_grants,
    connections,
    imports,
    keys,
    maintenance,
    refreshes_ahead,
    refusals,
)

HISTORIES = Path(__file__).parents[1] / "histories"
STORIES: dict[str, Callable[[Client], Awaitable[Handle]]] = {
    name: story
    for module in (client_grants, connections, imports, keys, maintenance, refreshes_ahead, refusals)
    for name, story in vars(module).items()
    if iscoroutinefunction(story) and story.__module__ == module.__name__ and not name.startswith("_")
} | maintenance.OF_EACH_JOB


async def record(names: list[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="evergrant-") as folder:
        async with running_temporal(Path(folder)) as server:
            client = await Client.connect(server.address, data_converter=DATA_CONVERTER, identity="worker")
            await prepare_namespace(client, timedelta(days=365))
            for name in names or STORIES:
                file = HISTORIES / f"{name}.json"
                if file.exists():
                    print(f"{name}: kept")
                    continue
                handle = await STORIES[name](client)
                file.write_text((await handle.fetch_history()).to_json() + "\n")
                print(f"{name}: recorded")


if __name__ == "__main__":
    asyncio.run(record(sys.argv[1:]))
