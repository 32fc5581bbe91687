"""Recertification: permits that have allowed nothing for long are proposed for removal; an admin decides."""

from datetime import timedelta

from temporalio import activity

from activities.support.temporal import heartbeating
from activities.support.transactions import commit_with_retries
from evergrant_server import audit
from evergrant_server.core.access import Permit
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.clock import Clock
from evergrant_server.core.ids import AccessRequestId, new_id
from evergrant_server.core.lifecycle.access_requests import AccessRequest, AccessRequestKind, shown_permit
from evergrant_server.core.messages.access import ReviewPermits, ReviewPermitsResult
from evergrant_server.core.messages.base import SCHEDULE, RequestContext
from evergrant_server.core.messages.names import ActivityName
from evergrant_server.core.outbox import access_request_message
from evergrant_server.store import Store, Transaction
from evergrant_server.store.review.access_review import unused_permits

TIME_TO_DECIDE = timedelta(days=30)

_CONTEXT = RequestContext(by=SCHEDULE)
_PAGE_SIZE = 200


class PermitReviewActivities:
    def __init__(self, store: Store, clock: Clock, unused_for: timedelta) -> None:
        self._store = store
        self._clock = clock
        self._unused_for = unused_for

    @activity.defn(name=ActivityName.REVIEW_PERMITS)
    async def review_permits(self, request: ReviewPermits) -> ReviewPermitsResult:
        """Propose each unused permit once. One that an admin keeps is proposed again as much time later."""
        result = _last_heartbeat() or ReviewPermitsResult()
        since = self._clock.now() - self._unused_for
        async with heartbeating(lambda: result):
            while True:
                async with self._store.read() as tx:
                    page = await unused_permits(tx, since, result.after, _PAGE_SIZE)
                if not page:
                    return result
                for permit in page:
                    proposed = await commit_with_retries(
                        self._store, lambda tx, it=permit: self._propose(tx, it)
                    )
                    result = result.__replace__(
                        reviewed=result.reviewed + 1, proposed=result.proposed + proposed, after=permit.id
                    )

    async def _propose(self, tx: Transaction, permit: Permit) -> bool:
        now = self._clock.now()
        last = await tx.access_requests.newest_removal(permit.tenant, permit.app_id, permit.name)
        app = await tx.access.app(permit.tenant, permit.app_id)
        if app is None:
            return False
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
        ).with_reminder(now)
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


def _last_heartbeat() -> ReviewPermitsResult | None:
    """How far the try before came."""
    details = activity.info().heartbeat_details
    return ReviewPermitsResult.model_validate(details[0]) if details else None
