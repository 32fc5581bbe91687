"""Stories of the passes, rollouts and deliveries that have workflows of their own."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from temporalio.client import Client

from evergrant_server.core.connections.erasure import ErasureState
from evergrant_server.core.connections.incidents import IncidentState
from evergrant_server.core.definition import DefinitionState
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import AgentStopId, BulkId, ErasureId, ExportId, IncidentId
from evergrant_server.core.messages import jobs
from evergrant_server.core.messages.activities import ReplacedRevocationResult
from evergrant_server.core.messages.agents import AgentStopProgress, AgentStopStart
from evergrant_server.core.messages.decisions import DecisionProgress
from evergrant_server.core.messages.erasure import ErasureProgress, ErasureStart
from evergrant_server.core.messages.export import ExportProgress, ExportStart
from evergrant_server.core.messages.incidents import IncidentProgress
from evergrant_server.core.messages.maintenance import DeliveryRound
from evergrant_server.core.messages.work import Job
from evergrant_server.temporal_link import start_requests
from evergrant_server.temporal_link.start_requests import StartRequest
from tests.fakes.scripted_activities import ScriptedActivities
from tests.workflows.connection_runs import ASKED, Handle, until_called
from tests.workflows.maintenance_runs import (
    FOREVER,
    TENANT,
    ScriptedRollout,
    approving_call,
    decided,
    delivering,
    handling_bulk_order,
    handling_incident,
    requesting_access,
    retrying,
    revoking_replaced,
    run_to_its_end,
    running_rollout,
    wanted_back,
)
from tests.workflows.sampled_messages import sample


async def connections_retried_after_several_changes(client: Client) -> Handle:
    """Three changes come while a worker tells the connections of the first one."""
    scripted = ScriptedActivities()
    hold = asyncio.Event()
    scripted.answers[jobs.RETRY_CONNECTIONS.name] = [hold]
    async with retrying(client, scripted.everything()) as changed:
        handle = await changed()
        await until_called(scripted, jobs.RETRY_CONNECTIONS.name)
        for _ in range(3):
            await changed()
        hold.set()
        await handle.result()
        return handle


async def replaced_grants_revoked(client: Client) -> Handle:
    """The provider fails, and then fails for long; another grant that is replaced ends the wait."""
    scripted = ScriptedActivities()
    failed = ReplacedRevocationResult(failure=ErrorCode.PROVIDER_ERROR)
    for_long = failed.model_copy(update={"retry_after": 3600.0})
    scripted.answers[jobs.REVOKE_REPLACED_GRANTS.name] = [failed, for_long]
    async with revoking_replaced(client, scripted.everything()) as replaced:
        handle = await replaced()
        await until_called(scripted, jobs.REVOKE_REPLACED_GRANTS.name, 2)
        await replaced()
        await handle.result()
        return handle


async def definition_rolled_out_in_stages(client: Client) -> Handle:
    scripted = ScriptedRollout(
        DefinitionState.WAITING, DefinitionState.STAGED, DefinitionState.STAGED, DefinitionState.ACTIVE
    )
    async with running_rollout(client, scripted) as handle:
        await decided(handle)
        await handle.result()
        return handle


async def definition_rolled_back(client: Client) -> Handle:
    scripted = ScriptedRollout(DefinitionState.WAITING, DefinitionState.STAGED)
    async with running_rollout(client, scripted, watch_s=FOREVER) as handle:
        await decided(handle)
        await wanted_back(handle)
        await handle.result()
        return handle


async def delivered_to_a_webhook_that_was_down(client: Client) -> Handle:
    """Full rounds, a pause that only a person cuts, a timer that ends one, and events meanwhile."""
    scripted = ScriptedActivities()
    now = datetime.now(UTC)
    paused = DeliveryRound(failed=1, next_at=now + timedelta(hours=1), paused=True)
    soon = DeliveryRound(failed=1, next_at=now + timedelta(seconds=4), paused=True)
    scripted.answers[jobs.DELIVER_WEBHOOKS.name] = [
        DeliveryRound(delivered=20, next_at=now),
        paused,
        soon,
        DeliveryRound(delivered=1),
    ]
    async with delivering(client, scripted.everything()) as told:
        await told.wake()
        await until_called(scripted, jobs.DELIVER_WEBHOOKS.name, 2)
        await told.wake()
        await told.wake(at_once=True)
        await until_called(scripted, jobs.DELIVER_WEBHOOKS.name, 4)
        await told.wake()
        await until_called(scripted, jobs.DELIVER_WEBHOOKS.name, 5)
        return told.handle


async def access_requested_reminded_approved_and_ended(client: Client) -> Handle:
    """An admin is reminded once, approves for a moment, and the access ends by itself."""
    scripted = ScriptedActivities()
    advance, soon = jobs.ADVANCE_ACCESS_REQUEST.name, 0.2
    waits = DecisionProgress(state="waiting", next_s=soon)
    long = DecisionProgress(state="waiting", next_s=FOREVER)
    approved = DecisionProgress(state="approved", next_s=soon)
    scripted.answers[advance] = [waits, long, approved, DecisionProgress(state="ended")]
    async with requesting_access(client, scripted.everything()) as advanced:
        await advanced()
        await until_called(scripted, advance, 2)
        handle = await advanced()
        await handle.result()
        return handle


async def call_asked_for_reminded_escalated_approved_and_used(client: Client) -> Handle:
    """A person is reminded, the call is escalated, approved and made: each tells its workflow."""
    scripted = ScriptedActivities()
    advance, soon = jobs.ADVANCE_CALL_APPROVAL.name, 0.2
    waits = DecisionProgress(state="waiting", next_s=soon)
    long = DecisionProgress(state="waiting", next_s=FOREVER)
    approved = DecisionProgress(state="approved", next_s=FOREVER)
    scripted.answers[advance] = [waits, waits, long, approved, DecisionProgress(state="used")]
    async with approving_call(client, scripted.everything()) as advanced:
        await advanced()
        await until_called(scripted, advance, 3)
        await advanced()
        await until_called(scripted, advance, 4)
        handle = await advanced()
        await handle.result()
        return handle


async def agent_stopped(client: Client) -> Handle:
    """A stop that ends what the agent has left in three parts."""
    stop_id = AgentStopId("stp_0000000000000000000000")
    start = AgentStopStart(tenant=TENANT, stop_id=stop_id, context=ASKED)
    scripted = ScriptedActivities()
    parts = [AgentStopProgress(approvals_closed=50), AgentStopProgress(approvals_closed=60)]
    scripted.answers[jobs.ADVANCE_AGENT_STOP.name] = list(parts)
    return await run_to_its_end(client, start_requests.agent_stop(start), scripted)


async def connections_erased(client: Client) -> Handle:
    """Two steps at once, a wait for a provider that hasn't confirmed yet, and the end."""
    start = ErasureStart(tenant=TENANT, erasure_id=ErasureId("era_0000000000000000000000"), context=ASKED)
    scripted = ScriptedActivities()
    first = ErasureProgress(state=ErasureState.REVOKING, connections=50, waiting=1, next_s=0)
    waits = ErasureProgress(state=ErasureState.REVOKING, connections=51, waiting=1, next_s=0.2)
    scripted.answers[jobs.ADVANCE_ERASURE.name] = [first, waits]
    return await run_to_its_end(client, start_requests.erasure(start), scripted)


