"""Opens an application's parts before the server listens, and closes them after the last request."""

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from starlette.types import ASGIApp, Receive, Scope, Send


class Lifespan:
    """The ASGI application that `start` makes. `failure`: why it couldn't."""

    def __init__(self, start: Callable[[AsyncExitStack], Awaitable[ASGIApp]]) -> None:
        self._start = start
        self._app: ASGIApp | None = None
        self._opened = AsyncExitStack()
        self.failure: Exception | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            assert self._app is not None
            await self._app(scope, receive, send)
            return
        await receive()
        try:
            self._app = await self._start(self._opened)
        except Exception as failure:
            self.failure = failure
            await self._opened.aclose()
            await send({"type": "lifespan.startup.failed", "message": ""})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._opened.aclose()
        await send({"type": "lifespan.shutdown.complete"})
