"""What an operator's hands do to a connection's workflow in the Temporal UI: nothing that matters.

Terminated, cancelled, reset or deleted, at rest and in the middle of a refresh: nothing is
revoked, no refresh token is sent twice (the provider would kill the family), and within the
interval of the schedule the connection has its workflow again.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import ResetReapplyType
from temporalio.api.workflowservice.v1 import DeleteWorkflowExecutionRequest, ResetWorkflowExecutionRequest
from temporalio.client import WorkflowExecutionStatus

from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState, RevocationOutcome
from evergrant_server.core.errors import Failure
from evergrant_server.core.messages.names import connection_workflow_id
from tests.fakes.patience import PATIENCE_S, eventually
from tests.fakes.platform.installation import STRICT, TENANT, Installation
from tests.fakes.platform.observations import run_id, runs
from tests.fakes.providers.scripted_provider import hold_answer

INTERVAL = timedelta(seconds=2)
ALL, NOTHING = (ResetReapplyType.RESET_REAPPLY_TYPE_UNSPECIFIED, ResetReapplyType.RESET_REAPPLY_TYPE_NONE)

Hand = Callable[[Installation, Connection], Awaitable[None]]


@pytest.fixture
def settings() -> dict[str, Any]:
    return {"reconcile_interval": INTERVAL}


async def cancel(place: Installation, connection: Connection) -> None:
    await place.workflow(connection).cancel()


async def delete(place: Installation, connection: Connection) -> None:
    it = WorkflowExecution(workflow_id=connection_workflow_id(TENANT, connection.id))
    await place.parts.client.workflow_service.delete_workflow_execution(
        DeleteWorkflowExecutionRequest(namespace="default", workflow_execution=it)
    )


def reset(where: str, reapply: ResetReapplyType.ValueType = ALL) -> Hand:
    """To the first workflow task, or to the one before or after the newest refresh."""

    async def by_hand(place: Installation, connection: Connection) -> None:
        name = connection_workflow_id(TENANT, connection.id)
        events = await place.parts.link.history(name)
        run = await run_id(place.parts.link, name)
        request = ResetWorkflowExecutionRequest(
            namespace="default",
            workflow_execution=WorkflowExecution(workflow_id=name, run_id=run or ""),
            reason="by hand",
            workflow_task_finish_event_id=_task(events, where),
            request_id=str(uuid4()),
            reset_reapply_type=reapply,
        )
        await place.parts.client.workflow_service.reset_workflow_execution(request)

    return by_hand


def _task(events: list[dict], where: str) -> int:
    done = [int(e["eventId"]) for e in events if e["eventType"] == "EVENT_TYPE_WORKFLOW_TASK_COMPLETED"]
    if where == "the beginning":
        return done[0]
    refreshes = [
        int(e["eventId"])
        for e in events
        if (e.get("activityTaskScheduledEventAttributes") or {}).get("activityType", {}).get("name")
        == "refresh_grant"
    ]
    if where == "before":
        return max(it for it in done if it < refreshes[-1])
    return min(it for it in done if it > refreshes[-1])


HANDS = {
    "terminate": Installation.terminate,
    "cancel": cancel,
    "delete": delete,
    "reset to the beginning": reset("the beginning"),
    "reset to the beginning, signals dropped": reset("the beginning", NOTHING),
    "reset to before a refresh": reset("before"),
    "reset to before a refresh, updates dropped": reset("before", NOTHING),
    "reset to after a refresh": reset("after"),
}
IN_THE_MIDDLE = ("terminate", "cancel", "reset to before a refresh, updates dropped")
AT_REST = tuple(name for name in HANDS if name not in ("terminate", "reset to before a refresh"))


async def until_it_lives(place: Installation, connection: Connection, generation: int) -> None:
    """Wait until a workflow runs that knows this generation."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            if await runs(place.parts.link, connection_workflow_id(TENANT, connection.id)):
                with suppress(Failure):  # this run may be followed by another in this very moment
                    told = await place.ensure_fresh(connection, generation - 1)
                    if told.problem is None and told.generation >= generation:
                        return
            await asyncio.sleep(0.1)


async def unharmed(place: Installation, connection: Connection, left: int) -> None:
    """Nothing was revoked or sent twice, and the next refresh works."""
    row = await place.row(connection)
    assert (row.state, row.generation) == (LifecycleState.ACTIVE, left)
    await eventually(lambda: place.ensure_fresh(connection, left), lambda it: it.generation > left)
    assert place.idp.count("revoke") == 0
    assert place.idp.count("token", grant_type="refresh_token") == place.idp.refreshes == left
    assert all(family.alive for family in place.idp.families)
    assert AuditAction.REVOCATION_REQUESTED not in await place.actions(connection)


@pytest.mark.parametrize("hand", AT_REST)
async def test_an_operators_action_at_rest_loses_nothing(place: Installation, hand: str):
    connection = await place.connect(STRICT)
    await place.ensure_fresh(connection, 1)
    before = await run_id(place.parts.link, connection_workflow_id(TENANT, connection.id))
    await HANDS[hand](place, connection)
    name = connection_workflow_id(TENANT, connection.id)
    await eventually(lambda: run_id(place.parts.link, name), lambda it: it not in (before, None))
    await until_it_lives(place, connection, 2)
    await unharmed(place, connection, 2)
    if hand != "delete":
        await place.until_exported(connection)


@pytest.mark.parametrize("hand", IN_THE_MIDDLE)
async def test_an_operators_action_during_a_refresh_loses_nothing(place: Installation, hand: str):
    connection = await place.connect(STRICT)

    async def asks() -> None:
        with suppress(Exception):  # its run may have ended
            await place.ensure_fresh(connection, 1)

    async with place.idp.in_flight(asks()):
        await HANDS[hand](place, connection)
        if hand != "cancel":  # which waits for the answer
            await place.until_started(connection)
    await place.until(connection, lambda row: row.generation == 2)
    await until_it_lives(place, connection, 2)
    await unharmed(place, connection, 2)


async def test_a_cancelled_run_is_followed_by_another(place: Installation):
    """The request would stay on the run for ever otherwise, and a second one could not be made."""
    connection = await place.connect(STRICT)
    for _ in range(2):
        handle = place.workflow(connection)
        before = (await handle.describe()).run_id
        await handle.cancel()
        now = await eventually(handle.describe, lambda it, ended=before: it.run_id != ended)
        assert now.status is WorkflowExecutionStatus.RUNNING
        ended = place.parts.client.get_workflow_handle(handle.id, run_id=before)
        # by itself, not by the schedule that finds what was cancelled
        assert (await ended.describe()).status is WorkflowExecutionStatus.CONTINUED_AS_NEW
    assert (await place.ensure_fresh(connection, 1)).generation == 2


@pytest.mark.parametrize("hand", ["cancel", "delete", "reset to the beginning, signals dropped"])
async def test_an_operators_action_does_not_stop_a_revocation(place: Installation, hand: str):
    connection = await place.connect(STRICT)
    gate = asyncio.Event()
    place.idp.script(hold_answer(gate), at="revoke")
    await place.revoke(connection)
    await place.idp.until("revoke", 1)
    await HANDS[hand](place, connection)
    gate.set()
    over = await place.until(connection, lambda row: row.state is LifecycleState.REVOKED)
    assert over.revocation is RevocationOutcome.CONFIRMED
    assert not any(family.alive for family in place.idp.families)
