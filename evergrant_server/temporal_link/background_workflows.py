"""Restarts workflows that a reconcile pass finds missing: all but those of connections."""

from datetime import datetime, timedelta

from evergrant_server.core.clock import Clock
from evergrant_server.core.messages.activities import RevokeReplacedStart
from evergrant_server.core.messages.agents import AgentStopStart
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.cells import MoveTenant
from evergrant_server.core.messages.decisions import AdvanceAccessRequest, AdvanceCallApproval
from evergrant_server.core.messages.erasure import ErasureStart
from evergrant_server.core.messages.incidents import AdvanceBulk, AdvanceIncident
from evergrant_server.core.messages.integrations import RolloutStart
from evergrant_server.core.messages.jobs import MOVE_TENANT
from evergrant_server.core.messages.maintenance import WakeWebhook
from evergrant_server.core.messages.names import (
    access_request_workflow_id,
    agent_stop_workflow_id,
    bulk_workflow_id,
    call_approval_workflow_id,
    definition_rollout_workflow_id,
    erasure_workflow_id,
    incident_workflow_id,
    replaced_grants_workflow_id,
)
from evergrant_server.store import Store
from evergrant_server.temporal_link import start_requests
from evergrant_server.temporal_link.link import TemporalLink
from evergrant_server.temporal_link.workflow_starter import RECONCILE_CONTEXT, reconcile_context

_OVERDUE_AFTER = timedelta(minutes=2)  # longer than a round of deliveries
_MOST_REQUESTS = 500  # in one pass


async def wake_overdue_webhooks(store: Store, link: TemporalLink, clock: Clock) -> None:
    """Wake or start the workflow of every webhook whose deliveries are overdue.

    A workflow that is only slow is woken too, which costs it one query of the store. Raises
    Failure TEMPORAL_UNAVAILABLE or STORE_UNAVAILABLE.
    """
    async with store.read() as tx:
        overdue = await tx.webhooks.with_overdue_deliveries(clock.now() - _OVERDUE_AFTER)
    for webhook in overdue:
        wake = WakeWebhook(tenant=webhook.tenant, webhook_id=webhook.id, context=RECONCILE_CONTEXT)
        await link.start(start_requests.webhook(wake))


async def restart_definition_rollouts(store: Store, link: TemporalLink, now: datetime) -> None:
    """Start the workflow of every open version of a definition, unless it is running.

    The workflow continues from the stage in the store. Raises Failure TEMPORAL_UNAVAILABLE or
    STORE_UNAVAILABLE.
    """
    async with store.read() as tx:
        versions = await tx.definitions.open_versions_of_all_tenants()
    for version in versions:
        start = RolloutStart(
            tenant=version.tenant,
            definition_id=version.id,
            provider=version.name,
            check_interval_s=version.rollout.check_interval_s,
            context=reconcile_context(
                store.ring, definition_rollout_workflow_id(version.tenant, version.id), now
            ),
        )
        await link.start(start_requests.definition_rollout(start))


async def restart_access_requests(store: Store, link: TemporalLink, now: datetime) -> None:
    """Start the workflow of every request for access whose next step is overdue, or signal it.

    Raises Failure TEMPORAL_UNAVAILABLE or STORE_UNAVAILABLE.
    """
    async with store.read() as tx:
        overdue = await tx.access_requests.overdue(now - _OVERDUE_AFTER, _MOST_REQUESTS)
    for request in overdue:
        context = reconcile_context(store.ring, access_request_workflow_id(request.tenant, request.id), now)
        advance = AdvanceAccessRequest(tenant=request.tenant, request_id=request.id, context=context)
        await link.start(start_requests.access_request(advance))


async def restart_agents_work(store: Store, link: TemporalLink, now: datetime) -> None:
    """The same for agents' calls that wait for an approval, and for orders to stop an agent.

    Raises Failure TEMPORAL_UNAVAILABLE or STORE_UNAVAILABLE.
    """
    async with store.read() as tx:
        overdue = await tx.call_approvals.overdue(now - _OVERDUE_AFTER, _MOST_REQUESTS)
        unfinished = await tx.agent_stops.unfinished(now - _OVERDUE_AFTER, _MOST_REQUESTS)
    for approval in overdue:
        context = reconcile_context(store.ring, call_approval_workflow_id(approval.tenant, approval.id), now)
        advance = AdvanceCallApproval(tenant=approval.tenant, approval_id=approval.id, context=context)
        await link.start(start_requests.call_approval(advance))
    for stop in unfinished:
        context = reconcile_context(store.ring, agent_stop_workflow_id(stop.tenant, stop.id), now)
        start = AgentStopStart(tenant=stop.tenant, stop_id=stop.id, context=context)
        await link.start(start_requests.agent_stop(start))


