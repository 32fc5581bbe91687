"""The steps of an agent's call that no person takes: reminder, escalation, deadline."""

from temporalio import activity

from activities.support.transactions import commit_with_retries
from evergrant_server import audit
from evergrant_server.core.agents.call_approvals import CallApproval, CallApprovalState, CallApprovalStep
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.clock import Clock
from evergrant_server.core.messages import jobs
from evergrant_server.core.messages.agents import CallApprovalCall, CallApprovalProgress
from evergrant_server.core.messages.base import SCHEDULE, RequestContext
from evergrant_server.store import Store, Transaction
from evergrant_server.telemetry import metrics
from evergrant_server.telemetry.agents import CALL_APPROVALS

_ACTIONS = {
    CallApprovalStep.REMIND: AuditAction.CALL_APPROVAL_REMINDED,
    CallApprovalStep.ESCALATE: AuditAction.CALL_APPROVAL_ESCALATED,
    CallApprovalStep.EXPIRE: AuditAction.CALL_APPROVAL_EXPIRED,
}


class CallApprovalActivities:
    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    @activity.defn(name=jobs.ADVANCE_CALL_APPROVAL.name)
    async def advance_call_approval(self, call: CallApprovalCall) -> CallApprovalProgress:
        """Take the step that is due, and say when the next one is. One whose agent is gone is over."""
        return await commit_with_retries(self._store, lambda tx: self._advance(tx, call))

    async def _advance(self, tx: Transaction, call: CallApprovalCall) -> CallApprovalProgress:
        approval, now = await tx.call_approvals.get(call.tenant, call.approval_id), self._clock.now()
        if approval is None:
            return CallApprovalProgress(state=CallApprovalState.STOPPED)
        step = approval.step(now)
        if step is not None:
            approval = await self._take(tx, call, approval, step)
        wait = None if approval.next_at is None else max((approval.next_at - now).total_seconds(), 0.0)
        return CallApprovalProgress(state=approval.state, next_s=wait)

    async def _take(
        self, tx: Transaction, call: CallApprovalCall, approval: CallApproval, step: CallApprovalStep
    ) -> CallApproval:
        now = self._clock.now()
        match step:
            case CallApprovalStep.REMIND:
                after = approval.reminded(now)
            case CallApprovalStep.ESCALATE:
                after = approval.escalated(now)
            case CallApprovalStep.EXPIRE:
                after = approval.over(CallApprovalState.EXPIRED)
        saved = await tx.call_approvals.replace(after, expected=approval.revision)
        app = await tx.access.app(approval.tenant, approval.app_id)
        sponsor = {"sponsor": app.sponsor} if app is not None and app.is_agent else {}
        entry = AuditEntry(
            tenant=call.tenant,
            at=now,
            action=_ACTIONS[step],
            object=saved.id,
            context=RequestContext(by=SCHEDULE, trace_id=call.context.trace_id),
            detail={**saved.detail("" if app is None else app.name), **sponsor},
            provenance=call.provenance,
        )
        await audit.append(tx, entry)
        if step is CallApprovalStep.EXPIRE:
            metrics.count(CALL_APPROVALS, saved.state)
        return saved
