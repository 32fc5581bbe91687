"""The connection workflow on a real Temporal server, with activities that answer from a script."""

import asyncio
import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from evergrant.temporal import TokenInbox, TokenNotReady
from temporalio import workflow
from temporalio.client import Client, WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError
from temporalio.worker import Worker

from evergrant_server.core.connections.connection import LifecycleState, RevocationOutcome
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import new_id
from evergrant_server.core.lifecycle.schedule import NEWEST_RULES, RULES
from evergrant_server.core.messages import connection as m
from evergrant_server.core.messages import jobs
from evergrant_server.core.messages.activities import GrantResult
from evergrant_server.core.messages.names import SignalName
from tests.fakes.patience import PATIENCE_S
from tests.workflows.connection_runs import ASKED, Life, a_consent, living

REFRESH = jobs.REFRESH_GRANT.name


async def test_from_consent_to_revocation(client: Client):
    async with living(client) as life:
        assert (await life.describe()).state is LifecycleState.PENDING_CONSENT
        granted = await life.consent()
        assert (granted.state, granted.next_step) == (LifecycleState.ACTIVE, "refresh due")
        assert (await life.ensure_fresh(1)).generation == 2
        await life.handle.signal(SignalName.REVOKE, m.Revoke(reason="left", context=ASKED))
        ended = await life.handle.result()
        assert ended == m.ConnectionEnded(
            state=LifecycleState.REVOKED, revocation=RevocationOutcome.CONFIRMED, generations=2
        )
        called = " ".join(name for name, _ in life.scripted.calls)
        assert called == "exchange_code refresh_grant begin_revocation revoke_grant export_run_history"


async def test_every_command_carries_its_request_context_into_history(client: Client):
    async with living(client) as life:
        await life.consent()
        await life.ensure_fresh(1)
        order = life.scripted.calls[-1][1]
        assert order.context == ASKED
        assert order.provenance.run_id == (await life.handle.describe()).run_id
        events = await life.events()
        decided = next(e for e in events if int(e["eventId"]) == order.provenance.event_id)
        assert decided["eventType"] == "EVENT_TYPE_WORKFLOW_TASK_STARTED"
        signal = next(e for e in events if e["eventType"] == "EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED")
        payload = signal["workflowExecutionSignaledEventAttributes"]["input"]["payloads"][0]["data"]
        assert json.loads(base64.b64decode(payload))["context"] == ASKED.model_dump()


async def test_that_an_older_token_is_over_says_nothing_of_the_one_that_a_caller_holds(client: Client):
    """Told that its token is over, a worker sends again while the owner of an open attempt may be there."""
    past = datetime.now(UTC) - timedelta(hours=1)
    facts = {"obtained_at": past - timedelta(hours=1), "expires_at": past, "refreshable": True}
    active = {"state": LifecycleState.ACTIVE, "generation": 1, "policy": "on_demand", **facts}
    for seen, over in ((2, False), (1, True)):
        async with living(client, **active) as life:
            life.scripted.generation = 2
            await life.ensure_fresh(seen)
            order = life.scripted.calls[-1][1]
            assert (order.generation, order.token_over) == (seen, over)


async def test_invariant_3_callers_share_one_refresh(client: Client):
    async with living(client) as life:
        await life.consent()
        gate = asyncio.Event()
        life.scripted.answers[REFRESH].append(gate)
        callers = [asyncio.create_task(life.ensure_fresh(1)) for _ in range(8)]
        await life.until_called(REFRESH)
        gate.set()
        assert {(await caller).generation for caller in callers} == {2}
        assert life.scripted.count(REFRESH) == 1


async def test_the_validator_refuses_what_is_done_and_writes_nothing(client: Client):
    async with living(client) as life:
        await life.consent()
        before = len(await life.events())
        with pytest.raises(WorkflowUpdateFailedError) as refused:
            await life.ensure_fresh(0)
        assert isinstance(refused.value.cause, ApplicationError)
        assert refused.value.cause.type == ErrorCode.STORE_CONFLICT
        assert len(await life.events()) == before


