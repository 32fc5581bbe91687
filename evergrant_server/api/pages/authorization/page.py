"""`/oauth/authorize/{request}`: the page that asks the person, its form, and the way back from a provider."""

from fastapi import APIRouter
from starlette.responses import HTMLResponse, Response

from evergrant_server.access.transactions import run_transaction
from evergrant_server.api.pages.authorization.answers import ANSWERED, deny, give_code
from evergrant_server.api.pages.authorization.opened import find_request, open_request, remember
from evergrant_server.api.pages.authorization.parameters import AuthorizationRefused
from evergrant_server.api.pages.authorization.reach import describe_reach
from evergrant_server.api.pages.authorization.session import client_page, end_session
from evergrant_server.api.pages.authorization.upstream import consent_at_provider, needs_provider
from evergrant_server.api.pages.browser import form_of, html_response
from evergrant_server.api.pages.session import AUTHORIZE_PATH, PagesDep, SubjectPages
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.oauth.redirects import where_it_leads
from evergrant_server.core.oauth.requests import AuthorizationRequest, RequestStatus

router = APIRouter(tags=["pages"], default_response_class=HTMLResponse)


@router.get(AUTHORIZE_PATH + "/{request_id}")
@client_page
async def show_request(pages: PagesDep, request_id: str) -> Response:
    """The page that asks the person; after a consent at the provider, the way back to the client."""
    request = await find_request(pages, request_id)
    if request.status is RequestStatus.AT_PROVIDER:
        return await _after_provider(pages, request)
    opened = await open_request(pages, request)
    async with pages.api.store.read() as tx:
        what, may, provider = await describe_reach(tx, pages, opened.asked, request.subject)
    page = pages.templates.authorize(
        client=opened.client,
        what=what,
        may=may,
        person=opened.session.person.name or opened.session.subject,
        leads_to=where_it_leads(request.redirect_uri),
        then=provider if needs_provider(opened.asked.connection) else None,
        csrf=pages.browsers.csrf_token(pages.browsers.cookie_of(pages.request) or "", request.id),
    )
    return html_response(page)


@router.post(AUTHORIZE_PATH + "/{request_id}", openapi_extra=form_of("csrf", "decision"))
@client_page
async def decide_request(pages: PagesDep, request_id: str) -> Response:
    """The person's decision, once. The browser goes on to the provider if that has to be asked too."""
    browser, fields = await pages.browsers.read_form(pages.request, request_id)
    opened = await open_request(pages, await find_request(pages, request_id))
    request, asked = opened.request, opened.asked
    if request.status is not RequestStatus.OPEN:
        raise Failure(ErrorCode.CALLBACK_INVALID, ANSWERED)
    match fields.get("decision"):
        case "allow":
            await remember(pages, opened)
            if needs_provider(asked.connection):
                return await consent_at_provider(pages, request, asked.rule, asked.app, browser)
            return await give_code(pages, request, form=True)
        case "log_out":
            why = "the person who was logged in is not the one who was meant"
            answer = await deny(pages, request, AuthorizationRefused("access_denied", why), form=True)
            await run_transaction(pages.api.store, lambda tx: end_session(pages, tx, opened.session))
            return answer
        case _:
            why = "the person did not allow it"
            return await deny(pages, request, AuthorizationRefused("access_denied", why), form=True)


async def _after_provider(pages: SubjectPages, request: AuthorizationRequest) -> Response:
    """The browser is back from the provider: with a grant, or without one, which may end the connection."""
    why = "the person did not give access at the provider"
    try:
        opened = await open_request(pages, request)
    except Failure as failure:
        if failure.code is not ErrorCode.NOT_PERMITTED:
            raise
        return await deny(pages, request, AuthorizationRefused("access_denied", why))
    if needs_provider(opened.asked.connection):
        return await deny(pages, request, AuthorizationRefused("access_denied", why))
    return await give_code(pages, request)
