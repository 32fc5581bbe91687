"""`/mcp`: who asks, from where, and how often; then the SDK's transport, for both eras of MCP."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.types.version import HANDSHAKE_PROTOCOL_VERSIONS
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from evergrant_server.access.limits import RateLimited
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.gateway.callers import current_caller, gateway_caller_now, require_own_address
from evergrant_server.gateway.parts import GatewayParts
from evergrant_server.gateway.proxy.endpoint import RECHECK_S, ProxyEndpoint, ResponseBroken
from evergrant_server.gateway.tools.server import EvergrantTools
from evergrant_server.gateway.tools.tool_call import McpCaller, put_caller

PATH = b"/mcp"
MOST_REQUEST = 256 * 1024  # bytes of one
MOST_SESSIONS = 2_000  # of the older era, in one process
MOST_SESSIONS_PER_APP = 50
_SESSION, _SESSION_IDLE_S = "mcp-session-id", 600.0


class ToolsEndpoint:
    """Evergrant's own MCP server. A session belongs to the caller who began it, and to no other one."""

    def __init__(self, parts: GatewayParts, proxy: ProxyEndpoint) -> None:
        self._parts = parts
        self._tools = EvergrantTools(parts, proxy)
        self._manager = StreamableHTTPSessionManager(
            self._tools.server,
            max_request_body_size=MOST_REQUEST,
            session_idle_timeout=_SESSION_IDLE_S,
            max_sessions=MOST_SESSIONS,
        )
        self._sessions = OpenSessions(MOST_SESSIONS_PER_APP, _SESSION_IDLE_S)
        # it logs session ids, and tracebacks of what clients send
        logging.getLogger("mcp").setLevel(logging.CRITICAL)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with self._manager.run(), self._tools.running():
            yield

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises Failure before a response has begun, ResponseBroken afterwards."""
        request, api = Request(scope), self._parts.api
        require_own_address(request, api.settings.gateway_public_url)
        resource = api.settings.gateway_public_url + PATH.decode()
        caller = McpCaller(await gateway_caller_now(api, request, resource))
        app = caller.caller.app
        if caller.is_app:
            api.ledger.note_use(caller.caller.tenant, caller.caller.credential.id)
        await api.limits.count_request(scope, app)
        if self._begins_session(request):
            self._sessions.require_room(caller.principal)
        put_caller(request, caller)
        scope["user"] = AuthenticatedUser(
            AccessToken(token="", client_id=caller.principal, scopes=[], subject=caller.subject)
        )
        session = request.headers.get(_SESSION)
        with self._parts.open_call(app), self._sessions.used(caller.principal, session):
            await self._until_refused(request, caller, receive, send)

    def _begins_session(self, request: Request) -> bool:
        """Whether it can begin a session: clients of the newer era have none."""
        version = request.headers.get("mcp-protocol-version")
        is_older = version is None or version in HANDSHAKE_PROTOCOL_VERSIONS
        return is_older and _SESSION not in request.headers

    async def _until_refused(self, request: Request, caller: McpCaller, receive: Receive, send: Send) -> None:
        """Serve until it ends, or the caller isn't accepted any more: a stream may stay open for long."""
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(raw=message["headers"])
                self._note_session(request, caller, message["status"], headers.get(_SESSION))
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Content-Security-Policy"] = "sandbox"
                headers["Cache-Control"] = "no-store, no-transform"
            await send(message)

        work = asyncio.create_task(self._manager.handle_request(request.scope, receive, sending))
        watch = asyncio.create_task(self._refused(request, caller))
        try:
            await asyncio.wait((work, watch), return_when=asyncio.FIRST_COMPLETED)
        finally:
            work.cancel()
            watch.cancel()
            await asyncio.gather(work, watch, return_exceptions=True)
        if not work.cancelled():
            work.result()
        elif started:
            raise ResponseBroken
        elif not watch.cancelled():
            raise watch.result()

    def _note_session(self, request: Request, caller: McpCaller, status: int, answered: str | None) -> None:
        """Count a session that has begun or ended with this response."""
        named = request.headers.get(_SESSION)
        if named is None and answered is not None and status < 400:
            self._sessions.began(caller.principal, answered)
        if named is not None and (status == 404 or (request.method == "DELETE" and status < 400)):
            self._sessions.ended(caller.principal, named)

    async def _refused(self, request: Request, caller: McpCaller) -> Failure:
        """Return why the caller isn't accepted any more, once that is so."""
        while True:
            await asyncio.sleep(RECHECK_S)
            try:
                await current_caller(self._parts.api, request, caller.caller)
            except Failure as failure:
                if failure.code is not ErrorCode.STORE_UNAVAILABLE:
                    return failure


@dataclass
class _Session:
    used: float
    requests: int = 0  # that are open


class OpenSessions:
    """The sessions of one process, by caller and id. The SDK ends those that are idle for `idle_s`."""

    elapsed = staticmethod(time.monotonic)

    def __init__(self, most: int, idle_s: float) -> None:
        self._most, self._idle_s = most, idle_s
        self._of: dict[str, dict[str, _Session]] = {}

    def require_room(self, caller: str) -> None:
        """Raises RateLimited for a caller with too many."""
        now, mine = self.elapsed(), self._of.get(caller, {})
        for id in [
            id for id, session in mine.items() if not session.requests and now - session.used > self._idle_s
        ]:
            del mine[id]
        if len(mine) >= self._most:
            raise RateLimited("sessions", f"The app has {self._most} MCP sessions open.", self._idle_s)

    def began(self, caller: str, id: str) -> None:
        self._of.setdefault(caller, {})[id] = _Session(self.elapsed())

    def ended(self, caller: str, id: str) -> None:
        mine = self._of.get(caller, {})
        mine.pop(id, None)
        if not mine:
            self._of.pop(caller, None)

    @contextmanager
    def used(self, caller: str, id: str | None) -> Iterator[None]:
        """A request of a session is open until the block ends."""
        session = None if id is None else self._of.get(caller, {}).get(id)
        if session is None:
            yield
            return
        session.requests += 1
        try:
            yield
        finally:
            session.requests -= 1
            session.used = self.elapsed()