@workflow.defn(name="SomebodyElse", sandboxed=False)
class SomebodyElse:
    """A pipeline that signals for its token, or has done that, and waits for the answer."""

    def __init__(self) -> None:
        self.ready: m.TokenReady | None = None

    @workflow.run
    async def run(self, connection: str) -> m.TokenReady:
        if connection:
            ask = m.RequestToken(app="crm-sync", reply_to=workflow.info().workflow_id, context=ASKED)
            await workflow.get_external_workflow_handle(connection).signal(SignalName.REQUEST_TOKEN, ask)
        await workflow.wait_condition(lambda: self.ready is not None)
        assert self.ready is not None
        return self.ready

    @workflow.signal(name=SignalName.TOKEN_READY)
    def token_ready(self, ready: m.TokenReady) -> None:
        self.ready = ready


async def ask_as_somebody_else(client: Client, connection: str) -> m.TokenReady:
    queue = f"somebody-{connection}"
    async with Worker(client, task_queue=queue, workflows=[SomebodyElse]):
        return await client.execute_workflow(
            SomebodyElse.run, connection, id=f"somebody-{connection}", task_queue=queue
        )


async def test_request_token_answers_the_workflow_that_asked_or_says_why_there_is_none(client: Client):
    async with living(client) as life:
        ready = await ask_as_somebody_else(client, life.handle.id)
        assert (ready.generation, ready.problem) == (0, ErrorCode.CONSENT_REQUIRED)
        await life.consent()
        ready = await ask_as_somebody_else(client, life.handle.id)
        assert (ready.connection_id, ready.generation, ready.problem) == (life.start.connection_id, 1, None)


@workflow.defn(name="PatientPipeline", sandboxed=False)
class PatientPipeline(TokenInbox):
    """Is refused a token, and waits until the grant is repaired."""

    @workflow.run
    async def run(self, connection: str) -> tuple[str, int]:
        try:
            await self.token_for(connection, app="crm-sync")
        except TokenNotReady as no:
            if not no.again:
                raise
            ready = await self.token_repaired(connection, timeout=timedelta(days=30))
            return no.code, ready.generation
        return "", 0


async def test_refused_pipelines_are_told_again_when_the_subject_has_acted(client: Client):
    async with living(client) as life:
        await life.consent()
        life.scripted.answers[REFRESH].append(GrantResult(failure=ErrorCode.GRANT_REJECTED))
        assert (await life.ensure_fresh(1)).problem is ErrorCode.GRANT_REJECTED
        assert (await life.describe()).repairer == "subject"
        queue = f"patient-{life.handle.id}"
        async with Worker(client, task_queue=queue, workflows=[PatientPipeline]):
            pipelines = [
                await client.start_workflow(
                    PatientPipeline.run, life.handle.id, id=f"{queue}-{number}", task_queue=queue
                )
                for number in range(3)
            ]
            await life.until_answered(3)
            await life.handle.signal(SignalName.CONSENT_GRANTED, a_consent())
            results = [await it.result() for it in pipelines]
        assert [tuple(it) for it in results] == [("grant_rejected", 2)] * 3


async def test_a_run_that_begins_with_a_token_answers_waiting_callers(client: Client):
    """The run before was behind the store, and was replaced: see `Lives.begin`."""
    look = m.LifecycleEvent(kind=m.EventKind.TIMER_FIRED, context=ASKED)
    queue = f"waited-{new_id('out')}"
    async with Worker(client, task_queue=queue, workflows=[SomebodyElse]):
        waiter = await client.start_workflow(SomebodyElse.run, "", id=queue, task_queue=queue)
        life = {"state": LifecycleState.ACTIVE, "generation": 3, "waiting_callers": (queue,)}
        async with living(client, waiting=(look,), **life) as connection, asyncio.timeout(PATIENCE_S):
            assert (await waiter.result()).generation == 3
            assert (await connection.describe()).waiting_callers == ()


async def test_search_attributes_and_details_tell_the_story(client: Client):
    async with living(client) as life:
        await life.consent()
        description = await life.handle.describe()
        assert description.search_attributes["EvergrantState"] == ["active"]
        details = await life.handle.query("__temporal_workflow_metadata")
        assert "generation 1" in details.current_details
        summaries = [e for e in await life.events() if "userMetadata" in e]
        assert len(summaries) >= 2  # the exchange and the timer at least


