"""`/connect/{link}`: GET shows the requested access, POST redirects to the provider.

GET changes nothing: link previews send GETs too. `…/choice` takes the choice of an account.
"""

from fastapi import APIRouter
from starlette.responses import HTMLResponse, Response

from evergrant_server.access.transactions import run_transaction
from evergrant_server.api.connections.commands import save_account_choice
from evergrant_server.api.pages.attempt import require_same_browser, send_away
from evergrant_server.api.pages.browser import form_of, html_response
from evergrant_server.api.pages.login import issuer_host
from evergrant_server.api.pages.session import GOES_ON, ConsentSession, PagesDep, SubjectPages, html_route
from evergrant_server.core.connections.binding import hash_confirm_code
from evergrant_server.core.connections.confirmation import is_confirming
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.consent import ConsentKind, ConsentStatus
from evergrant_server.core.connections.grant import FollowUp
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.store import Transaction

router = APIRouter(tags=["pages"], default_response_class=HTMLResponse)


@router.get("/connect/{link}")
@html_route
async def show_consent(pages: PagesDep, link: str) -> Response:
    """The page that shows which app requests which access. Changes nothing."""
    async with pages.api.store.read() as tx:
        session = await pages.session_of_link(tx, link)
        device = await tx.consents.device_code(session.consent)
        login = await issuer_host(tx, session)
    if session.consent.kind is ConsentKind.DEVICE:
        # not bound to a browser: it starts no attempt
        if session.consent.status is not ConsentStatus.CODE_RECEIVED or device is None:
            return await pages.outcome_response(session)
        if device.expires_at <= pages.now:
            raise Failure(ErrorCode.CONSENT_EXPIRED, "This code has expired.")
        parties, consent = pages.parties(session), session.consent
        return html_response(pages.templates.device(parties=parties, consent=consent, device=device))
    if session.consent.status not in GOES_ON and pages.is_bound(session.consent):
        return await pages.outcome_response(session)
    if (confirm := _confirm_page(pages, session)) is not None:
        return confirm
    require_same_browser(pages, session)
    browser = pages.browsers.cookie_of(pages.request) or pages.browsers.new_cookie()
    response = html_response(
        pages.templates.connect(
            parties=pages.parties(session),
            subject=session.connection.subject,
            consent=session.consent,
            login=login,
            csrf=pages.browsers.csrf_token(browser, link),
        )
    )
    pages.browsers.set_cookie(response, browser)
    return response


def _confirm_page(pages: SubjectPages, session: ConsentSession) -> Response | None:
    """The page with the confirm code, in the browser that has it, while it can be used."""
    code = pages.browsers.confirm_code_of(pages.request)
    if not is_confirming(session.consent, pages.now) or code is None:
        return None
    if hash_confirm_code(code.reveal()) != session.consent.confirm_hash:
        return None
    parties, subject = pages.parties(session), session.connection.subject
    return html_response(pages.templates.confirm(parties=parties, subject=subject, code=code))


@router.post("/connect/{link}/choice", openapi_extra=form_of("csrf", "choice"))
@html_route
async def choose_account_on_page(pages: PagesDep, link: str) -> Response:
    """The subject's choice, accepted once and only from the browser that consented."""
    choice = (await pages.browsers.read_form(pages.request, link))[1].get("choice", "")

    async def choose(tx: Transaction) -> Connection:
        session = await pages.session_of_link(tx, link)
        if session.consent.status is not ConsentStatus.DONE or not pages.is_bound(session.consent):
            raise Failure(ErrorCode.CALLBACK_INVALID, "This link was opened in another browser.")
        if session.connection.follow_up is not FollowUp.CHOOSING:
            if choice == session.connection.choice:  # a double click
                return session.connection
            raise Failure(ErrorCode.CALLBACK_INVALID, "The account was already chosen.")
        return await save_account_choice(tx, session.connection, choice, pages.context, pages.now)

    await run_transaction(pages.api.store, choose)
    pages.api.relay.notify()
    async with pages.api.store.read() as tx:
        session = await pages.session_of_link(tx, link)
    return await pages.outcome_response(session)


@router.post("/connect/{link}", openapi_extra=form_of("csrf"))
@html_route
async def start_consent(pages: PagesDep, link: str) -> Response:
    """Bind the browser, create state and code verifier, and redirect to the provider."""
    browser, _ = await pages.browsers.read_form(pages.request, link)
    async with pages.api.store.read() as tx:
        session = await pages.session_of_link(tx, link)
    if session.consent.status not in GOES_ON and pages.is_bound(session.consent):  # an old page's button
        return await pages.outcome_response(session)
    return await send_away(pages, link, browser)
