"""The end of a consent without tokens: its deadline passed, it was denied, or its app didn't confirm it."""

from datetime import datetime

from temporalio import activity

from activities.grants import GrantServices
from activities.grants.provider_revocation import revoke_late_tokens
from activities.support.transactions import append_audit, commit_with_retries, end_consent, load_connection
from evergrant_server import audit
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.clock import Clock
from evergrant_server.core.connections.confirmation import is_confirming
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.consent import Consent, ConsentKind, ConsentStatus
from evergrant_server.core.connections.grant import Grant
from evergrant_server.core.errors import ErrorCode, Failure, FailureKind
from evergrant_server.core.lifecycle.grants import is_same_end
from evergrant_server.core.lifecycle.snapshot import grant_result_of
from evergrant_server.core.messages import jobs
from evergrant_server.core.messages.activities import (
    AnnounceExpiry,
    EndConsent,
    GrantResult,
    LapseConsent,
    LapseResult,
)
from evergrant_server.store import Store, Transaction
from evergrant_server.telemetry import metrics


class ConsentEndActivities:
    """Ends consents, unless the store holds something that the workflow doesn't know yet."""

    def __init__(self, services: GrantServices) -> None:
        self._services = services

    @activity.defn(name=jobs.END_CONSENT.name)
    async def end_consent(self, request: EndConsent) -> GrantResult | None:
        """End the consent and return None, or return what the store holds instead.

        Raises Failure REFRESH_PENDING while tokens may still arrive: Temporal runs it again.
        """
        store = self._services.store
        result = await commit_with_retries(store, lambda tx: self._end(tx, request))
        if result is None:
            await self._revoke_late_tokens(request)
        return result

    async def _end(self, tx: Transaction, request: EndConsent) -> GrantResult | None:
        now = self._services.clock.now()
        current = await load_connection(tx, request)
        if current.state is not LifecycleState.PENDING_CONSENT:
            return await self._stored_result(tx, current)
        received = await tx.consents.received_consent(request.tenant, request.connection_id)
        if received is not None and (received.kind is ConsentKind.CODE or received.came_from_browser):
            return GrantResult(state=current.state, consent_id=received.id)  # its signal is on the way
        if request.deadline is not None and current.consent_deadline > request.deadline:
            return GrantResult(state=current.state, consent_deadline=current.consent_deadline)
        await self._services.single_use.tracker.require_no_open_attempt(tx, current)
        after = current.consent_denied(now) if request.denied else current.consent_expired(now)
        await tx.connections.replace(after, expected=current.revision)
        for waiting in await tx.consents.confirming(request.tenant, request.connection_id):
            await end_consent(tx, waiting, ConsentStatus.FAILED, ErrorCode.CONSENT_EXPIRED)
        if received is not None:  # a client grant or a device code: its secrets are erased
            await end_consent(tx, received, ConsentStatus.FAILED, ErrorCode.CONSENT_EXPIRED)
        action = AuditAction.CONSENT_DENIED if request.denied else AuditAction.CONSENT_EXPIRED
        await append_audit(tx, request, action, now)
        return None

    async def _stored_result(self, tx: Transaction, current: Connection) -> GrantResult | None:
        """What the store holds of a connection whose consent has ended already."""
        if current.state.is_final:
            return None
        grant = await tx.grants.get(current.tenant, current.id)
        integration = await tx.integrations.get_unchecked(current.tenant, current.integration_id)
        if current.state is LifecycleState.REVOKING or grant is None or integration is None:
            return GrantResult(state=current.state)
        announce_days = self._services.contexts.announce_days
        return grant_result_of(current, grant, integration.refresh, announce_days)

    async def _revoke_late_tokens(self, request: EndConsent) -> None:
        """Revoke the tokens that arrived late: no workflow is left to verify them."""
        services = self._services
        async with services.store.read() as tx:
            late = await tx.late_tokens.of_connection(request.tenant, request.connection_id)
        try:
            if late:
                context = await services.contexts.load(request.tenant, request.connection_id)
                await revoke_late_tokens(services, request, context, late)
        except Failure as failure:
            if failure.kind is FailureKind.PLATFORM_UNAVAILABLE and failure.code is not ErrorCode.SEAL_BROKEN:
                raise  # the operator repairs it, and Temporal runs it again
            # without its definition no request can be made: the tokens stay sealed


class ExpiryActivities:
    """Writes the audit record; the event is made of it."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    @activity.defn(name=jobs.ANNOUNCE_EXPIRY.name)
    async def announce_expiry(self, request: AnnounceExpiry) -> None:
        """Record it, unless the store holds another grant by now or it was announced before.

        A workflow run doesn't know what the run before it has announced.
        """

        async def announce(tx: Transaction) -> None:
            current = await load_connection(tx, request)
            grant = await tx.grants.get(request.tenant, request.connection_id)
            if current.state is not LifecycleState.ACTIVE or grant is None:
                return
            if not _is_of(request, grant):
                return
            if await _is_announced(tx, request):
                return
            await append_audit(
                tx,
                request,
                AuditAction.CONNECTION_EXPIRING,
                self._clock.now(),
                days=request.days,
                ends_at=request.ends_at.isoformat(),
            )

        await commit_with_retries(self._store, announce)


def _is_of(request: AnnounceExpiry, grant: Grant) -> bool:
    """Whether the announced end is this grant's: one of its dates, or that of its silence."""
    if request.silent_since is not None:
        return is_same_end(request.silent_since, grant.obtained_at)
    ends = (grant.expires_at, grant.refresh_expires_at)
    return any(is_same_end(request.ends_at, end) for end in ends)


async def _is_announced(tx: Transaction, request: AnnounceExpiry) -> bool:
    """True when this end was announced as many days ahead, or more."""
    last = await audit.newest_record(
        tx, request.tenant, request.connection_id, AuditAction.CONNECTION_EXPIRING
    )
    if last is None or last.detail["days"] > request.days:
        return False
    return is_same_end(datetime.fromisoformat(last.detail["ends_at"]), request.ends_at)


class ConfirmationActivities:
    """Undoes what an app didn't confirm in time. An unspent code needs no revocation."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    @activity.defn(name=jobs.LAPSE_CONSENT.name)
    async def lapse_consent(self, request: LapseConsent) -> LapseResult:
        """Destroy the code and reopen the link, unless the consent was decided; or say how long to wait."""

        async def lapse(tx: Transaction) -> tuple[LapseResult, Consent | None]:
            consent, now = await tx.consents.get(request.tenant, request.consent_id), self._clock.now()
            if consent is None or consent.status is not ConsentStatus.CONFIRMING:
                return LapseResult(), None
            if is_confirming(consent, now):
                return LapseResult(confirm_by=consent.confirm_by), None
            await tx.consents.reopen(consent)
            detail = {"consent_id": consent.id, "requested_by": consent.by}
            await append_audit(tx, request, AuditAction.CONSENT_UNCONFIRMED, now, **detail)
            return LapseResult(), consent

        result, lapsed = await commit_with_retries(self._store, lapse)
        if lapsed is not None:
            metrics.count_confirmation("unconfirmed", lapsed.by)
        return result
