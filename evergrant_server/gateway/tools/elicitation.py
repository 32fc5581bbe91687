"""How a person is asked to open a page: URL elicitation in both eras of MCP, or a link for a model to show.

The URL has no authority: a person who opens it logs in first. A request state is sealed, bound to caller and
arguments by the SDK, and used once.
"""

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import NamedTuple

from mcp.server.session import ServerSession
from mcp.shared.exceptions import MCPError, UrlElicitationRequiredError
from mcp.types import (
    INVALID_PARAMS,
    CallToolResult,
    ElicitRequest,
    ElicitRequestURLParams,
    ElicitResult,
    InputRequiredResult,
)
from mcp.types.version import MODERN_PROTOCOL_VERSIONS

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.gateway.tools.tool_call import ToolCall, failed
from evergrant_server.store import Transaction

STATE_LASTS_S = 600.0
HOLD_S = 25.0  # a client asks again at once after "accept": the answer waits for the person that long
_LOOK_EVERY_S = 0.5
_KEY = "page"  # of the one input request
_MOST_COMPLETIONS = 256  # awaited in one process
_COMPLETION_LASTS = timedelta(minutes=10)

Look = Callable[[], Awaitable[bool]]


class PersonPage(NamedTuple):
    """A page that a person has to open. `id`: of the consent or the approval. `message` is for the person."""

    id: str
    url: str
    message: str
    code: ErrorCode


class Returned(NamedTuple):
    """A call that comes again after its page was shown. `opened`: the person agreed to open it."""

    id: str
    opened: bool


async def returned(tool: ToolCall) -> Returned | None:
    """What the request state says, which is used up by this; None in the first round. Raises MCPError."""
    if tool.params.request_state is None:
        return None
    state = json.loads(tool.params.request_state)  # the SDK has opened it: it is ours
    app, until = tool.by.caller.app, tool.call.now + timedelta(seconds=STATE_LASTS_S)

    async def use(tx: Transaction) -> bool:
        return await tx.tokens.use_assertion(app, f"mcp request state {state['once']}", until)

    if not await tool.call.write(use):
        data = {"reason": "invalid_request_state"}
        raise MCPError(INVALID_PARAMS, "Invalid or expired requestState", data)
    answer = (tool.params.input_responses or {}).get(_KEY)
    return Returned(state["id"], isinstance(answer, ElicitResult) and answer.action == "accept")


def show_page(tool: ToolCall, page: PersonPage, is_done: Look) -> CallToolResult | InputRequiredResult:
    """Have the client show the page. Raises UrlElicitationRequiredError for a client of the older era."""
    session = tool.context.session
    declared = session.client_capabilities
    elicitation = None if declared is None else declared.elicitation
    if elicitation is None or elicitation.url is None:
        failure = Failure(page.code, f"{page.message} Give the person this address: {page.url}")
        return failed(failure, tool.public_url, url=page.url)
    if tool.context.protocol_version in MODERN_PROTOCOL_VERSIONS:
        asked = ElicitRequest(params=ElicitRequestURLParams(message=page.message, url=page.url))
        state = json.dumps({"id": page.id, "once": secrets.token_hex(16)})
        return InputRequiredResult(input_requests={_KEY: asked}, request_state=state)
    tool.completions.await_page(session, page.id, is_done)
    asked = ElicitRequestURLParams(message=page.message, url=page.url, elicitation_id=page.id)
    raise UrlElicitationRequiredError([asked])


async def hold(is_done: Look) -> bool:
    """Wait for the person for a while; False: it isn't done yet."""
    try:
        async with asyncio.timeout(HOLD_S):
            while not await is_done():
                await asyncio.sleep(_LOOK_EVERY_S)
    except TimeoutError:
        return False
    return True


class Completions:
    """Tells clients of the older era that a page's matter has ended: they then call again."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def await_page(self, session: ServerSession, id: str, is_done: Look) -> None:
        if len(self._tasks) < _MOST_COMPLETIONS:
            task = asyncio.create_task(_complete(session, id, is_done))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _complete(session: ServerSession, id: str, is_done: Look) -> None:
    try:
        async with asyncio.timeout(_COMPLETION_LASTS.total_seconds()):
            while not await is_done():
                await asyncio.sleep(_LOOK_EVERY_S)
        await session.send_elicit_complete(id)
    except (TimeoutError, Failure):  # of the store: the client may call again by itself
        pass
