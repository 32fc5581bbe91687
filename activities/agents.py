"""Ends what a stopped agent has left: approvals, delegations, and connections that only it has used."""

from collections.abc import Mapping

from temporalio import activity

from activities.support.transactions import commit_with_retries
from evergrant_server import audit
from evergrant_server.core.agents.stops import AgentStop
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.clock import Clock
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.decisions import CallApprovalState
from evergrant_server.core.ids import ConnectionId
from evergrant_server.core.messages import jobs
from evergrant_server.core.messages.agents import AgentStopCall, AgentStopProgress
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.connection import Revoke
from evergrant_server.core.messages.names import SignalName
from evergrant_server.core.outbox import call_approval_message, signal_message
from evergrant_server.store import Store, Transaction

_PAGE = 50  # rows in one transaction: the audit log's head is locked for it


class AgentStopActivities:
    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    @activity.defn(name=jobs.ADVANCE_AGENT_STOP.name)
    async def advance_agent_stop(self, call: AgentStopCall) -> AgentStopProgress:
        """End the next page. The order in the store says what to do: without one, nothing is done."""
        return await commit_with_retries(self._store, lambda tx: self._advance(tx, call))

    async def _advance(self, tx: Transaction, call: AgentStopCall) -> AgentStopProgress:
        stop = await tx.agent_stops.get(call.tenant, call.stop_id)
        if stop is None:
            return AgentStopProgress(finished=True)
        if stop.finished_at is None:
            context = RequestContext(by=stop.by, trace_id=call.context.trace_id)
            after = await self._close_approvals(tx, stop, context)
            after = after or await self._end_delegations(tx, call, stop, context)
            if after is None and stop.revoke_connections:
                after = await self._revoke_connections(tx, call, stop, context)
            after = after or stop.__replace__(finished_at=self._clock.now())
            stop = await tx.agent_stops.replace(after, expected=stop.revision)
            if stop.finished_at is not None:
                await self._record(tx, call, AuditAction.AGENT_STOP_ENDED, stop.app_id, context, stop.counts)
        return AgentStopProgress(**stop.counts, finished=stop.finished_at is not None)

    async def _close_approvals(
        self, tx: Transaction, stop: AgentStop, context: RequestContext
    ) -> AgentStop | None:
        """Close a page of the agent's open approvals, and tell their workflows; None when none is left."""
        open_ones = await tx.call_approvals.open_of_app(stop.tenant, stop.app_id, _PAGE)
        for approval in open_ones:
            over = approval.over(CallApprovalState.STOPPED)
            await tx.call_approvals.replace(over, expected=approval.revision)
            await tx.outbox.add(call_approval_message(over, context, self._clock.now()))
        return (
            stop.__replace__(approvals_closed=stop.approvals_closed + len(open_ones)) if open_ones else None
        )

    async def _end_delegations(
        self, tx: Transaction, call: AgentStopCall, stop: AgentStop, context: RequestContext
    ) -> AgentStop | None:
        """End a page of the agent's delegations, and what was delegated by them; None when none is left."""
        now, ended = self._clock.now(), stop.delegations_ended
        live = await tx.delegations.live_of_app(stop.tenant, stop.app_id, now, _PAGE)
        for delegation in live:
            count = await tx.delegations.count_live_under(delegation, now)
            stopped = delegation.stopped(stop.by, stop.reason, now)
            await tx.delegations.replace(stopped, expected=delegation.revision)
            detail = {"reason": stop.reason, "stop_id": stop.id, "session": delegation.root_id}
            detail |= {"subject": delegation.subject, "delegations_ended": count}
            await self._record(tx, call, AuditAction.DELEGATION_STOPPED, delegation.id, context, detail)
            ended += count
        return stop.__replace__(delegations_ended=ended) if live else None

    async def _revoke_connections(
        self, tx: Transaction, call: AgentStopCall, stop: AgentStop, context: RequestContext
    ) -> AgentStop | None:
        used = await tx.agent_stops.used_connections(stop.tenant, stop.app_id, stop.after, _PAGE)
        if not used:
            return None
        unshared = [connection_id for connection_id, shared in used if not shared]
        revoked = [await self._revoke(tx, call, stop, connection_id, context) for connection_id in unshared]
        return stop.__replace__(
            after=used[-1][0],
            connections_revoked=stop.connections_revoked + sum(revoked),
            connections_kept=stop.connections_kept + len(used) - len(unshared),
        )

    async def _revoke(
        self,
        tx: Transaction,
        call: AgentStopCall,
        stop: AgentStop,
        connection_id: ConnectionId,
        context: RequestContext,
    ) -> bool:
        """Have a live connection revoked, as its owner's own command would. False for one that has ended."""
        now = self._clock.now()
        connection = await tx.revocable_rows.connection(stop.tenant, connection_id, now)
        if connection is None or connection.state.is_final or connection.state is LifecycleState.REVOKING:
            return False
        requested = connection.revocation_requested(stop.reason, now)
        await tx.connections.replace(requested, expected=connection.revision)
        message = Revoke(reason=stop.reason, context=context)
        await tx.outbox.add(signal_message(stop.tenant, connection_id, SignalName.REVOKE, message, now))
        detail = {"reason": stop.reason, "stop_id": stop.id}
        await self._record(tx, call, AuditAction.REVOCATION_REQUESTED, connection_id, context, detail)
        return True

    async def _record(
        self,
        tx: Transaction,
        call: AgentStopCall,
        action: AuditAction,
        object_id: str,
        context: RequestContext,
        detail: Mapping[str, object],
    ) -> None:
        entry = AuditEntry(
            tenant=call.tenant,
            at=self._clock.now(),
            action=action,
            object=object_id,
            context=context,
            detail=dict(detail),
            provenance=call.provenance,
        )
        await audit.append(tx, entry)
