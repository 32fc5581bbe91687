"""`mcp_client` with temporalio-mcp on a real Temporal server: a history has the connection, and no token."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio
from evergrant.temporal import EvergrantPlugin, mcp_client
from mcp.server import MCPServer
from temporalio.client import WorkflowFailureError
from temporalio.exceptions import ActivityError, ApplicationError
from temporalio.mcp import MCPPlugin
from temporalio.worker import Worker

from tests.fakes.http_server import served
from tests.fakes.patience import PATIENCE_S
from tests.fakes.temporal import TemporalServer, running_temporal
from tests.unit.client.frameworks.mcp_stand_ins import UsesTool
from tests.unit.client.scripted_evergrant import (
    LINK,
    TOKEN,
    ScriptedEvergrant,
    ScriptedResponse,
    connection,
    consent_required,
    lease,
)

LOOK, ASK = "GET /v1/connections/con_1", "POST /v1/lease"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def temporal(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[TemporalServer]:
    async with running_temporal(tmp_path_factory.mktemp("temporal")) as server:
        yield server


class ToolServer:
    """An MCP server that takes no request without the token, and one of whose tools repeats it.

    Its URL at the gateway takes the app's key.
    """

    def __init__(self) -> None:
        self.server = MCPServer("crm")
        self.server.add_tool(lambda: "alice", name="whoami", description="who it is")
        self.server.add_tool(lambda: f"you sent {TOKEN}", name="repeat", description="a hostile tool")
        self.app = self.server.streamable_http_app(stateless_http=True, json_response=True)
        self.refused = 0

    async def live(self, ready: asyncio.Event, over: asyncio.Event) -> None:
        """In a task of its own: anyio lets no other one end what began here."""
        async with self.app.router.lifespan_context(self.app):
            ready.set()
            await over.wait()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        at_gateway = scope["path"] == "/mcp/con_1"
        taken = "evg_key" if at_gateway else TOKEN
        if (b"authorization", f"Bearer {taken}".encode()) in scope["headers"]:
            return await self.app(scope | {"path": "/mcp"}, receive, send)
        self.refused += 1
        await send({"type": "http.response.start", "status": 401, "headers": []})
        await send({"type": "http.response.body", "body": b""})


class Tools:
    """Runs a workflow that calls one tool; what came of it, and the workflow's history as bytes."""

    def __init__(self, temporal: TemporalServer, evergrant: ScriptedEvergrant, url: str) -> None:
        self._temporal, self._evergrant = temporal, evergrant
        self.url: str | None = f"{url}/mcp"

    async def call(self, connection_id: str | None, tool: str) -> tuple[object, bytes]:
        client, queue = await self._temporal.client(), f"tools-{uuid4()}"
        plugins = [
            EvergrantPlugin(self._evergrant.url, "evg_key", deadline=timedelta(seconds=PATIENCE_S)),
            MCPPlugin({"crm": mcp_client(self.url)}),
        ]
        async with Worker(client, task_queue=queue, workflows=[UsesTool], plugins=plugins):
            handle = await client.start_workflow(
                UsesTool.run, args=[connection_id, tool], id=queue, task_queue=queue
            )
            try:
                ended: object = await handle.result()
            except WorkflowFailureError as failed:
                ended = failed.cause.cause if isinstance(failed.cause, ActivityError) else failed.cause
        events = (await handle.fetch_history()).events
        return ended, b"".join(event.SerializeToString() for event in events)


@pytest.fixture
async def tools(
    temporal: TemporalServer, evergrant: ScriptedEvergrant, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Tools]:
    server, ready, over = ToolServer(), asyncio.Event(), asyncio.Event()
    living = asyncio.create_task(server.live(ready, over))
    await ready.wait()
    async with served(server) as url:
        monkeypatch.setenv("EVERGRANT_GATEWAY_URL", url)
        yield Tools(temporal, evergrant, url)
    over.set()
    await living
    assert server.refused == 0


async def test_a_tool_is_called_with_the_connections_token_which_is_in_no_history(
    tools: Tools, evergrant: ScriptedEvergrant
):
    evergrant.script(LOOK, ScriptedResponse(200, connection()))
    evergrant.script(ASK, lease())
    ended, history = await tools.call("con_1", "whoami")
    assert ended == "alice"
    assert b"con_1" in history
    assert not any(secret.encode() in history for secret in (TOKEN, "evg_key"))


async def test_a_tool_that_repeats_the_token_fails_and_its_answer_is_in_no_history(
    tools: Tools, evergrant: ScriptedEvergrant
):
    evergrant.script(LOOK, ScriptedResponse(200, connection()))
    evergrant.script(ASK, lease())
    failed, history = await tools.call("con_1", "repeat")
    assert isinstance(failed, ApplicationError)
    assert failed.type == "TokenInResult"
    assert TOKEN.encode() not in history


async def test_without_a_consent_it_fails_with_the_code_and_without_the_link(
    tools: Tools, evergrant: ScriptedEvergrant
):
    evergrant.script(LOOK, ScriptedResponse(200, connection(state="pending_consent")))
    evergrant.script(ASK, consent_required())
    failed, history = await tools.call("con_1", "whoami")
    assert isinstance(failed, ApplicationError)
    assert (failed.type, failed.non_retryable) == ("ReconnectNeeded", True)
    assert failed.details[0]["code"] == "consent_required"
    assert LINK.encode() not in history


async def test_through_the_gateway_nothing_is_leased(tools: Tools, evergrant: ScriptedEvergrant):
    tools.url = None
    ended, history = await tools.call("con_1", "whoami")
    assert (ended, evergrant.requests) == ("alice", [])
    assert b"evg_key" not in history


@pytest.mark.parametrize("given", [None, "alice"])
async def test_what_is_no_connections_id_is_refused_at_once(tools: Tools, given: str | None):
    failed, _ = await tools.call(given, "whoami")
    assert isinstance(failed, ApplicationError)
    assert (failed.type, failed.non_retryable) == ("ConnectionMissing", True)
