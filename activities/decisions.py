"""The steps of a decision that no person takes, and the proposals to remove permits that go unused.

Steps: reminder, escalation, deadline, end of temporary access.
"""

from datetime import timedelta
from functools import partial

from temporalio import activity

from activities.support.temporal import heartbeating, last_heartbeat
from activities.support.transactions import commit_with_retries
from evergrant_server import audit
from evergrant_server.core.access import Permit
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.clock import Clock
from evergrant_server.core.decisions import (
    AccessRequest,
    AccessRequestKind,
    AccessRequestState,
    CallApproval,
    CallApprovalState,
    DecisionStep,
    shown_permit,
)
from evergrant_server.core.ids import AccessRequestId, new_id
from evergrant_server.core.messages import jobs
from evergrant_server.core.messages.base import SCHEDULE, RequestContext
from evergrant_server.core.messages.decisions import (
    AccessRequestCall,
    CallApprovalCall,
    DecisionProgress,
    ReviewPermits,
    ReviewPermitsResult,
)
from evergrant_server.core.outbox import access_request_message
from evergrant_server.store import Store, Transaction
from evergrant_server.store.access_review import unused_permits
from evergrant_server.telemetry import metrics
from evergrant_server.telemetry.metrics import CALL_APPROVALS

TIME_TO_DECIDE = timedelta(days=30)

_CONTEXT = RequestContext(by=SCHEDULE)
_PAGE_SIZE = 200
_ACTIONS_OF_REQUESTS = {
    DecisionStep.REMIND: AuditAction.ACCESS_REMINDED,
    DecisionStep.EXPIRE: AuditAction.ACCESS_EXPIRED,
    DecisionStep.END: AuditAction.ACCESS_ENDED,
}
_ACTIONS_OF_CALLS = {
    DecisionStep.REMIND: AuditAction.CALL_APPROVAL_REMINDED,
    DecisionStep.ESCALATE: AuditAction.CALL_APPROVAL_ESCALATED,
    DecisionStep.EXPIRE: AuditAction.CALL_APPROVAL_EXPIRED,
}


class DecisionActivities:
    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    @activity.defn(name=jobs.ADVANCE_ACCESS_REQUEST.name)
    async def advance_access_request(self, call: AccessRequestCall) -> DecisionProgress:
        """Take the step that is due, and return when the next is. A request whose app is gone is ended."""
        return await commit_with_retries(self._store, lambda tx: self._advance_request(tx, call))

    @activity.defn(name=jobs.ADVANCE_CALL_APPROVAL.name)
    async def advance_call_approval(self, call: CallApprovalCall) -> DecisionProgress:
        """Take the step that is due, and return when the next is. A call whose agent is gone is over."""
        return await commit_with_retries(self._store, lambda tx: self._advance_call(tx, call))

    async def _advance_request(self, tx: Transaction, call: AccessRequestCall) -> DecisionProgress:
        request, now = await tx.access_requests.get(call.tenant, call.request_id), self._clock.now()
        if request is None:
            return DecisionProgress(state=AccessRequestState.ENDED)
        step = request.step(now)
        if step is not None:
            request = await self._step_of_request(tx, call, request, step)
        return DecisionProgress(state=request.state, next_s=request.seconds_to_next(now))

    async def _step_of_request(
        self, tx: Transaction, call: AccessRequestCall, request: AccessRequest, step: DecisionStep
    ) -> AccessRequest:
        if step is DecisionStep.REMIND:
            after = request.reminded(self._clock.now())
        else:
            ends = step is DecisionStep.END
            after = request.over(AccessRequestState.ENDED if ends else AccessRequestState.EXPIRED)
            if ends:
                await self._remove_permit(tx, call, request)
        saved = await tx.access_requests.replace(after, expected=request.revision)
        app = await tx.access.app(request.tenant, request.app_id)
        detail = saved.detail("" if app is None else app.name)
        await self._record(tx, call, _ACTIONS_OF_REQUESTS[step], saved.id, **detail)
        return saved

    async def _remove_permit(self, tx: Transaction, call: AccessRequestCall, request: AccessRequest) -> None:
        """Delete the permit that is over, unless an admin has given it another end since."""
        permit = await tx.access.permit(request.tenant, request.app_id, request.permit_name)
        if permit is None or permit.expires_at != request.ends_at:
            return
        await tx.access.delete_permit(permit)
        await audit.record_denies(tx, request.tenant, request.app_id, call.context, self._clock.now())
        await self._record(tx, call, AuditAction.PERMIT_DELETED, permit.id, name=permit.name)

    async def _advance_call(self, tx: Transaction, call: CallApprovalCall) -> DecisionProgress:
        approval, now = await tx.call_approvals.get(call.tenant, call.approval_id), self._clock.now()
        if approval is None:
            return DecisionProgress(state=CallApprovalState.STOPPED)
        step = approval.step(now)
        if step is not None:
            approval = await self._step_of_call(tx, call, approval, step)
        return DecisionProgress(state=approval.state, next_s=approval.seconds_to_next(now))

    async def _step_of_call(
        self, tx: Transaction, call: CallApprovalCall, approval: CallApproval, step: DecisionStep
    ) -> CallApproval:
        now = self._clock.now()
        if step is DecisionStep.REMIND:
            after = approval.reminded(now)
        elif step is DecisionStep.ESCALATE:
            after = approval.escalated(now)
        else:
            after = approval.over(CallApprovalState.EXPIRED)
        saved = await tx.call_approvals.replace(after, expected=approval.revision)
        app = await tx.access.app(approval.tenant, approval.app_id)
        sponsor = {"sponsor": app.sponsor} if app is not None and app.is_agent else {}
        detail = {**saved.detail("" if app is None else app.name), **sponsor}
        await self._record(tx, call, _ACTIONS_OF_CALLS[step], saved.id, **detail)
        if step is DecisionStep.EXPIRE:
            metrics.count(CALL_APPROVALS, saved.state)
        return saved

    async def _record(
        self,
        tx: Transaction,
        call: AccessRequestCall | CallApprovalCall,
        action: AuditAction,
        object_id: str,
        /,
        **detail: object,
    ) -> None:
        entry = AuditEntry(
            tenant=call.tenant,
            at=self._clock.now(),
            action=action,
            object=object_id,
            context=RequestContext(by=SCHEDULE, trace_id=call.context.trace_id),
            detail=detail,
            provenance=call.provenance,
        )
        await audit.append(tx, entry)


