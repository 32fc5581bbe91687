"""Stories of the passes, rollouts and deliveries that have workflows of their own."""

import asyncio
from datetime import UTC, datetime, timedelta

from pydantic import BaseModel
from temporalio.client import Client

from evergrant_server.core.definition import DefinitionState
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import (
    AgentStopId,
    ConnectionId,
    ConsentId,
    PersonLoginId,
    ReceiverId,
    TrustedIssuerId,
)
from evergrant_server.core.messages.activities import ReplacedRevocationResult
from evergrant_server.core.messages.agents import AgentStopProgress, AgentStopStart
from evergrant_server.core.messages.decisions import DecisionProgress, ReviewPermits
from evergrant_server.core.messages.integrations import (
    FetchReceiverKeys,
    PushAuthorizationRequest,
    ReadClientDocument,
    VerifyLogin,
    VerifyPerson,
)
from evergrant_server.core.messages.maintenance import (
    DeliveryRound,
    FetchIssuerKeys,
    IntrospectGrants,
    ReconcileRequest,
    RereadMetadata,
)
from evergrant_server.core.messages.names import (
    ActivityName,
    WorkflowName,
    agent_stop_workflow_id,
    client_document_workflow_id,
    issuer_keys_workflow_id,
    login_workflow_id,
    person_login_workflow_id,
    pushed_authorization_workflow_id,
    receiver_keys_workflow_id,
)
from tests.fakes.scripted_activities import ScriptedActivities
from tests.workflows.connection_runs import ASKED, Handle, a_worker, until_called
from tests.workflows.maintenance_runs import (
    FOREVER,
    TENANT,
    ScriptedRollout,
    approving_call,
    decided,
    delivering,
    requesting_access,
    retrying,
    revoking_replaced,
    running_rollout,
    wanted_back,
)


async def _run(
    client: Client,
    name: WorkflowName,
    order: BaseModel,
    workflow: str,
    scripted: ScriptedActivities | None = None,
) -> Handle:
    """Run one that is no connection's life to its end."""
    queue = f"queue-{workflow}"
    async with a_worker(client, (scripted or ScriptedActivities()).everything(), queue):
        handle = await client.start_workflow(name, order, id=workflow, task_queue=queue)
        await handle.result()
        return handle


async def reconciled(client: Client) -> Handle:
    """What the schedule starts."""
    return await _run(client, WorkflowName.RECONCILE, ReconcileRequest(), "evergrant:reconcile")


async def metadata_reread(client: Client) -> Handle:
    """What the schedule starts."""
    return await _run(client, WorkflowName.REREAD_METADATA, RereadMetadata(), "evergrant:reread-metadata")


async def grants_introspected(client: Client) -> Handle:
    """What the schedule starts."""
    return await _run(client, WorkflowName.INTROSPECTION, IntrospectGrants(), "evergrant:look-elsewhere")


async def receiver_keys_fetched(client: Client) -> Handle:
    receiver_id = ReceiverId("rcv_0000000000000000000000")
    order = FetchReceiverKeys(tenant=TENANT, receiver_id=receiver_id, context=ASKED)
    workflow = receiver_keys_workflow_id(TENANT, receiver_id)
    return await _run(client, WorkflowName.FETCH_RECEIVER_KEYS, order, workflow)


async def issuer_keys_fetched(client: Client) -> Handle:
    issuer_id = TrustedIssuerId("iss_0000000000000000000000")
    order = FetchIssuerKeys(tenant=TENANT, issuer_id=issuer_id, context=ASKED)
    workflow = issuer_keys_workflow_id(TENANT, issuer_id)
    return await _run(client, WorkflowName.FETCH_ISSUER_KEYS, order, workflow)


async def request_pushed(client: Client) -> Handle:
    """An authorization request that a browser waits for."""
    connection_id = ConnectionId("con_0000000000000000000000")
    ids = {"tenant": TENANT, "consent_id": ConsentId("cns_0000000000000000000000"), "revision": 2}
    order = PushAuthorizationRequest(connection_id=connection_id, context=ASKED, **ids)
    return await _run(
        client, WorkflowName.PUSHED_AUTHORIZATION, order, pushed_authorization_workflow_id(*ids.values())
    )


async def login_verified(client: Client) -> Handle:
    """The login of a subject whose browser waits."""
    ids = {"tenant": TENANT, "consent_id": ConsentId("cns_0000000000000000000000"), "revision": 3}
    workflow = login_workflow_id(*ids.values())
    return await _run(client, WorkflowName.VERIFY_LOGIN, VerifyLogin(context=ASKED, **ids), workflow)


async def person_verified(client: Client) -> Handle:
    """The login of a person who administers."""
    ids = {"tenant": TENANT, "login_id": PersonLoginId("pln_0000000000000000000000"), "revision": 2}
    workflow = person_login_workflow_id(*ids.values())
    return await _run(client, WorkflowName.VERIFY_PERSON, VerifyPerson(context=ASKED, **ids), workflow)


async def client_document_read(client: Client) -> Handle:
    """The metadata document of an OAuth client whose browser waits."""
    url = "https://agent.example/client.json"
    order = ReadClientDocument(tenant=TENANT, client_id=url, context=ASKED)
    return await _run(client, WorkflowName.READ_CLIENT_DOCUMENT, order, client_document_workflow_id(url))


async def connections_retried_after_several_changes(client: Client) -> Handle:
    """Three changes come while a worker tells the connections of the first one."""
    scripted = ScriptedActivities()
    hold = asyncio.Event()
    scripted.answers[ActivityName.RETRY_CONNECTIONS] = [hold]
    async with retrying(client, scripted.everything()) as changed:
        handle = await changed()
        await until_called(scripted, ActivityName.RETRY_CONNECTIONS)
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
    scripted.answers[ActivityName.REVOKE_REPLACED_GRANTS] = [failed, for_long]
    async with revoking_replaced(client, scripted.everything()) as replaced:
        handle = await replaced()
        await until_called(scripted, ActivityName.REVOKE_REPLACED_GRANTS, 2)
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
    scripted.answers[ActivityName.DELIVER_WEBHOOKS] = [
        DeliveryRound(delivered=20, next_at=now),
        paused,
        soon,
        DeliveryRound(delivered=1),
    ]
    async with delivering(client, scripted.everything()) as told:
        await told.wake()
        await until_called(scripted, ActivityName.DELIVER_WEBHOOKS, 2)
        await told.wake()
        await told.wake(at_once=True)
        await until_called(scripted, ActivityName.DELIVER_WEBHOOKS, 4)
        await told.wake()
        await until_called(scripted, ActivityName.DELIVER_WEBHOOKS, 5)
        return told.handle


async def access_requested_reminded_approved_and_ended(client: Client) -> Handle:
    """An admin is reminded once, approves for a moment, and the access ends by itself."""
    scripted = ScriptedActivities()
    advance, soon = ActivityName.ADVANCE_ACCESS_REQUEST, 0.2
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
    advance, soon = ActivityName.ADVANCE_CALL_APPROVAL, 0.2
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
    scripted.answers[ActivityName.ADVANCE_AGENT_STOP] = list(parts)
    workflow = agent_stop_workflow_id(TENANT, stop_id)
    return await _run(client, WorkflowName.AGENT_STOP, start, workflow, scripted)


async def permits_reviewed(client: Client) -> Handle:
    """What the schedule starts."""
    order = ReviewPermits()
    return await _run(client, WorkflowName.REVIEW_PERMITS, order, "evergrant:review-permits")
