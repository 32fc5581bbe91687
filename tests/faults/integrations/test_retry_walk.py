"""A worker tells failing connections to try again: each once, in pages, whenever it dies."""

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlmodel import col
from temporalio.client import Client
from temporalio.common import WorkflowIDConflictPolicy
from temporalio.testing import ActivityEnvironment

from activities.integrations.retries import ConnectionRetryActivities
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.ids import IntegrationId, Tenant
from evergrant_server.core.integrations import Integration
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.integrations import RetryConnections, RetryConnectionsResult
from evergrant_server.core.messages.names import SignalName, connection_workflow_id
from evergrant_server.core.outbox import retry_integration_message
from evergrant_server.store import Store
from evergrant_server.store.connections.tables import ConnectionRow
from evergrant_server.store.outbox import OutboxRow
from evergrant_server.temporal_link import start_requests
from evergrant_server.temporal_link.received import DATA_CONVERTER
from tests.fakes.clock import SetClock
from tests.fakes.failing_fleet import add_failing_connections
from tests.fakes.patience import eventually
from tests.fakes.platform.compose import ROOT
from tests.fakes.rows import an_integration
from tests.faults.support.retry_worker import PAGE_ROWS

TENANT = Tenant("acme")
NUMBER, PAGE = 250, 100


@pytest.fixture
def integration(clock: SetClock) -> Integration:
    return an_integration(TENANT, clock.now())


@pytest.fixture
def change(integration: Integration, clock: SetClock) -> RetryConnections:
    context = RequestContext(by="app:admin")
    message = retry_integration_message(integration, context, clock.now())
    return RetryConnections.model_validate(message.payload)


def walk_over(store: Store, clock: SetClock, longest_wait_s: float = 0) -> ConnectionRetryActivities:
    return ConnectionRetryActivities(store, clock, page_rows=PAGE, longest_wait_s=longest_wait_s)


async def targets(store: Store) -> Counter[str]:
    """How often each workflow is signalled, by all that was ever written."""
    query = select(col(OutboxRow.target)).where(col(OutboxRow.name) == SignalName.PROVIDER_CHANGED)
    async with store.read() as tx:
        return Counter((await tx.connection.execute(query)).scalars())


def once_each(connections: list[Connection]) -> Counter[str]:
    return Counter(connection_workflow_id(it.tenant, it.id) for it in connections)


async def test_every_failing_connection_is_signalled_once_in_pages(
    store: Store, clock: SetClock, integration: Integration, change: RetryConnections
):
    failing = await add_failing_connections(store, integration, NUMBER, clock.now())
    other = an_integration(TENANT, clock.now(), id=IntegrationId("int_1111111111111111111111"), name="other")
    await add_failing_connections(store, other, 3, clock.now())
    await add_failing_connections(store, integration, 3, clock.now(), failures=0)
    environment, ends = ActivityEnvironment(), list[str | None]()
    environment.on_heartbeat = lambda progress: ends.append(progress.after)
    done = await environment.run(walk_over(store, clock).retry_connections, change)
    assert done == RetryConnectionsResult(signalled=NUMBER, after=failing[-1].id)
    assert await targets(store) == once_each(failing)
    assert [it for it in dict.fromkeys(ends) if it] == [failing[i].id for i in (99, 199, 249)]
    again = await ActivityEnvironment().run(walk_over(store, clock).retry_connections, change)
    assert again.signalled == 0, "the message was delivered twice"
    assert await targets(store) == once_each(failing)


async def test_rows_that_cant_be_read_stop_no_walk(
    store: Store, clock: SetClock, integration: Integration, change: RetryConnections
):
    failing = await add_failing_connections(store, integration, NUMBER, clock.now())
    broken = {failing[0].id, *(it.id for it in failing[PAGE : 2 * PAGE])}  # a whole page as well
    async with store.write() as tx:
        rows = update(ConnectionRow).where(col(ConnectionRow.id).in_(broken))
        await tx.connection.execute(rows.values(flow="from_the_future"))
    done = await ActivityEnvironment().run(walk_over(store, clock).retry_connections, change)
    assert done.after == failing[-1].id
    assert await targets(store) == once_each([it for it in failing if it.id not in broken])


