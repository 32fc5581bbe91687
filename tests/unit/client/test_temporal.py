"""The plugin and the example pipeline on a real Temporal server: no token is in any history."""

from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio
from evergrant import BadRequest
from evergrant.temporal import EvergrantPlugin, connection_workflow_id
from evergrant.temporal.plugin import LeaseInterceptor
from temporalio.client import Client, WorkflowFailureError
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.exceptions import ActivityError, ApplicationError
from temporalio.worker import Worker

from evergrant_server.core.errors import ErrorCode
from examples.pipeline.activities import fetch_contacts
from examples.pipeline.messages import TASK_QUEUE, SyncReport, SyncRequest
from examples.pipeline.workflow import SyncContacts
from tests.fakes.patience import PATIENCE_S, eventually
from tests.fakes.temporal import TemporalServer, running_temporal
from tests.unit.client.scripted_evergrant import (
    LINK,
    TOKEN,
    ScriptedEvergrant,
    ScriptedResponse,
    consent_required,
    lease,
    problem,
)
from tests.unit.client.temporal_stand_ins import ACTIVITIES, RunOne, ShortWait, StandInConnection

QUEUE = "users"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def temporal(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[TemporalServer]:
    """One server for the whole module: every workflow has an id of its own."""
    async with running_temporal(tmp_path_factory.mktemp("temporal")) as server:
        yield server


@pytest.fixture
async def client(temporal: TemporalServer) -> Client:
    """A user's client with Temporal's default converter and no plugin."""
    return await temporal.client()


@pytest.fixture
def plugin(evergrant: ScriptedEvergrant) -> EvergrantPlugin:
    return EvergrantPlugin(
        evergrant.url, "evg_key", deadline=timedelta(seconds=PATIENCE_S), cache_leases_for=timedelta(0)
    )


@pytest.fixture
async def users(client: Client, plugin: EvergrantPlugin) -> AsyncIterator[Client]:
    """A worker with the plugin, for the activities that use and misuse a lease."""
    with ThreadPoolExecutor(4) as threads:
        common = {"task_queue": QUEUE, "workflows": [RunOne], "activities": list(ACTIVITIES)}
        async with Worker(client, **common, activity_executor=threads, plugins=[plugin]):
            yield client


async def run_one(client: Client, name: str, how: str = "returns facts") -> tuple[object, str]:
    """The workflow's result or its activity's failure, and its whole history as text."""
    handle = await client.start_workflow(RunOne.run, args=[name, how], id=f"one-{uuid4()}", task_queue=QUEUE)
    try:
        ended: object = await handle.result()
    except WorkflowFailureError as error:
        ended = error.cause.cause if isinstance(error.cause, ActivityError) else error.cause
    return ended, await history_text(client, handle.id)


async def history_text(client: Client, workflow_id: str) -> str:
    """A history with its payloads decoded, so that base64 can't hide a token."""
    history = await client.get_workflow_handle(workflow_id).fetch_history()
    raw = b"".join(event.SerializeToString() for event in history.events)
    return raw.decode("utf-8", "replace")


@pytest.mark.parametrize("name", ["use_lease", "use_lease_in_a_thread"])
async def test_an_activity_gets_its_lease_and_the_token_never_leaves_it(
    users: Client, evergrant: ScriptedEvergrant, name: str
):
    evergrant.script("POST /v1/lease", lease())
    result, history = await run_one(users, name)
    assert (result, TOKEN in history) == (7, False)
    assert evergrant.requests[0].body == {"integration": "crm", "subject": "alice", "label": "default"}
    expected = {
        "returns the lease": ("TokenInResult", 1),
        "returns the token": ("TokenInResult", 1),
        "nests the token": ("TokenInResult", 1),
        "returns bytes": ("TokenInResult", 1),
        "heartbeats it": ("TokenInHeartbeat", 1),
        "chains it": ("TokenInFailure", 1),
        "details it": ("TokenInFailure", 1),
        "raises it": ("TokenInFailure", 2),  # a plain exception may be retried, as without the plugin
    }
    for how, (kind, attempts) in expected.items():
        evergrant.requests.clear()
        failure, history = await run_one(users, name, how)
        assert isinstance(failure, ApplicationError), how
        assert (failure.type, len(evergrant.requests)) == (kind, attempts), how
        assert failure.cause is None
        assert TOKEN not in history, how


async def test_a_missing_consent_is_not_retried_and_its_link_stays_out(
    users: Client, evergrant: ScriptedEvergrant
):
    evergrant.script("POST /v1/lease", consent_required())
    failure, history = await run_one(users, "use_lease")
    assert isinstance(failure, ApplicationError)
    assert (failure.type, failure.non_retryable) == ("ReconnectNeeded", True)
    assert failure.details[0]["connection_id"] == "con_1"
    assert len(evergrant.requests) == 1
    assert LINK not in history


async def test_an_outage_is_retried_after_retry_after(users: Client, evergrant: ScriptedEvergrant):
    busy = problem(503, "ProviderUnavailable", "provider_rate_limited", retry_after=600)
    evergrant.script("POST /v1/lease", busy)
    handle = await users.start_workflow(
        RunOne.run, args=["use_lease", "returns facts"], id=f"one-{uuid4()}", task_queue=QUEUE
    )

    async def pending() -> Any:
        found = (await handle.describe()).raw_description.pending_activities
        return found[0] if found and found[0].HasField("last_failure") else None

    waits = await eventually(pending)
    assert (waits.attempt, waits.current_retry_interval.seconds) == (2, 600)
    await handle.terminate()
    assert len(evergrant.requests) == 1


async def test_the_plugin_acts_once_when_client_and_worker_have_it(
    temporal: TemporalServer, plugin: EvergrantPlugin, evergrant: ScriptedEvergrant
):
    client = await temporal.client(plugins=[plugin], data_converter=pydantic_data_converter)
    assert client.data_converter is pydantic_data_converter
    evergrant.script("POST /v1/lease", lease())
    common = {"task_queue": QUEUE, "workflows": [RunOne], "activities": [ACTIVITIES[0]]}
    with pytest.warns(UserWarning, match="same plugin type"):
        worker = Worker(client, plugins=[plugin], **common)
    await acts_once(client, worker)
    await acts_once(client, Worker(client, **common))  # the first has closed the plugin's clients


async def acts_once(client: Client, worker: Worker) -> None:
    installed = worker.config(active_config=True)["interceptors"]
    assert sum(isinstance(interceptor, LeaseInterceptor) for interceptor in installed) == 1
    async with worker:
        assert (await run_one(client, "use_lease"))[0] == 7


async def test_a_worker_needs_settings_and_a_client_does_not(temporal: TemporalServer):
    client = await temporal.client(plugins=[EvergrantPlugin()])
    with pytest.raises(BadRequest, match="url_missing"):
        await Worker(client, task_queue=QUEUE, workflows=[RunOne]).run()


async def test_a_lease_outside_a_plugin_worker_is_an_error():
    with pytest.raises(ApplicationError, match=r"plugins=\[EvergrantPlugin\(\)\]") as refused:
        await ACTIVITIES[0]("returns facts")
    assert refused.value.non_retryable


class TestPipeline:
    @pytest.fixture
    async def pipeline(
        self, client: Client, plugin: EvergrantPlugin, temporal: TemporalServer
    ) -> AsyncIterator[Client]:
        """The pipeline's worker, and the connection's, with the server's pydantic converter."""
        server_side = await temporal.client(data_converter=pydantic_data_converter)
        ours = {"workflows": [SyncContacts, ShortWait], "activities": [fetch_contacts], "plugins": [plugin]}
        async with (
            Worker(client, task_queue=TASK_QUEUE, **ours),
            Worker(server_side, task_queue="evergrant", workflows=[StandInConnection]),
        ):
            yield server_side

    async def test_a_workflow_gets_its_token(
        self, pipeline: Client, client: Client, evergrant: ScriptedEvergrant
    ):
        connection_id = await start_connection(pipeline)
        evergrant.script("POST /v1/lease", lease())
        evergrant.script("GET /contacts", ScriptedResponse(200, [{"id": 1}, {"id": "b"}]))
        order = SyncRequest(connection_id, "crm", "alice", evergrant.url + "/contacts")
        workflow_id = f"sync-{uuid4()}"
        report = await client.execute_workflow(SyncContacts.run, order, id=workflow_id, task_queue=TASK_QUEUE)
        assert report == SyncReport(count=2, ids=["1", "b"], generation=7)
        assert evergrant.requests[-1].headers["authorization"] == f"Bearer {TOKEN}"
        result = await pipeline.get_workflow_handle(connection_id).result()
        assert result == ["pipeline", "app:pipeline", workflow_id]
        for name in (workflow_id, connection_id):
            history = await history_text(client, name)
            assert "token_ready" in history
            assert TOKEN not in history
            assert "evg_key" not in history

    async def test_a_problem_fails_the_workflow_with_its_code(self, pipeline: Client, client: Client):
        connection_id = await start_connection(pipeline, ErrorCode.GRANT_REJECTED)
        assert await failure_of(client, SyncContacts.run, connection_id) == "grant_rejected"

    async def test_a_connection_without_a_workflow(self, pipeline: Client, client: Client):
        unknown = connection_workflow_id(("default", f"con_{uuid4().hex}"))
        assert await failure_of(client, SyncContacts.run, unknown) == "connection_not_running"

    async def test_a_connection_that_never_answers(self, pipeline: Client, client: Client):
        silent = connection_workflow_id(("default", f"con_{uuid4().hex}"))
        await client.start_workflow("ConnectionWorkflow", None, id=silent, task_queue="unpolled")
        assert await failure_of(client, ShortWait.run, silent) == "timeout"


async def start_connection(client: Client, problem: ErrorCode | None = None) -> str:
    connection = connection_workflow_id(("default", f"con_{uuid4().hex}"))
    await client.start_workflow(StandInConnection.run, problem, id=connection, task_queue="evergrant")
    return connection


async def failure_of(client: Client, run: object, connection: str) -> str | None:
    order = SyncRequest(connection, "crm", "alice", "http://127.0.0.1:1/")
    with pytest.raises(WorkflowFailureError) as failed:
        await client.execute_workflow(run, order, id=f"sync-{uuid4()}", task_queue=TASK_QUEUE)  # pyright: ignore[reportArgumentType, reportCallIssue]  # either workflow's run
    assert isinstance(failed.value.cause, ApplicationError)
    return failed.value.cause.type
