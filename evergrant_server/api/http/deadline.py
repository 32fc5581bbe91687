"""Limits how long a request may take, and answers STORE_UNAVAILABLE after that.

Each wait inside a request has a limit of its own. In sequence they can add up to minutes
when a database accepts connections and doesn't answer.
"""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from evergrant_server.api.http.problems import problem_response
from evergrant_server.core.errors import ErrorCode, Failure

LEASE_SLACK_S = 6.0  # in addition to the setting `lease_wait`
RESPONSE_LIMIT_S = 40.0  # for other requests: up to 15 s for a worker, and then for the store
_UNLIMITED_PATHS = frozenset({"/v1/audit/verify"})  # reads the whole log
_LEASE_PATHS = ("/v1/lease", "/token")


class Deadline:
    """ASGI middleware. Measures from the last byte of the request to the first of the response."""

    def __init__(self, app: ASGIApp, base_url: str, lease_wait_s: float) -> None:
        self._app = app
        self._base_url = base_url
        self._lease_wait_s = lease_wait_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _UNLIMITED_PATHS:
            await self._app(scope, receive, send)
            return
        lease = scope["method"] == "POST" and scope["path"].endswith(_LEASE_PATHS)
        limit = self._lease_wait_s + LEASE_SLACK_S if lease else RESPONSE_LIMIT_S
        now = asyncio.get_running_loop().time

        async def receiving() -> Message:
            message = await receive()
            if not started:
                it.reschedule(now() + limit)
            return message

        async def sending(message: Message) -> None:
            nonlocal started
            started = True
            it.reschedule(None)
            await send(message)

        started = False
        try:
            async with asyncio.timeout(limit) as it:
                await self._app(scope, receiving, sending)
        except TimeoutError:
            if started or not it.expired():
                raise
            late = Failure(
                ErrorCode.STORE_UNAVAILABLE, f"No answer within {limit:.0f} seconds.", retry_after=5.0
            )
            await problem_response(late, self._base_url)(scope, receive, send)
