"""The steps of a request for access that no person takes: reminder, deadline, end of temporary access."""

from temporalio import activity

from activities.support.transactions import commit_with_retries
from evergrant_server import audit
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.clock import Clock
from evergrant_server.core.lifecycle.access_requests import (
    AccessRequest,
    AccessRequestState,
    AccessRequestStep,
)
from evergrant_server.core.messages import jobs
from evergrant_server.core.messages.access import AccessRequestCall, AccessRequestProgress
from evergrant_server.core.messages.base import SCHEDULE, RequestContext
from evergrant_server.store import Store, Transaction

_ACTIONS = {
    AccessRequestStep.REMIND: AuditAction.ACCESS_REMINDED,
    AccessRequestStep.EXPIRE: AuditAction.ACCESS_EXPIRED,
    AccessRequestStep.END: AuditAction.ACCESS_ENDED,
}


class AccessRequestActivities:
    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    @activity.defn(name=jobs.ADVANCE_ACCESS_REQUEST.name)
    async def advance_access_request(self, call: AccessRequestCall) -> AccessRequestProgress:
        """Take the step that is due, and say when the next one is. A request whose app is gone is ended."""
        return await commit_with_retries(self._store, lambda tx: self._advance(tx, call))

    async def _advance(self, tx: Transaction, call: AccessRequestCall) -> AccessRequestProgress:
        request, now = await tx.access_requests.get(call.tenant, call.request_id), self._clock.now()
        if request is None:
            return AccessRequestProgress(state=AccessRequestState.ENDED)
        step = request.step(now)
        if step is not None:
            request = await self._take(tx, call, request, step)
        wait = None if request.next_at is None else max((request.next_at - now).total_seconds(), 0.0)
        return AccessRequestProgress(state=request.state, next_s=wait)

    async def _take(
        self, tx: Transaction, call: AccessRequestCall, request: AccessRequest, step: AccessRequestStep
    ) -> AccessRequest:
        match step:
            case AccessRequestStep.REMIND:
                after = request.reminded(self._clock.now())
            case AccessRequestStep.EXPIRE:
                after = request.over(AccessRequestState.EXPIRED)
            case AccessRequestStep.END:
                after = request.over(AccessRequestState.ENDED)
                await self._remove_permit(tx, call, request)
        saved = await tx.access_requests.replace(after, expected=request.revision)
        app = await tx.access.app(request.tenant, request.app_id)
        detail = saved.detail("" if app is None else app.name)
        await self._record(tx, call, _ACTIONS[step], saved.id, **detail)
        return saved

    async def _remove_permit(self, tx: Transaction, call: AccessRequestCall, request: AccessRequest) -> None:
        """Delete the permit that is over, unless an admin has given it another end since."""
        permit = await tx.access.permit(request.tenant, request.app_id, request.permit_name)
        if permit is None or permit.expires_at != request.ends_at:
            return
        await tx.access.delete_permit(request.tenant, request.app_id, permit.name)
        now = self._clock.now()
        await audit.record_denies(tx, request.tenant, request.app_id, call.context, now)
        await self._record(tx, call, AuditAction.PERMIT_DELETED, permit.id, name=permit.name)

    async def _record(
        self,
        tx: Transaction,
        call: AccessRequestCall,
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
