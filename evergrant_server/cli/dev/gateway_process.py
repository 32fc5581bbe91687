"""The gateway of `dev`: waits for the API to bring the keys and the schema, then serves."""

import asyncio

from evergrant_server.cli.dev.worker_process import has_schema
from evergrant_server.cli.gateway.serve import serve_gateway
from evergrant_server.settings import Settings

_WAIT_LIMIT_S = 180
_POLL_S = 0.1


def serve(settings: Settings) -> None:
    asyncio.run(_wait(settings))
    serve_gateway(settings)


async def _wait(settings: Settings) -> None:
    async with asyncio.timeout(_WAIT_LIMIT_S):
        while not (settings.key_path.exists() and await has_schema(settings)):
            await asyncio.sleep(_POLL_S)
