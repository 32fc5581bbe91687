"""The end of a consent that its app didn't confirm."""

from temporalio import activity

from activities.support.transactions import append_audit, commit_with_retries
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.clock import Clock
from evergrant_server.core.connections.confirmation import is_confirming
from evergrant_server.core.connections.consent import Consent, ConsentStatus
from evergrant_server.core.messages import jobs
from evergrant_server.core.messages.activities import LapseConsent, LapseResult
from evergrant_server.store import Store, Transaction
from evergrant_server.telemetry import metrics


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
