"""A run that squats on an id of Evergrant's, or whose task fails again and again, doesn't keep the id."""

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.common import WorkflowIDConflictPolicy, WorkflowIDReusePolicy

from evergrant_server.core.clock import SystemClock
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConsentId, OutboxId, Tenant, new_id
from evergrant_server.core.messages import jobs, names
from evergrant_server.core.messages.connection import ConnectionStart
from evergrant_server.core.messages.integrations import VerifyLogin
from evergrant_server.core.messages.jobs import workflow_type_of
from evergrant_server.core.messages.names import WorkflowName, connection_workflow_id
from evergrant_server.core.outbox import OutboxKind, OutboxMessage
from evergrant_server.crypto import KeyRing
from evergrant_server.temporal_link import runs, start_requests
from evergrant_server.temporal_link.connect import prepare_namespace
from evergrant_server.temporal_link.link import TemporalLink
from evergrant_server.temporal_link.received import DATA_CONVERTER
from tests.fakes.patience import eventually
from tests.fakes.platform.installation import ASKED, TENANT, Installation
from tests.fakes.temporal import running_temporal
from tests.workflows.sampled_messages import sample

QUEUE = "the-right-queue"
# every kind of message that starts a workflow, and every job that the outbox or the API has done
STARTS: list[OutboxKind | str] = [
    *start_requests._STARTS,
    *(job.name for job in jobs.JOBS.values() if job.recurrence is None),
]


@pytest.fixture
async def client(temporal_address: str) -> Client:
    return await Client.connect(temporal_address, data_converter=DATA_CONVERTER)


@pytest.fixture
def link(client: Client, tmp_path: Path) -> TemporalLink:
    return TemporalLink(client, KeyRing.create(tmp_path / "keys.json"), SystemClock(), QUEUE)


def a_start_request(kind: OutboxKind | str) -> start_requests.StartRequest:
    """With an id that no other test uses."""
    job = None if isinstance(kind, OutboxKind) else jobs.JOBS[kind]
    argument = start_requests._STARTS[OutboxKind(kind)][0] if job is None else job.request
    own = {"tenant": f"tenant-{new_id('out')[-8:]}"}
    own |= {"integration_id": "int_1"} if kind is OutboxKind.RETRY_CONNECTIONS else {}
    own |= {"client_id": f"https://{new_id('out')}.example/c"} if "client_id" in argument.model_fields else {}
    message = OutboxMessage(
        tenant=TENANT,
        id=OutboxId(new_id("out")),
        kind=OutboxKind(kind) if job is None else OutboxKind.RUN_JOB,
        target="",
        name="" if job is None else job.name,
        payload={**sample(argument), **own},
        created_at=SystemClock().now(),
    )
    return start_requests.from_outbox(message)


def test_each_id_of_ours_names_the_type_that_may_run_under_it():
    prefixes = {**names.WORKFLOW_OF_PREFIX, **{name: name for name in jobs.JOBS}}
    assert sorted(prefixes.values()) == sorted((*WorkflowName, *jobs.JOBS)), "a prefix names two types"
    for kind in STARTS:
        request = a_start_request(kind)
        assert workflow_type_of(request.workflow_id) == request.workflow
    assert workflow_type_of("pipeline-7") is None
    assert workflow_type_of("reconcile:acme") is None, "its schedule names its runs"


@pytest.mark.parametrize("squatter", ["of another type", "on another queue", "of another type, ended"])
@pytest.mark.parametrize("kind", STARTS)
async def test_a_squatted_id_is_taken_back(
    client: Client, link: TemporalLink, kind: OutboxKind, squatter: str
):
    request = a_start_request(kind)
    foreign = await client.start_workflow(
        request.workflow if squatter == "on another queue" else "Squatter",
        id=request.workflow_id,
        task_queue="nobody's" if squatter == "on another queue" else QUEUE,
    )
    if squatter.endswith("ended"):
        await foreign.terminate("seen enough")
    started = await link.start(request)
    newest = await client.get_workflow_handle(request.workflow_id).describe()
    assert (newest.workflow_type, newest.task_queue) == (request.workflow, QUEUE)
    assert newest.run_id == started
    assert newest.status is WorkflowExecutionStatus.RUNNING
    ended = await client.get_workflow_handle(request.workflow_id, run_id=foreign.result_run_id).describe()
    assert ended.status is WorkflowExecutionStatus.TERMINATED
    assert await link.start(request) == started  # our own run keeps it


