"""Confirmations that begin or end at the connect page: `app_first`, and what wasn't confirmed in time."""

from dataclasses import replace

from evergrant_server.api.connections.consents import signal_returned
from evergrant_server.api.pages.session import ConsentSession, SubjectPages
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.confirmation import await_confirm
from evergrant_server.core.connections.consent import ConsentStatus
from evergrant_server.store import Transaction


async def undo_unconfirmed(tx: Transaction, pages: SubjectPages, session: ConsentSession) -> ConsentSession:
    """The session of a consent that wasn't confirmed in time, with its code destroyed. The worker does the
    same, unless it is away."""
    consent = session.consent
    if consent.status is not ConsentStatus.CONFIRMING:
        return session
    reopened, action = await tx.consents.reopen(consent), AuditAction.CONSENT_UNCONFIRMED
    await pages.record(tx, action, consent.tenant, consent.connection_id, consent_id=consent.id)
    return replace(session, consent=reopened)


async def request_confirm(tx: Transaction, pages: SubjectPages, session: ConsentSession) -> ConsentSession:
    """Store that the app has to confirm this browser, and make the confirm code."""
    consent, code = await_confirm(session.consent, pages.now)
    consent = await tx.consents.replace(consent, expected=consent.revision)
    await signal_returned(tx, session.connection, consent, pages.context, pages.now)
    return replace(session, consent=consent, confirm_code=code)