@pytest.mark.parametrize("nobody", ["", "x" * 1001, "no-such-workflow"])
async def test_a_request_for_a_token_that_names_no_living_workflow_stops_nothing(client: Client, nobody: str):
    """Temporal refuses an id that is none by failing the whole task, again and again."""
    async with living(client) as life:
        await life.consent()
        ask = m.RequestToken(app="crm-sync", reply_to=nobody, context=ASKED)
        await life.handle.signal(SignalName.REQUEST_TOKEN, ask)
        async with asyncio.timeout(PATIENCE_S):
            assert (await life.ensure_fresh(1)).generation == 2


@pytest.fixture
def short_histories(monkeypatch: pytest.MonkeyPatch) -> None:
    short = RULES[NEWEST_RULES].model_copy(update={"longest_history": 120})
    monkeypatch.setitem(RULES, NEWEST_RULES, short)


async def test_a_flood_of_signals_is_bounded_by_continue_as_new_and_loses_none(
    client: Client, short_histories: None
):
    """Every rotate is a signal of its own; each must lead to its refresh, across runs."""
    async with living(client) as life:
        await life.consent()
        rotate = m.Rotate(reason="flood", context=ASKED)
        await asyncio.gather(*(life.handle.signal(SignalName.ROTATE, rotate) for _ in range(60)))
        await life.until(lambda d: d.generation == 61)
        newest = client.get_workflow_handle(life.handle.id)
        assert (await newest.describe()).run_id != life.handle.first_execution_run_id
        length = (await newest.describe()).history_length
        assert length < 400
        runs = life.scripted.count(jobs.EXPORT_RUN_HISTORY.name)
        assert runs >= 2, "each run that ended was exported"


async def test_updates_are_answered_across_continue_as_new(client: Client, short_histories: None):
    async with living(client) as life:
        generation = (await life.consent()).generation
        life.handle = client.get_workflow_handle(life.handle.id)
        for _ in range(25):
            answer = await life.ensure_fresh(generation)
            assert answer.generation == generation + 1
            generation = answer.generation
        assert life.scripted.count(jobs.EXPORT_RUN_HISTORY.name) >= 1


_INITIATED = "EVENT_TYPE_SIGNAL_EXTERNAL_WORKFLOW_EXECUTION_INITIATED"


def _position(events: list[dict[str, Any]], activity: str) -> int:
    """Where the activity was scheduled first."""
    return next(
        index
        for index, event in enumerate(events)
        if (event.get("activityTaskScheduledEventAttributes") or {}).get("activityType", {}).get("name")
        == activity
    )


async def _asked_by_pipelines_that_are_gone(life: Life, count: int) -> None:
    asks = (m.RequestToken(app="crm-sync", reply_to=f"gone-{n}", context=ASKED) for n in range(count))
    await asyncio.gather(*(life.handle.signal(SignalName.REQUEST_TOKEN, it) for it in asks))


async def test_a_revocation_overtakes_what_waits_in_the_inbox(client: Client):
    async with living(client) as life:
        await life.consent()
        gate = asyncio.Event()
        life.scripted.answers[REFRESH].append(gate)
        refresh = asyncio.create_task(life.ensure_fresh(1))
        await life.until_called(REFRESH)
        await _asked_by_pipelines_that_are_gone(life, 60)
        await life.handle.signal(SignalName.REVOKE, m.Revoke(reason="left", context=ASKED))
        gate.set()
        await life.handle.result()
        await refresh
        events = await life.events()
        kinds = [event["eventType"] for event in events]
        assert kinds.count(_INITIATED) == 60  # each is answered all the same
        assert kinds.index(_INITIATED) > _position(events, jobs.REVOKE_GRANT.name)


async def test_replies_are_sent_side_by_side(client: Client):
    """One after the other, each would wait until Temporal has said that its workflow is gone."""
    async with living(client) as life:
        await life.consent()
        gate = asyncio.Event()
        life.scripted.answers[REFRESH].append(gate)
        refresh = asyncio.create_task(life.ensure_fresh(1))
        await life.until_called(REFRESH)
        await _asked_by_pipelines_that_are_gone(life, 60)
        gate.set()
        await refresh
        async with asyncio.timeout(PATIENCE_S):
            while [event["eventType"] for event in await life.events()].count(_INITIATED) < 60:
                await asyncio.sleep(0.05)
        kinds = [event["eventType"] for event in await life.events()]
        refused = kinds.index("EVENT_TYPE_SIGNAL_EXTERNAL_WORKFLOW_EXECUTION_FAILED")
        assert kinds[:refused].count(_INITIATED) == 60
