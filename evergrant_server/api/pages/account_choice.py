"""`POST /connect/{link}/choice`: the subject chooses the account on the connect page."""

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, Response

from evergrant_server.api.connections.account_choice import save_account_choice
from evergrant_server.api.http.tracing import trace_of
from evergrant_server.api.http.transactions import run_transaction
from evergrant_server.api.pages.forms import read_form
from evergrant_server.api.pages.session import SUBJECT_ACTOR, html_route, subject_pages
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.consent import ConsentStatus
from evergrant_server.core.connections.grant import FollowUp
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.store import Transaction

router = APIRouter(tags=["pages"], default_response_class=HTMLResponse)


router = APIRouter(tags=["pages"], default_response_class=HTMLResponse)


@router.post("/connect/{link}/choice")
@html_route
async def choose_account_on_page(request: Request, link: str) -> Response:
    """The subject's choice, accepted once and only from the browser that consented."""
    pages = subject_pages(request)
    choice = (await read_form(request, pages.browsers, link)).fields.get("choice", "")

    async def choose(tx: Transaction) -> Connection:
        session = await pages.session_of_link(tx, link)
        same_browser = pages.browsers.is_bound(request, session.consent.browser_hash)
        if session.consent.status is not ConsentStatus.DONE or not same_browser:
            raise Failure(ErrorCode.CALLBACK_INVALID, "This link was opened in another browser.")
        if session.connection.follow_up is not FollowUp.CHOOSING:
            if choice == session.connection.choice:  # a double click
                return session.connection
            raise Failure(ErrorCode.CALLBACK_INVALID, "The account was already chosen.")
        context, now = trace_of(request).request_context(SUBJECT_ACTOR), pages.api.clock.now()
        return await save_account_choice(tx, session.connection, choice, context, now)

    await run_transaction(pages.api.store, choose)
    pages.api.relay.notify()
    async with pages.api.store.read() as tx:
        session = await pages.session_of_link(tx, link)
    return await pages.outcome_response(request, session)
