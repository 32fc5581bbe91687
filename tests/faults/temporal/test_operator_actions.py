"""What an operator's hands do to a connection's workflow in the Temporal UI: nothing that matters.

Terminated, cancelled, reset or deleted, at rest and in the middle of a refresh: nothing is
revoked, no refresh token is sent twice (the provider would kill the family), and within the
interval of the schedule the connection has its workflow again.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
import pytest_asyncio
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import ResetReapplyType
from temporalio.api.workflowservice.v1 import DeleteWorkflowExecutionRequest, ResetWorkflowExecutionRequest
from temporalio.client import WorkflowExecutionStatus

from activities.single_use.critical_section import CriticalSections
from activities.single_use.protocol import SingleUseProtocol
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState, RevocationOutcome
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import RefreshRules, Rotation
from evergrant_server.core.messages.base import connection_workflow_id
from evergrant_server.core.single_use.attempt import AttemptKind
from evergrant_server.journal import Journal
from tests.fakes.databases import sqlite_url
from tests.fakes.patience import PATIENCE_S
from tests.fakes.platform.installation import TENANT, Installation, installation
from tests.fakes.providers.scripted_provider import ScriptedProvider, hold_answer
from tests.fakes.temporal import run_id, runs

INTERVAL = timedelta(seconds=2)
STRICT = RefreshRules(rotation=Rotation.STRICT)
ALL, NOTHING = (ResetReapplyType.RESET_REAPPLY_TYPE_UNSPECIFIED, ResetReapplyType.RESET_REAPPLY_TYPE_NONE)

Hand = Callable[[Installation, Connection], Awaitable[None]]


@pytest_asyncio.fixture
async def place(temporal_address: str, tmp_path: Path, idp: ScriptedProvider) -> AsyncIterator[Installation]:
    url = sqlite_url(tmp_path)
    async with installation(
        temporal_address, url, tmp_path, allow=(idp.allowance,), reconcile_interval=INTERVAL
    ) as here:
        yield here


async def terminate(place: Installation, connection: Connection) -> None:
    await place.parts.client.get_workflow_handle(connection_workflow_id(TENANT, connection.id)).terminate(
        "by hand"
    )


async def cancel(place: Installation, connection: Connection) -> None:
    await place.parts.client.get_workflow_handle(connection_workflow_id(TENANT, connection.id)).cancel()


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
    "terminate": terminate,
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


async def unharmed(place: Installation, idp: ScriptedProvider, connection: Connection, left: int) -> None:
    """Nothing was revoked or sent twice, and the next refresh works."""
    row = await place.row(connection)
    assert (row.state, row.generation) == (LifecycleState.ACTIVE, left)
    async with asyncio.timeout(PATIENCE_S):
        while (await place.ensure_fresh(connection, left)).generation <= left:
            await asyncio.sleep(0.1)
    assert idp.count("revoke") == 0
    assert idp.count("token", grant_type="refresh_token") == idp.refreshes == left
    assert all(family.alive for family in idp.families)
    assert AuditAction.REVOCATION_REQUESTED not in await place.actions(connection)


@pytest.mark.parametrize("hand", AT_REST)
async def test_an_operators_action_at_rest_loses_nothing(
    place: Installation, idp: ScriptedProvider, hand: str
):
    connection = await place.connect(idp, STRICT)
    await place.ensure_fresh(connection, 1)
    before = await run_id(place.parts.link, connection_workflow_id(TENANT, connection.id))
    await HANDS[hand](place, connection)
    async with asyncio.timeout(PATIENCE_S):
        while await run_id(place.parts.link, connection_workflow_id(TENANT, connection.id)) in (
            before,
            None,
        ):
            await asyncio.sleep(0.1)
    await until_it_lives(place, connection, 2)
    await unharmed(place, idp, connection, 2)
    if hand != "delete":
        await place.until_exported(connection)


@pytest.mark.parametrize("hand", IN_THE_MIDDLE)
async def test_an_operators_action_during_a_refresh_loses_nothing(
    place: Installation, idp: ScriptedProvider, hand: str
):
    connection = await place.connect(idp, STRICT)
    gate = asyncio.Event()
    idp.script(hold_answer(gate))
    asked = asyncio.create_task(place.ensure_fresh(connection, 1))
    await idp.until("token", 2)
    await HANDS[hand](place, connection)
    if hand != "cancel":  # which waits for the answer
        async with asyncio.timeout(PATIENCE_S):
            while not await runs(place.parts.link, connection_workflow_id(TENANT, connection.id)):
                await asyncio.sleep(0.1)
    gate.set()
    await asyncio.gather(asked, return_exceptions=True)
    await place.until(connection, lambda row: row.generation == 2)
    await until_it_lives(place, connection, 2)
    await unharmed(place, idp, connection, 2)


async def test_a_cancelled_run_is_followed_by_another(place: Installation, idp: ScriptedProvider):
    """The request would stay on the run for ever otherwise, and a second one could not be made."""
    connection = await place.connect(idp, STRICT)
    for _ in range(2):
        handle = place.parts.client.get_workflow_handle(connection_workflow_id(TENANT, connection.id))
        before = (await handle.describe()).run_id
        await handle.cancel()
        async with asyncio.timeout(PATIENCE_S):
            while (now := await handle.describe()).run_id == before:
                await asyncio.sleep(0.05)
        assert now.status is WorkflowExecutionStatus.RUNNING
        ended = place.parts.client.get_workflow_handle(handle.id, run_id=before)
        # by itself, not by the schedule that finds what was cancelled
        assert (await ended.describe()).status is WorkflowExecutionStatus.CONTINUED_AS_NEW
    assert (await place.ensure_fresh(connection, 1)).generation == 2


@pytest.mark.parametrize("hand", ["cancel", "delete", "reset to the beginning, signals dropped"])
async def test_an_operators_action_does_not_stop_a_revocation(
    place: Installation, idp: ScriptedProvider, hand: str
):
    connection = await place.connect(idp, STRICT)
    gate = asyncio.Event()
    idp.script(hold_answer(gate), at="revoke")
    await place.revoke(connection)
    await idp.until("revoke", 1)
    await HANDS[hand](place, connection)
    gate.set()
    over = await place.until(connection, lambda row: row.state is LifecycleState.REVOKED)
    assert over.revocation is RevocationOutcome.CONFIRMED
    assert not any(family.alive for family in idp.families)


async def test_a_credential_spent_since_it_was_read_gets_no_intent(
    place: Installation, idp: ScriptedProvider, tmp_path: Path
):
    """The attempt that spent it has ended, so no open row is in the way: the generation is."""
    connection = await place.connect(idp, STRICT)
    assert (await place.ensure_fresh(connection, 1)).generation == 2
    journal = Journal(tmp_path / "another")
    single_use = SingleUseProtocol(place.store, place.parts.clock, CriticalSections(), journal)
    with pytest.raises(Failure) as refused:
        await single_use.open(AttemptKind.REFRESH, connection, STRICT, token_valid=True)
    assert refused.value.code is ErrorCode.STORE_CONFLICT
    journal.release()
