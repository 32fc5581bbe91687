"""examples/agent: a consent and an approval are waited for durably, its worker is killed, and it finishes.

The short form: API and gateway are in this process, Temporal and the agent's workers are processes.
"""

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from temporalio.api.enums.v1 import EventType
from temporalio.client import WorkflowHandle

from evergrant_server.core.access import Action
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.ids import ConnectionId
from examples.agent.messages import TASK_QUEUE, NoteOrder
from examples.agent.workflow import TakesNote
from examples.demo.processes import Process
from tests.fakes.api import TENANT, Api, api
from tests.fakes.http_server import served
from tests.fakes.patience import eventually
from tests.fakes.platform.gateway import answer, running_gateway, upstream_api
from tests.fakes.temporal import running_temporal

__all__ = ["api"]

TOKEN, NOTE, TIMER = "at-of-the-person-0123456789", "buy a kettle", EventType.EVENT_TYPE_TIMER_STARTED
ORDER = NoteOrder("crm", "user-1", NOTE, write_in_s=1)


async def test_it_outlives_its_worker_between_consent_approval_and_call(api: Api, tmp_path: Path):
    await api.integration()
    admin = await api.app_with("admin", Action.ADMIN)
    key = await api.app_with("agent", Action.CONNECT, Action.PROXY)
    agent = {"purpose": "notes", "ends_at": (api.clock.now() + timedelta(days=30)).isoformat()}
    await api.call("PUT", "/v1/agents/agent", admin, json=agent)
    permit = {"integration": "crm", "subjects": ["*"], "actions": ["connect", "proxy"], "call_approval": True}
    await api.call("PUT", "/v1/apps/agent/permits/only", admin, json=permit)
    async with (
        running_temporal(tmp_path) as temporal,
        upstream_api() as upstream,
        running_gateway(api, upstream) as gateway,
        served(api.app) as url,
    ):
        upstream.responses = [answer(b"{}", "201 Created")]
        env = {"EVERGRANT_URL": url, "EVERGRANT_GATEWAY_URL": f"http://127.0.0.1:{gateway.port}"}
        env |= {"EVERGRANT_API_KEY": key, "TEMPORAL_ADDRESS": temporal.address}
        client = await temporal.client()
        async with worker(env) as first:
            handle = await client.start_workflow(TakesNote.run, ORDER, id="note", task_queue=TASK_QUEUE)
            connection = await eventually(lambda: waits_for_consent(api, key, first))
            assert connection is not None
            await api.install(connection, TOKEN)
            await eventually(lambda: sleeps(handle))
            os.kill(first.pid, signal.SIGKILL)
        (waiting,) = (await api.get("/v1/call-approvals", admin)).json()["items"]
        shown = (await api.get(f"/v1/call-approvals/{waiting['id']}", admin)).json()["call"]
        assert (shown["method"], shown["body"]) == ("POST", '{"note": "buy a kettle"}')
        assert upstream.seen == []
        await api.post(f"/v1/call-approvals/{waiting['id']}/approve", admin, {})
        async with worker(env):
            assert await handle.result() == "201"
        (sent,) = upstream.seen
        assert (sent.method, sent.target, sent.body) == ("POST", "/api/notes", b'{"note": "buy a kettle"}')
        assert sent.values("authorization") == [f"Bearer {TOKEN}"]
        history = b"".join(it.SerializeToString() for it in (await handle.fetch_history()).events)
        assert waiting["id"].encode() in history
        assert not any(secret.encode() in history for secret in (TOKEN, key, "/connect/"))


@asynccontextmanager
async def worker(env: dict[str, str]) -> AsyncIterator[Process]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("EVERGRANT_")}
    started = await Process.start(
        "agent", ["-m", "examples.agent"], ready_prefix="the agent's worker is running", env=kept | env
    )
    try:
        yield started
    finally:
        await started.stop()


async def waits_for_consent(api: Api, key: str, process: Process) -> Connection | None:
    """The connection, once the worker has printed the link for it."""
    if not any("has to consent: " in line for line in process.last_lines):
        return None
    (listed,) = (await api.get("/v1/connections", key)).json()["items"]
    return await api.row(TENANT, ConnectionId(listed["id"]))


async def sleeps(handle: WorkflowHandle[Any, Any]) -> bool:
    return any(it.event_type == TIMER for it in (await handle.fetch_history()).events)
