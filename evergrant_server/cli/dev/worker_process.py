"""The worker of `dev`: prepares Temporal's namespace, waits for the API to bring the schema, then works."""

import asyncio

import worker
from evergrant_server.cli.dev import NAMESPACE_READY
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.settings import Settings
from evergrant_server.store.database import schema
from evergrant_server.temporal_link.connect import connect, prepare_namespace

_WAIT_LIMIT_S = 180
_POLL_S = 0.1


async def work(settings: Settings) -> None:
    async with asyncio.timeout(_WAIT_LIMIT_S):
        await _prepare_namespace(settings)
        print(NAMESPACE_READY, flush=True)
        while not await has_schema(settings):
            await asyncio.sleep(_POLL_S)
    await worker.main(settings)


async def _prepare_namespace(settings: Settings) -> None:
    while True:
        try:
            return await prepare_namespace(await connect(settings), settings.history_retention)
        except Failure as failure:
            if failure.code is not ErrorCode.TEMPORAL_UNAVAILABLE:
                raise
        await asyncio.sleep(_POLL_S)


async def has_schema(settings: Settings) -> bool:
    """False also while the database can't be reached: whether `dev` ends for that, the API decides."""
    try:
        return await schema.current_version(settings.database_url) == schema.expected_version()
    except Failure as failure:
        if failure.code is not ErrorCode.STORE_UNAVAILABLE:
            raise
        return False
