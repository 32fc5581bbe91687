"""What a worker does about apps' access: requests, recertification, the keys of trusted issuers.

A request's reminder, deadline and end are steps that no person takes. Recertification proposes permits for
removal that have allowed nothing for long; an admin decides. The keys of issuers of workload tokens are read
by a worker because the API sends no requests (ADR 0008).
"""

import logging
from datetime import timedelta
from functools import partial

from temporalio import activity

from activities.support.temporal import heartbeating, last_heartbeat
from activities.support.transactions import commit_with_retries
from evergrant_server import audit
from evergrant_server.core.access import Permit
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.clock import Clock, seconds_since_boot
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AccessRequestId, new_id
from evergrant_server.core.lifecycle.access_requests import (
    AccessRequest,
    AccessRequestKind,
    AccessRequestState,
    AccessRequestStep,
    shown_permit,
)
from evergrant_server.core.messages import jobs
from evergrant_server.core.messages.access import (
    AccessRequestCall,
    AccessRequestProgress,
    ReviewPermits,
    ReviewPermitsResult,
)
from evergrant_server.core.messages.base import SCHEDULE, RequestContext
from evergrant_server.core.messages.maintenance import FetchIssuerKeys, IssuerKeysResult
from evergrant_server.core.outbox import access_request_message
from evergrant_server.core.workloads.issuer import IssuerKind, TrustedIssuer
from evergrant_server.egress import Egress
from evergrant_server.store import Store, Transaction
from evergrant_server.store.review.access_review import unused_permits
from evergrant_server.telemetry.alarms import report_broken_authority
from evergrant_server.telemetry.logs import LogEvent, log_event
from providers.events.keys import KeySet, fetch_bundle_keys, fetch_issuer_keys

log = logging.getLogger("evergrant.activities")

TIME_TO_DECIDE = timedelta(days=30)  # about a permit that nothing uses
_PAGE_SIZE = 200
_SCHEDULE_CONTEXT = RequestContext(by=SCHEDULE)
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
            context=_SCHEDULE_CONTEXT,
            detail=request.detail(app.name),
        )
        await audit.append(tx, entry)
        await tx.outbox.add(access_request_message(request, _SCHEDULE_CONTEXT, now))
        return True


class TrustedIssuerActivities:
    def __init__(self, store: Store, egress: Egress, clock: Clock) -> None:
        self._store = store
        self._egress = egress
        self._clock = clock

    @activity.defn(name=jobs.FETCH_ISSUER_KEYS.name)
    async def fetch_keys(self, request: FetchIssuerKeys) -> IssuerKeysResult:
        """Store the keys that the issuer publishes now. If they can't be read, the old ones stay."""
        async with self._store.read() as tx:
            seen = await tx.trusted_issuers.get(request.tenant, request.issuer_id)
        if seen is None:
            return IssuerKeysResult(problem="the issuer is gone")
        try:
            published = await self._fetch(seen)
            fetched = IssuerKeysResult(keys=len(published.keys))
        except Failure as failure:
            published = None
            fetched = IssuerKeysResult(problem=failure.detail)
            log_event(
                log,
                logging.WARNING,
                LogEvent.ISSUER_KEYS_UNREAD,
                failure.detail,
                code=failure.code,
                object=seen.id,
            )

        async def store(tx: Transaction) -> None:
            current = await tx.trusted_issuers.get(request.tenant, request.issuer_id)
            if current is None or current.jwks_uri != seen.jwks_uri:
                return  # changed meanwhile, which started another reading
            now = self._clock.now()
            after = (
                current.with_keys(published.keys, now, published.max_age)
                if published is not None
                else current.with_problem(fetched.problem or "", now)
            )
            await tx.trusted_issuers.put(after, expected=current.revision)

        await commit_with_retries(self._store, store)
        return fetched

    async def refresh_due(self, limit_s: float) -> None:
        """Read the keys that are due, for about `limit_s` seconds. The next pass goes on with the others."""
        ends = seconds_since_boot() + limit_s
        async with self._store.read() as tx:
            due = await tx.trusted_issuers.with_due_keys(self._clock.now())
        for issuer in due:
            activity.heartbeat()
            request = FetchIssuerKeys(tenant=issuer.tenant, issuer_id=issuer.id, context=_SCHEDULE_CONTEXT)
            try:
                await self.fetch_keys(request)
            except Failure as failure:
                if failure.code is not ErrorCode.AUTHORITY_BROKEN:
                    raise
                report_broken_authority(failure)  # and on to the next one
            if seconds_since_boot() >= ends:
                return

    async def _fetch(self, issuer: TrustedIssuer) -> KeySet:
        if issuer.kind is IssuerKind.SPIFFE:
            assert issuer.jwks_uri is not None  # a trust domain is put with its bundle
            return await fetch_bundle_keys(self._egress, issuer.jwks_uri)
        return await fetch_issuer_keys(self._egress, issuer.issuer, issuer.jwks_uri)
