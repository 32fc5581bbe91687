"""The workflows of rollouts and webhooks under test: their start, and the script of their activities."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, TypeVar

from temporalio import activity
from temporalio.client import Client, WorkflowHandle
from temporalio.common import WorkflowIDConflictPolicy

from evergrant_server.core.definition import DefinitionState
from evergrant_server.core.ids import (
    AccessRequestId,
    BulkId,
    CallApprovalId,
    ConnectionId,
    DefinitionId,
    IncidentId,
    IntegrationId,
    OutboxId,
    Tenant,
    WebhookId,
    new_id,
)
from evergrant_server.core.messages import integrations as m
from evergrant_server.core.messages import jobs
from evergrant_server.core.messages.activities import ReplacedRevocationResult, RevokeReplacedStart
from evergrant_server.core.messages.decisions import (
    AdvanceAccessRequest,
    AdvanceCallApproval,
    DecisionProgress,
)
from evergrant_server.core.messages.incidents import AdvanceBulk, AdvanceIncident, IncidentProgress
from evergrant_server.core.messages.maintenance import DeliveryRound, WakeWebhook, WebhookStart
from evergrant_server.core.messages.names import (
    SignalName,
    WorkflowName,
    definition_rollout_workflow_id,
    webhook_workflow_id,
)
from evergrant_server.temporal_link import start_requests
from evergrant_server.temporal_link.start_requests import StartRequest
from tests.fakes.scripted_activities import ScriptedActivities
from tests.workflows.connection_runs import ASKED, Handle, a_worker

R = TypeVar("R")


class ScriptedRollout:
    """`checked` is what the checks say, `stages` what each look at a stage says; `orders` keeps the calls."""

    def __init__(self, checked: DefinitionState, *stages: DefinitionState) -> None:
        self.checked = checked
        self.stages = list(stages)
        self.orders: list[tuple[str, m.DefinitionCall]] = []

    def everything(self) -> list[Any]:
        return [self.check_definition, self.decide_definition, self.watch_definition]

    @activity.defn(name=jobs.CHECK_DEFINITION.name)
    async def check_definition(self, order: m.DefinitionCall) -> m.DefinitionResult:
        self.orders.append(("check", order))
        return m.DefinitionResult(state=self.checked)

    @activity.defn(name=jobs.APPLY_DEFINITION_DECISION.name)
    async def decide_definition(self, order: m.DefinitionCall) -> m.DefinitionResult:
        self.orders.append(("decide", order))
        if order.overdue or not self.stages:
            return m.DefinitionResult(state=DefinitionState.REJECTED)
        return m.DefinitionResult(state=self.stages.pop(0), share=0.05)

    @activity.defn(name=jobs.EVALUATE_ROLLOUT.name)
    async def watch_definition(self, order: m.DefinitionCall) -> m.DefinitionResult:
        self.orders.append(("watch", order))
        if order.roll_back is not None:
            return m.DefinitionResult(state=DefinitionState.ROLLED_BACK)
        return m.DefinitionResult(state=self.stages.pop(0), share=0.25)


@asynccontextmanager
async def running_rollout(
    client: Client, scripted: ScriptedRollout, *, watch_s: float = 1.0
) -> AsyncIterator[WorkflowHandle[Any, m.RolloutResult]]:
    """Start a worker on a queue of its own, and a rollout on it."""
    start = m.RolloutStart(
        tenant=Tenant("acme"),
        definition_id=DefinitionId(new_id("def")),
        provider="acme-crm",
        check_interval_s=watch_s,
        context=ASKED,
    )
    queue = f"queue-{start.definition_id}"
    async with a_worker(client, scripted.everything(), queue):
        yield await client.start_workflow(
            WorkflowName.DEFINITION_ROLLOUT,
            start,
            id=definition_rollout_workflow_id(start.tenant, start.definition_id),
            task_queue=queue,
            result_type=m.RolloutResult,
        )


async def decided(handle: WorkflowHandle[Any, Any]) -> None:
    await handle.signal(SignalName.DEFINITION_DECIDED, m.DefinitionDecided(context=ASKED))


async def wanted_back(handle: WorkflowHandle[Any, Any]) -> None:
    await handle.signal(
        SignalName.ROLL_BACK_DEFINITION, m.RollBackDefinition(reason="support tickets", context=ASKED)
    )


FOREVER = timedelta(days=1).total_seconds()

TENANT = Tenant("acme")


class Told:
    """A webhook's workflow under test."""

    def __init__(self, client: Client, queue: str, webhook: WebhookId) -> None:
        self._client, self._queue, self.webhook = client, queue, webhook

    @property
    def handle(self) -> WorkflowHandle[Any, DeliveryRound]:
        return self._client.get_workflow_handle(webhook_workflow_id(TENANT, self.webhook))

    async def wake(self, *, at_once: bool = False) -> WorkflowHandle[Any, DeliveryRound]:
        """What the relay does."""
        order = WakeWebhook(tenant=TENANT, webhook_id=self.webhook, at_once=at_once, context=ASKED)
        return await self._client.start_workflow(
            WorkflowName.WEBHOOK_DELIVERY,
            WebhookStart(tenant=TENANT, webhook_id=self.webhook),
            id=webhook_workflow_id(TENANT, self.webhook),
            task_queue=self._queue,
            start_signal=SignalName.WAKE_WEBHOOK,
            start_signal_args=[order],
            result_type=DeliveryRound,
        )


