"""The API as granian runs it: opened and closed by the ASGI lifespan."""

import asyncio
from contextlib import AsyncExitStack, suppress
from multiprocessing import parent_process
from typing import Any

from evergrant_server.api.app import create_app, prepare_routes
from evergrant_server.crypto.keyring import Role
from evergrant_server.process import end_with_parent, tune_garbage_collector
from evergrant_server.settings import load_settings
from evergrant_server.temporal_link.telemetry import flush_telemetry, start_telemetry
from evergrant_server.wiring.api_parts import open_api


class Application:
    """An ASGI application that opens its parts at lifespan start-up and closes them at shutdown.

    `behind_mtls`: for the listener that only the proxy reaches, which hands on certificates of apps.
    """

    def __init__(self, *, behind_mtls: bool = False) -> None:
        self._behind_mtls = behind_mtls
        self._app: Any = None
        self._open = AsyncExitStack()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return
        await receive()
        try:
            await self._start()
        except Exception as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._open.aclose()
        await send({"type": "lifespan.shutdown.complete"})

    async def _start(self) -> None:
        if (parent := parent_process()) is not None and parent.pid is not None:  # granian's
            end_with_parent(parent.pid)
        settings = load_settings()
        start_telemetry(settings, "evergrant-api")
        self._open.push_async_callback(asyncio.to_thread, flush_telemetry)
        platform, api = await self._open.enter_async_context(open_api(settings, Role.API))
        relay = asyncio.create_task(platform.relay.run())
        self._open.push_async_callback(_cancel, relay)
        self._app = create_app(api, settings.mtls_header if self._behind_mtls else None)
        # before the ledger, which it writes to
        self._open.push_async_callback(self._app.state.refresher.stop)
        prepare_routes(self._app)
        tune_garbage_collector()


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


application = Application()
mtls_application = Application(behind_mtls=True)