async def incident_paused_and_done(client: Client) -> Handle:
    """A part at once, a wait, a pause that a signal ends, and the end."""
    incident_id = IncidentId("inc_0000000000000000000000")
    scripted = ScriptedActivities()
    advance, working = jobs.ADVANCE_INCIDENT.name, IncidentState.WORKING
    at_once = IncidentProgress(state=IncidentState.SELECTING, selected=50, next_s=0)
    waits = IncidentProgress(state=working, selected=50, ended=25, next_s=0.2)
    paused = IncidentProgress(state=working, paused=True, selected=50, ended=40)
    scripted.answers[advance] = [at_once, waits, paused]
    async with handling_incident(client, scripted.everything(), incident_id) as advanced:
        handle = await advanced()
        await until_called(scripted, advance, 3)
        await advanced()
        await handle.result()
        return handle


async def bulk_order_paused_and_done(client: Client) -> Handle:
    """The same of a bulk order."""
    bulk_id = BulkId("blk_0000000000000000000000")
    scripted = ScriptedActivities()
    advance, working = jobs.ADVANCE_BULK.name, IncidentState.WORKING
    at_once = IncidentProgress(state=IncidentState.SELECTING, selected=50, next_s=0)
    waits = IncidentProgress(state=working, selected=50, ended=25, next_s=0.2)
    paused = IncidentProgress(state=working, paused=True, selected=50, ended=40)
    scripted.answers[advance] = [at_once, waits, paused]
    async with handling_bulk_order(client, scripted.everything(), bulk_id) as advanced:
        handle = await advanced()
        await until_called(scripted, advance, 3)
        await advanced()
        await handle.result()
        return handle


async def grants_exported(client: Client) -> Handle:
    """Two pages, and nobody fetches the lines before they expire."""
    export_id, expires_at = ExportId("exp_0000000000000000000000"), datetime.now(UTC) + timedelta(seconds=1)
    start = ExportStart(tenant=TENANT, export_id=export_id, expires_at=expires_at, context=ASKED)
    scripted = ScriptedActivities()
    first = ExportProgress(exported=100, skipped=1, done=False)
    scripted.answers[jobs.SEAL_EXPORT_PAGE.name] = [first, ExportProgress(exported=120, skipped=1, done=True)]
    return await run_to_its_end(client, start_requests.export(start), scripted)


def _story_of(job: Job[Any, Any]) -> Callable[[Client], Awaitable[Handle]]:
    """A run of the job, as its schedule, the relay or the API starts it."""

    async def story(client: Client) -> Handle:
        request = job.request.model_validate(sample(job.request))
        if job.recurrence is not None:
            start = StartRequest(job.name, job.recurrence.request, f"evergrant:{job.name}", job.title)
        else:
            start = start_requests.job(job, request)
        return await run_to_its_end(client, start, ScriptedActivities())

    return story


OF_EACH_JOB = {f"job_{job.name}": _story_of(job) for job in jobs.JOBS.values()}