@asynccontextmanager
async def delivering(
    client: Client, activities: list[Any], webhook: WebhookId | None = None
) -> AsyncIterator[Told]:
    """A worker on a queue of its own, and a webhook it delivers to."""
    webhook = webhook or WebhookId(new_id("whk"))
    queue = f"queue-{webhook}"
    async with a_worker(client, activities, queue):
        yield Told(client, queue, webhook)


Changed = Callable[..., Awaitable[WorkflowHandle[Any, m.RetryConnectionsResult]]]


@asynccontextmanager
async def retrying(client: Client, activities: list[Any]) -> AsyncIterator[Changed]:
    """A worker on a queue of its own, and what the relay does after each change of one integration."""
    integration = IntegrationId(new_id("int"))
    queue = f"queue-{integration}"

    async def changed(id: str | None = None) -> WorkflowHandle[Any, m.RetryConnectionsResult]:
        ids = {"tenant": TENANT, "id": OutboxId(id or new_id("out")), "integration_id": integration}
        request = start_requests.retry_connections(m.RetryConnections(version=2, context=ASKED, **ids))
        return await _started(client, request, queue, m.RetryConnectionsResult)

    async with a_worker(client, activities, queue):
        yield changed


Replaced = Callable[[], Awaitable[WorkflowHandle[Any, ReplacedRevocationResult]]]


@asynccontextmanager
async def revoking_replaced(client: Client, activities: list[Any]) -> AsyncIterator[Replaced]:
    """A worker on a queue of its own, and what the relay does after each grant that was replaced."""
    connection = ConnectionId(new_id("con"))
    queue = f"queue-{connection}"

    async def replaced() -> WorkflowHandle[Any, ReplacedRevocationResult]:
        start = RevokeReplacedStart(tenant=TENANT, connection_id=connection, context=ASKED)
        request = start_requests.replaced_grants(start)
        return await _started(client, request, queue, ReplacedRevocationResult)

    async with a_worker(client, activities, queue):
        yield replaced


Advanced = Callable[[], Awaitable[WorkflowHandle[Any, DecisionProgress]]]


@asynccontextmanager
async def requesting_access(client: Client, activities: list[Any]) -> AsyncIterator[Advanced]:
    """A worker on a queue of its own, and what the relay does for a request, and again once it is decided."""
    request_id = AccessRequestId(new_id("req"))
    queue = f"queue-{request_id}"

    async def advanced() -> WorkflowHandle[Any, DecisionProgress]:
        advance = AdvanceAccessRequest(tenant=TENANT, request_id=request_id, context=ASKED)
        request = start_requests.access_request(advance)
        return await _started(client, request, queue, DecisionProgress)

    async with a_worker(client, activities, queue):
        yield advanced


@asynccontextmanager
async def approving_call(client: Client, activities: list[Any]) -> AsyncIterator[Advanced]:
    """The same for an agent's call that a person approves."""
    approval_id = CallApprovalId(new_id("cap"))
    queue = f"queue-{approval_id}"

    async def advanced() -> WorkflowHandle[Any, Any]:
        advance = AdvanceCallApproval(tenant=TENANT, approval_id=approval_id, context=ASKED)
        return await _started(client, start_requests.call_approval(advance), queue, DecisionProgress)

    async with a_worker(client, activities, queue):
        yield advanced


@asynccontextmanager
async def handling_incident(
    client: Client, activities: list[Any], incident_id: IncidentId
) -> AsyncIterator[Callable[[], Awaitable[WorkflowHandle[Any, IncidentProgress]]]]:
    """A worker on a queue of its own, and what the relay does for an incident, and after a pause."""
    queue = f"queue-{incident_id}"

    async def advanced() -> WorkflowHandle[Any, IncidentProgress]:
        advance = AdvanceIncident(tenant=TENANT, incident_id=incident_id, context=ASKED)
        return await _started(client, start_requests.incident(advance), queue, IncidentProgress)

    async with a_worker(client, activities, queue):
        yield advanced


@asynccontextmanager
async def handling_bulk_order(
    client: Client, activities: list[Any], bulk_id: BulkId
) -> AsyncIterator[Callable[[], Awaitable[WorkflowHandle[Any, IncidentProgress]]]]:
    """The same for a bulk order."""
    queue = f"queue-{bulk_id}"

    async def advanced() -> WorkflowHandle[Any, IncidentProgress]:
        advance = AdvanceBulk(tenant=TENANT, bulk_id=bulk_id, context=ASKED)
        return await _started(client, start_requests.bulk(advance), queue, IncidentProgress)

    async with a_worker(client, activities, queue):
        yield advanced


async def _started(
    client: Client, request: StartRequest, queue: str, result_type: type[R]
) -> WorkflowHandle[Any, R]:
    """As the relay starts it."""
    return await client.start_workflow(
        request.workflow,
        request.argument,
        id=request.workflow_id,
        task_queue=queue,
        result_type=result_type,
        id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
        **request.options,
    )


async def run_to_its_end(client: Client, start: StartRequest, scripted: ScriptedActivities) -> Handle:
    """A run that no message reaches after its start."""
    queue = f"queue-{start.workflow_id}"
    async with a_worker(client, scripted.everything(), queue):
        handle = await _started(client, start, queue, dict)
        await handle.result()
        return handle
