"""A connection's workflow under test: starting it, talking to it, waiting for it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from temporalio.client import Client, WorkflowHandle
from temporalio.worker import Worker, WorkflowRunner

from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.ids import ConnectionId, ConsentId, IntegrationId, Tenant, new_id
from evergrant_server.core.lifecycle.schedule import NEWEST_RULES
from evergrant_server.core.messages import connection as m
from evergrant_server.core.messages.activities import GrantResult
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.names import (
    QueryName,
    SignalName,
    UpdateName,
    WorkflowName,
    connection_workflow_id,
)
from evergrant_server.temporal_link.received import ReceivedInterceptor
from tests.fakes.patience import PATIENCE_S, eventually
from tests.fakes.scripted_activities import ScriptedActivities
from tests.fakes.temporal import SANDBOX
from workflows.registry import WORKFLOWS

_SIGNALLED_BACK = "EVENT_TYPE_EXTERNAL_WORKFLOW_EXECUTION_SIGNALED"
Handle = WorkflowHandle[Any, Any]
ASKED = RequestContext(by="app:crm-sync", trace_id="0af7651916cd43dd8448eb211c80319c")


def a_start(**life: Any) -> m.ConnectionStart:
    life.setdefault("consent_deadline", datetime.now(UTC) + timedelta(hours=1))
    return m.ConnectionStart(
        tenant=Tenant("acme"),
        connection_id=ConnectionId(new_id("con")),
        integration_id=IntegrationId(new_id("int")),
        integration="crm",
        provider="generic",
        subject_hash="00" * 16,
        rules=NEWEST_RULES,
        state=m.ConnectionState(**life),
        context=ASKED,
    )


def a_consent() -> m.ConsentGranted:
    return m.ConsentGranted(consent_id=ConsentId(new_id("cns")), context=ASKED)


def a_worker(
    client: Client,
    activities: Sequence[Callable[..., Any]],
    task_queue: str,
    runner: WorkflowRunner = SANDBOX,
) -> Worker:
    return Worker(
        client,
        task_queue=task_queue,
        workflows=WORKFLOWS,
        activities=activities,
        workflow_runner=runner,
        interceptors=[ReceivedInterceptor()],
    )


def a_grant(generation: int = 1, lasts: timedelta | None = timedelta(hours=1), **more: Any) -> GrantResult:
    """What an activity reports of tokens that came now."""
    now = datetime.now(UTC)
    facts = {"state": LifecycleState.ACTIVE, "obtained_at": now, "expires_at": now + lasts if lasts else None}
    return GrantResult(generation=generation, **{**facts, "refreshable": True, **more})


async def until_called(scripted: ScriptedActivities, name: str, count: int = 1) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while scripted.count(name) < count:
            await asyncio.sleep(0.02)


class Life:
    """One connection's workflow under test."""

    def __init__(
        self,
        handle: WorkflowHandle[Any, m.ConnectionEnded],
        scripted: ScriptedActivities,
        start: m.ConnectionStart,
    ):
        self.handle = handle
        self.scripted = scripted
        self.start = start

    async def describe(self) -> m.ConnectionDescription:
        return await self.handle.query(QueryName.DESCRIBE, result_type=m.ConnectionDescription)

    async def until(self, condition: Callable[[m.ConnectionDescription], bool]) -> m.ConnectionDescription:
        return await eventually(self.describe, condition)

    async def until_called(self, name: str, count: int = 1) -> None:
        await until_called(self.scripted, name, count)

    async def consent(self) -> m.ConnectionDescription:
        await self.handle.signal(SignalName.CONSENT_GRANTED, a_consent())
        return await self.until(lambda d: d.generation >= 1)

    async def until_answered(self, requests: int) -> None:
        """Wait until so many workflows have been signalled back."""

        def answered(events: list[dict[str, Any]]) -> bool:
            return sum(it["eventType"] == _SIGNALLED_BACK for it in events) >= requests

        await eventually(self.events, answered)

    async def ensure_fresh(
        self, seen: int, *, reported: bool = False, ahead: bool = False, scopes: tuple[str, ...] = ()
    ) -> m.EnsureFreshResult:
        reason = {"refresh_reason": m.RefreshReason.UNAUTHORIZED} if reported else {}
        ask = m.EnsureFresh(seen_generation=seen, context=ASKED, ahead=ahead, scopes=scopes, **reason)
        return await self.handle.execute_update(UpdateName.ENSURE_FRESH, ask, result_type=m.EnsureFreshResult)

    async def events(self) -> list[dict[str, Any]]:
        return (await self.handle.fetch_history()).to_json_dict()["events"]


@asynccontextmanager
async def living(
    client: Client,
    scripted: ScriptedActivities | None = None,
    waiting: tuple[m.LifecycleEvent, ...] = (),
    **life: Any,
) -> AsyncIterator[Life]:
    """Start a worker on a queue of its own, and a connection on it."""
    scripted = scripted or ScriptedActivities()
    start = a_start(**life).model_copy(update={"pending_events": waiting})
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(
            a_worker(client, scripted.everything(), f"queue-{start.connection_id}")
        )
        handle = await client.start_workflow(
            WorkflowName.CONNECTION,
            start,
            id=connection_workflow_id(start.tenant, start.connection_id),
            task_queue=f"queue-{start.connection_id}",
            result_type=m.ConnectionEnded,
        )
        yield Life(handle, scripted, start)
