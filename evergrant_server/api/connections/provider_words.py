"""What a provider said about a connection's last refusal, from the audit log, for admins."""

from datetime import datetime

from evergrant_server import audit
from evergrant_server.api.http.call import ApiCall
from evergrant_server.api.http.models import View
from evergrant_server.core.audit import AuditAction, AuditRecord
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.consent import Consent, ConsentStatus, reference_of
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import ConsentId
from evergrant_server.core.provider_words import PROVIDER_SAID
from evergrant_server.policy import Target
from evergrant_server.store import Transaction

_REFUSALS = (
    AuditAction.REFRESH_FAILED,
    AuditAction.NEEDS_REAUTH,
    AuditAction.CONSENT_FAILED,
    AuditAction.CONSENT_DENIED,
    AuditAction.CALLBACK_REFUSED,
    AuditAction.REVOCATION_FAILED,
)
_ENDED_BY = (AuditAction.GRANT_INSTALLED, AuditAction.GRANT_REFRESHED, AuditAction.REVOKED)


class ProviderSaidView(View):
    """The newest refusal in which the provider said something, else the newest refusal.

    `reference` is what the subject's page shows, where the refusal ended a consent. `unauthenticated`: the
    words came by a browser, in a callback that was refused.
    """

    at: datetime
    reason: ErrorCode | None
    reference: str | None
    status: int | None = None
    error: str | None = None
    description: str | None = None
    unauthenticated: bool = False

    @classmethod
    def of_record(cls, record: AuditRecord) -> "ProviderSaidView":
        detail = record.detail
        reason, consent = detail.get("reason") or detail.get("code"), _consent_of(record)
        return cls(
            at=record.at,
            reason=ErrorCode(reason) if reason in set(ErrorCode) else None,
            reference=reference_of(consent) if consent else None,
            **detail.get(PROVIDER_SAID, {}),
        )


async def provider_said(
    tx: Transaction, call: ApiCall, connection: Connection, consent: Consent | None = None
) -> ProviderSaidView | None:
    """What explains the connection's failure, or that of `consent`.

    None without a failure, and for a caller that is neither admin nor auditor.
    """
    if not call.may_audit(Target.of(connection)):
        return None
    since = await _failing_since(tx, connection) if consent is None else consent.created_at
    if since is None:
        return None
    actions = _REFUSALS if consent is not None else (*_REFUSALS, *_ENDED_BY)
    found: list[AuditRecord] = []
    for record in await audit.newest_records(tx, connection.tenant, connection.id, actions, since):
        if record.action in _ENDED_BY:
            break
        if consent is None or _consent_of(record) == consent.id:
            found.append(record)
    said = next((it for it in found if PROVIDER_SAID in it.detail), found[0] if found else None)
    return None if said is None else ProviderSaidView.of_record(said)


def _consent_of(record: AuditRecord) -> ConsentId | None:
    """The consent that ended with a refusal; other actions name theirs `consent_id`."""
    return record.detail.get("consent") or record.detail.get("consent_id")


async def _failing_since(tx: Transaction, connection: Connection) -> datetime | None:
    """From when on the audit log may explain a failure. It bounds the search: leases are in the log too."""
    since = [connection.last_failed_at]
    if connection.state is not LifecycleState.ACTIVE:
        since.append(connection.changed_at)
    consent = await tx.consents.newest(connection.tenant, connection.id)
    if consent is not None and consent.status is not ConsentStatus.DONE:
        since.append(consent.created_at)
    return min((it for it in since if it is not None), default=None)