# --- recertification -------------------------------------------------------------------


class PermitReviewActivities:
    def __init__(self, store: Store, clock: Clock, unused_for: timedelta) -> None:
        self._store = store
        self._clock = clock
        self._unused_for = unused_for

    @activity.defn(name=jobs.REVIEW_PERMITS.name)
    async def review_permits(self, request: ReviewPermits) -> ReviewPermitsResult:
        """Propose each unused permit once. One that an admin keeps is proposed again as much time later."""
        result = last_heartbeat(ReviewPermitsResult) or ReviewPermitsResult()
        since = self._clock.now() - self._unused_for
        async with heartbeating(lambda: result):
            while True:
                async with self._store.read() as tx:
                    page = await unused_permits(tx, since, result.after, _PAGE_SIZE)
                if not page:
                    return result
                for permit in page:
                    propose = partial(self._propose, permit=permit)
                    proposed = await commit_with_retries(self._store, propose)
                    result = result.__replace__(
                        reviewed=result.reviewed + 1, proposed=result.proposed + proposed, after=permit.id
                    )

    async def _propose(self, tx: Transaction, permit: Permit) -> bool:
        now = self._clock.now()
        app = await tx.access.locked(permit.tenant, permit.app_id)  # of two reviews one proposes
        if app is None:
            return False
        last = await tx.access_requests.newest_removal(permit.tenant, permit.app_id, permit.name)
        if last is not None and (last.is_waiting or last.created_at > now - self._unused_for):
            return False
        request = AccessRequest(
            tenant=permit.tenant,
            id=AccessRequestId(new_id("req")),
            app_id=permit.app_id,
            kind=AccessRequestKind.REMOVAL,
            permit_name=permit.name,
            permit=shown_permit(permit),
            reason=f"It has allowed nothing for {self._unused_for.days} days.",
            requested_by=SCHEDULE,
            created_at=now,
            decide_by=now + TIME_TO_DECIDE,
        ).awaiting(now)
        await tx.access_requests.add(request)
        entry = AuditEntry(
            tenant=permit.tenant,
            at=now,
            action=AuditAction.ACCESS_REQUESTED,
            object=request.id,
            context=_CONTEXT,
            detail=request.detail(app.name),
        )
        await audit.append(tx, entry)
        await tx.outbox.add(access_request_message(request, _CONTEXT, now))
        return True
