"""Lives worth keeping: each is run once, and its history kept for replay.

`python -m tests.workflows.stories.record [NAME …]` records them into `histories/`; an existing file is never
overwritten, since a history that was once real must replay for ever. A change of the
workflow adds a story, or a second recording under a new name.
"""

import asyncio
import hashlib
import sys
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from inspect import iscoroutinefunction
from pathlib import Path

from temporalio.client import Client

from evergrant_server.crypto import SealingKey
from evergrant_server.temporal_link.connect import prepare_namespace
from evergrant_server.temporal_link.received import DATA_CONVERTER
from evergrant_server.temporal_link.stories import (
    ConnectionStory,
    StoryCodec,
    StoryFailureConverter,
    StoryKeys,
)
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
_SEALED_TOO = ("whole_life", "continued_as_new", "replaced_grants_revoked")
SEALED = {f"{name}_sealed": STORIES[name] for name in _SEALED_TOO}
STORIES |= SEALED


class GoldenKeys(StoryKeys):
    """One key for every story, so that what was sealed once opens for ever."""

    def __init__(self) -> None:
        self._key = SealingKey("cky_golden", hashlib.sha256(b"a golden history's key").digest())

    async def current(self, story: ConnectionStory) -> SealingKey:
        return self._key

    async def by_id(self, story: ConnectionStory, key_id: str) -> SealingKey | None:
        return self._key if key_id == self._key.id else None


SEALING = replace(
    DATA_CONVERTER,
    payload_codec=StoryCodec(GoldenKeys(), "default"),
    failure_converter_class=StoryFailureConverter,
)


async def record(names: list[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="evergrant-") as folder:
        async with running_temporal(Path(folder)) as server:
            clients = [
                await Client.connect(server.address, data_converter=converter, identity="worker")
                for converter in (DATA_CONVERTER, SEALING)
            ]
            await prepare_namespace(clients[0], timedelta(days=365))
            for name in names or STORIES:
                file = HISTORIES / f"{name}.json"
                if file.exists():
                    print(f"{name}: kept")
                    continue
                handle = await STORIES[name](clients[name in SEALED])
                file.write_text((await handle.fetch_history()).to_json() + "\n")
                print(f"{name}: recorded")


if __name__ == "__main__":
    asyncio.run(record(sys.argv[1:]))
