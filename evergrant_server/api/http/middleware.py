"""ASGI middleware around every request: trace, body limit, headers, last exception handler, deadline.

Each wait inside a request has a limit of its own. In sequence they can add up to minutes
when a database accepts connections and doesn't answer: `Deadline` limits the whole.
"""

import asyncio
import logging

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from evergrant_server.access.limits import add_limit_headers
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.problems import invalid_request, problem_response
from evergrant_server.telemetry.logs import LogEvent
from evergrant_server.telemetry.request_ids import begin_trace

log = logging.getLogger("evergrant.api")

BODY_LIMIT = 1 << 20  # bytes
LEASE_SLACK_S = 6.0  # in addition to the setting `lease_wait`
RESPONSE_LIMIT_S = 40.0  # for other requests: up to 15 s for a worker, and then for the store
_UNLIMITED_PATHS = frozenset({"/v1/audit/verify"})  # reads the whole log
_LEASE_PATHS = ("/v1/lease", "/token")
ARRIVED = "evergrant.arrived"  # of the ASGI scope: when the whole body was there, read before `Deadline`


class Envelope:
    """Sets the response headers, limits the body, and answers unexpected exceptions with INTERNAL and a body
    that can't be read to its end with INVALID_REQUEST."""

    def __init__(self, app: ASGIApp, base_url: str, version: str) -> None:
        self._app = app
        self._base_url = base_url
        self._version = version

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        trace = begin_trace(scope)
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(raw=message["headers"])
                add_limit_headers(scope, headers)
                headers["X-Request-Id"] = trace.request_id
                headers["Evergrant-Version"] = self._version  # clients refuse another major version
                headers.setdefault("Cache-Control", "no-store")
                headers.setdefault("X-Content-Type-Options", "nosniff")
                headers.setdefault("Referrer-Policy", "no-referrer")
            await send(message)

        if _declared_length(scope) > BODY_LIMIT:
            await problem_response(Failure(ErrorCode.BODY_TOO_LARGE), self._base_url)(scope, receive, sending)
            return
        try:
            await self._app(scope, _limit_body(receive), sending)
        except ClientDisconnect:  # granian says so of a malformed chunk too, and the caller waits
            why = "body: it can't be read to its end: it was cut off, or a chunk is malformed"
            response = problem_response(invalid_request("body", why), self._base_url)
            await response(scope, receive, sending)
        except Exception:
            log.exception("%s: request %s", LogEvent.UNEXPECTED.value, trace.request_id)
            if started:
                raise
            response = problem_response(
                Failure(ErrorCode.INTERNAL, request_id=trace.request_id), self._base_url
            )
            await response(scope, receive, sending)


def _declared_length(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value) if value.isdigit() else 0
    return 0


def _limit_body(receive: Receive) -> Receive:
    """Count the received bytes: a chunked body declares no length."""
    seen = 0

    async def receiving() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > BODY_LIMIT:
            raise HTTPException(413)
        return message

    return receiving


class Deadline:
    """Answers STORE_UNAVAILABLE to a request that takes too long.

    Measures from the last byte of the request to the first of the response.
    """

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
        arrived: float | None = scope.get(ARRIVED)

        async def receiving() -> Message:
            message = await receive()
            if not started and arrived is None:
                deadline.reschedule(now() + limit)
            return message

        async def sending(message: Message) -> None:
            nonlocal started
            started = True
            deadline.reschedule(None)
            await send(message)

        started = False
        try:
            async with asyncio.timeout_at((now() if arrived is None else arrived) + limit) as deadline:
                await self._app(scope, receiving, sending)
        except TimeoutError:
            if started or not deadline.expired():
                raise
            late = Failure(
                ErrorCode.STORE_UNAVAILABLE, f"No answer within {limit:.0f} seconds.", retry_after=5.0
            )
            await problem_response(late, self._base_url)(scope, receive, send)