async def restart_erasures(store: Store, link: TemporalLink, now: datetime) -> None:
    """Start the workflow of every erasure that hasn't ended, unless it is running.

    Raises Failure TEMPORAL_UNAVAILABLE or STORE_UNAVAILABLE.
    """
    async with store.read() as tx:
        unfinished = await tx.erasures.unfinished(now - _OVERDUE_AFTER, _MOST_REQUESTS)
    for erasure in unfinished:
        context = reconcile_context(store.ring, erasure_workflow_id(erasure.tenant, erasure.id), now)
        start = ErasureStart(tenant=erasure.tenant, erasure_id=erasure.id, context=context)
        await link.start(start_requests.erasure(start))


async def restart_moves(store: Store, link: TemporalLink, now: datetime) -> None:
    """Start the job of every move between cells that hasn't ended, unless it is running.

    Raises Failure TEMPORAL_UNAVAILABLE or STORE_UNAVAILABLE.
    """
    async with store.read() as tx:
        unfinished = await tx.tenant_moves.unfinished()
    for move in unfinished:
        request = MoveTenant(tenant=move.tenant, move_id=move.id, context=RequestContext(by="operator"))
        context = reconcile_context(store.ring, MOVE_TENANT.workflow_id(request), now)
        await link.start(start_requests.job(MOVE_TENANT, request.__replace__(context=context)))


async def restart_incidents(store: Store, link: TemporalLink, now: datetime) -> None:
    """Start the workflow of every incident that hasn't ended, or have it look at its row again.

    Raises Failure TEMPORAL_UNAVAILABLE or STORE_UNAVAILABLE.
    """
    async with store.read() as tx:
        unfinished = await tx.incidents.unfinished(now - _OVERDUE_AFTER, _MOST_REQUESTS)
    for incident in unfinished:
        context = reconcile_context(store.ring, incident_workflow_id(incident.tenant, incident.id), now)
        advance = AdvanceIncident(tenant=incident.tenant, incident_id=incident.id, context=context)
        await link.start(start_requests.incident(advance))


async def restart_bulk_orders(store: Store, link: TemporalLink, now: datetime) -> None:
    """Start the workflow of every bulk order that hasn't ended, or have it look at its row again.

    Raises Failure TEMPORAL_UNAVAILABLE or STORE_UNAVAILABLE.
    """
    async with store.read() as tx:
        unfinished = await tx.bulk_orders.unfinished(now - _OVERDUE_AFTER, _MOST_REQUESTS)
    for order in unfinished:
        context = reconcile_context(store.ring, bulk_workflow_id(order.tenant, order.id), now)
        advance = AdvanceBulk(tenant=order.tenant, bulk_id=order.id, context=context)
        await link.start(start_requests.bulk(advance))


async def restart_replaced_grants(store: Store, link: TemporalLink, now: datetime) -> None:
    """Start the workflow of every connection with replaced grants to revoke, unless it is running.

    Raises Failure TEMPORAL_UNAVAILABLE or STORE_UNAVAILABLE.
    """
    async with store.read() as tx:
        pending = await tx.replaced_grants.pending_since_before(now)
    for wait in pending:
        context = reconcile_context(store.ring, replaced_grants_workflow_id(wait.tenant, wait.id), now)
        start = RevokeReplacedStart(tenant=wait.tenant, connection_id=wait.id, context=context)
        await link.start(start_requests.replaced_grants(start, wake=False))


async def restart_background_workflows(store: Store, link: TemporalLink, clock: Clock) -> None:
    """Start what is missing of all of the above. Raises Failure TEMPORAL_UNAVAILABLE or STORE_UNAVAILABLE."""
    await wake_overdue_webhooks(store, link, clock)
    for restart in (
        restart_definition_rollouts,
        restart_replaced_grants,
        restart_access_requests,
        restart_agents_work,
        restart_erasures,
        restart_moves,
        restart_incidents,
        restart_bulk_orders,
    ):
        await restart(store, link, clock.now())
