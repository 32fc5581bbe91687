"""Confirmations that begin or end at the connect page: `app_first`, and what wasn't confirmed in time."""

from dataclasses import replace

from starlette.responses import Response

from evergrant_server.api.connections.consents import signal_returned
from evergrant_server.api.pages.browser import html_response, redirect_response
from evergrant_server.api.pages.session import ConsentSession, SubjectPages
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.binding import hash_confirm_code
from evergrant_server.core.connections.confirmation import await_confirm, is_confirming
from evergrant_server.core.connections.consent import ConsentStatus
from evergrant_server.core.secret import Secret
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


async def confirm_response(pages: SubjectPages, session: ConsentSession, code: Secret) -> Response:
    """Have this browser take the confirm code to the app: by a redirect, or typed in by the subject."""
    url = await pages.app_url(session, evergrant_code=code.reveal())
    if url is not None:
        return redirect_response(url)
    async with pages.api.store.read() as tx:
        link = await tx.consents.connect_link(session.consent)
    response = redirect_response(f"/connect/{link.reveal()}")  # no provider's code in the address bar
    pages.browsers.set_confirm_code(response, code)
    return response


def confirm_page(pages: SubjectPages, session: ConsentSession) -> Response | None:
    """The page with the confirm code, in the browser that has it, while it can be used."""
    code = pages.browsers.confirm_code_of(pages.request)
    if not is_confirming(session.consent, pages.now) or code is None:
        return None
    if hash_confirm_code(code.reveal()) != session.consent.confirm_hash:
        return None
    who, subject = pages.parties(session), session.connection.subject
    return html_response(pages.templates.confirm(who=who, subject=subject, code=code))


async def request_confirm(tx: Transaction, pages: SubjectPages, session: ConsentSession) -> ConsentSession:
    """Store that the app has to confirm this browser, and make the confirm code."""
    consent, code = await_confirm(session.consent, pages.now)
    consent = await tx.consents.replace(consent, expected=consent.revision)
    await signal_returned(tx, session.connection, consent, pages.context, pages.now)
    return replace(session, consent=consent, confirm_code=code)