async def test_a_result_is_never_a_squatters(client: Client, link: TemporalLink):
    """Without a worker the login times out; what matters is which run is waited for."""
    ask = VerifyLogin(tenant=Tenant("acme"), consent_id=ConsentId(new_id("cns")), revision=1, context=ASKED)
    workflow = jobs.VERIFY_LOGIN.workflow_id(ask)
    await client.start_workflow("Squatter", id=workflow, task_queue="nobody's")
    with pytest.raises(Failure) as late:
        await link.run_job(jobs.VERIFY_LOGIN, ask, timeout=1)
    assert late.value.code is ErrorCode.TEMPORAL_UNAVAILABLE
    newest = await client.get_workflow_handle(workflow).describe()
    assert (newest.workflow_type, newest.task_queue) == (jobs.VERIFY_LOGIN.name, QUEUE)


# --- stuck runs ----------------------------------------------------------------------------


async def replace_by_a_stuck_run(place: Installation, connection: Connection) -> str:
    """Its run is terminated, and followed by one whose task fails each time: no rules have this number."""
    start = ConnectionStart.model_validate(sample(ConnectionStart)).model_copy(
        update={"tenant": TENANT, "connection_id": connection.id, "rules": 99}
    )
    handle = await place.parts.client.start_workflow(
        WorkflowName.CONNECTION,
        start,
        id=connection_workflow_id(TENANT, connection.id),
        task_queue=place.parts.settings.temporal_task_queue,
        id_conflict_policy=WorkflowIDConflictPolicy.TERMINATE_EXISTING,
        id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
    )
    assert handle.result_run_id is not None
    return handle.result_run_id


async def status_of(place: Installation, connection: Connection, run: str) -> WorkflowExecutionStatus | None:
    name = connection_workflow_id(TENANT, connection.id)
    return (await place.parts.client.get_workflow_handle(name, run_id=run).describe()).status


async def test_a_message_for_a_stuck_run_reaches_the_one_that_follows(
    place: Installation, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(runs, "_MOST_TRIES_OF_A_TASK", 2)  # later ones take ten seconds each
    connection = await place.connect()
    stuck = await replace_by_a_stuck_run(place, connection)
    name = connection_workflow_id(TENANT, connection.id)

    async def is_stuck() -> bool:
        newest = await place.parts.link.newest_run(name)
        return newest is not None and newest.is_stuck

    await eventually(is_stuck)
    await place.revoke(connection)
    await place.until(connection, lambda row: row.state is LifecycleState.REVOKED)
    assert await status_of(place, connection, stuck) is WorkflowExecutionStatus.TERMINATED


class TestAPass:
    """On a server of its own, which reports a run's problems sooner."""

    @pytest.fixture
    async def temporal_address(self, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
        sooner = "system.numConsecutiveWorkflowTaskProblemsToTriggerSearchAttribute=2"
        async with running_temporal(tmp_path_factory.mktemp("temporal"), settings=[sooner]) as server:
            await prepare_namespace(await server.client(), timedelta(days=1))
            yield server.address

    async def test_restarts_a_stuck_run_from_the_store_and_no_other(
        self, place: Installation, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(runs, "_MOST_TRIES_OF_A_TASK", 2)
        healthy, connection = await place.connect(), await place.connect()
        before = await place.parts.link.newest_run(connection_workflow_id(TENANT, healthy.id))
        stuck = await replace_by_a_stuck_run(place, connection)
        name = connection_workflow_id(TENANT, connection.id)

        names = [connection_workflow_id(TENANT, healthy.id), name]

        async def reported() -> list[str]:
            listed = await place.parts.link.running_connections(names)
            return [workflow for workflow, run in listed.items() if run.is_failing]

        await eventually(reported, lambda ids: ids == [name])
        counts = await place.parts.reconciler.reconcile_all(compare=False)
        assert (counts.live, counts.started) == (2, 1)
        assert await status_of(place, connection, stuck) is WorkflowExecutionStatus.TERMINATED
        assert await place.parts.link.newest_run(connection_workflow_id(TENANT, healthy.id)) == before
        await place.ensure_fresh(connection, 1)
        assert (await place.row(connection)).generation == 2