@pytest.mark.parametrize("known_pages", [0, 1, 2], ids=["none", "the page before", "the last page"])
async def test_a_page_that_a_dead_worker_wrote_is_not_written_again(
    store: Store, clock: SetClock, integration: Integration, change: RetryConnections, known_pages: int
):
    """It died after its second page was committed; Temporal may not have received the last heartbeats."""
    failing = await add_failing_connections(store, integration, NUMBER, clock.now())

    class Died(BaseException): ...

    def die(progress: RetryConnectionsResult) -> None:
        if progress.signalled == 2 * PAGE:
            raise Died

    environment = ActivityEnvironment()
    environment.on_heartbeat = die
    with pytest.raises(Died):
        await environment.run(walk_over(store, clock).retry_connections, change)
    assert (await targets(store)).total() == 2 * PAGE
    next_one = ActivityEnvironment()
    if known_pages:
        rows = known_pages * PAGE
        known = RetryConnectionsResult(signalled=rows, after=failing[rows - 1].id)
        next_one.info = replace(next_one.info, heartbeat_details=[known.model_dump(mode="json")])
    done = await next_one.run(walk_over(store, clock).retry_connections, change)
    assert done.after == failing[-1].id
    assert await targets(store) == once_each(failing)


async def test_other_messages_wait_behind_one_page_at_the_most(
    store: Store, clock: SetClock, integration: Integration, change: RetryConnections
):
    await add_failing_connections(store, integration, NUMBER, clock.now())
    walk = walk_over(store, clock, longest_wait_s=120)
    running = asyncio.create_task(ActivityEnvironment().run(walk.retry_connections, change))
    depths: list[int] = []
    while not running.done():
        async with store.write() as tx:
            depths.append(await tx.outbox.depth(clock.now()))
            for message in await tx.outbox.claim("relay", clock.now(), timedelta(seconds=30), PAGE):
                await tx.outbox.mark_delivered([message.id], clock.now())
        await asyncio.sleep(0.02)
    assert (await running).signalled == NUMBER
    assert max(depths) == PAGE


@asynccontextmanager
async def worker_process(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Ends as a crash does."""
    command = (sys.executable, "-m", "tests.faults.support.retry_worker", *arguments)
    child = await asyncio.create_subprocess_exec(*command, cwd=ROOT)
    try:
        yield child
    finally:
        child.kill()
        await child.wait()


@pytest.mark.soak
async def test_a_worker_that_is_killed_between_two_pages_is_followed_by_another(
    store: Store,
    clock: SetClock,
    integration: Integration,
    change: RetryConnections,
    temporal_address: str,
    database_url: str,
    key_path: Path,
):
    failing = await add_failing_connections(store, integration, 5 * PAGE_ROWS, clock.now())
    start: Any = start_requests.retry_connections(change)
    queue = f"queue-{integration.id}"
    client = await Client.connect(temporal_address, data_converter=DATA_CONVERTER)
    handle = await client.start_workflow(
        start.workflow,
        start.argument,
        id=start.workflow_id,
        task_queue=queue,
        result_type=RetryConnectionsResult,
        id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
        **start.options,
    )
    arguments = (temporal_address, queue, database_url, str(key_path))
    async with worker_process(*arguments):
        written = await eventually(
            lambda: targets(store), lambda told: 2 * PAGE_ROWS <= told.total() < 5 * PAGE_ROWS
        )
    assert written.total() < len(failing), "it was killed on its way"
    async with worker_process(*arguments):
        assert (await handle.result()).after == failing[-1].id
    assert await targets(store) == once_each(failing)
    attempts = [
        event.activity_task_started_event_attributes.attempt
        for event in (await handle.fetch_history()).events
        if event.HasField("activity_task_started_event_attributes")
    ]
    assert attempts == [2]
