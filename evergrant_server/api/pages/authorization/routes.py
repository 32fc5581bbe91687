"""`/oauth/authorize`: checks a request, has its person log in, and leads on: to the client, or to its page.

An error before the redirect URI is proven is a page, and so is one at a host that a stranger may have
registered; else it goes to the client.
"""

from dataclasses import dataclass

from fastapi import APIRouter
from starlette.responses import HTMLResponse, Response

from evergrant_server.access.transactions import run_transaction
from evergrant_server.api.pages.authorization.answers import (
    add_code,
    code_response,
    consent_to,
    error_response,
)
from evergrant_server.api.pages.authorization.asked import Asked, read_asked
from evergrant_server.api.pages.authorization.clients import (
    known_client,
    leads_to_strangers,
    proves_itself,
    read_client,
)
from evergrant_server.api.pages.authorization.parameters import (
    AuthorizationRefused,
    AuthorizeQuery,
    read_query,
)
from evergrant_server.api.pages.authorization.session import (
    begin_subject_login,
    client_page,
    live_subject,
)
from evergrant_server.api.pages.authorization.upstream import (
    needs_provider,
    require_consentable,
)
from evergrant_server.api.pages.browser import redirect_response
from evergrant_server.api.pages.session import AUTHORIZE_PATH, PagesDep, SubjectPages
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AuthorizationRequestId, new_id
from evergrant_server.core.oauth.clients import GatewayClient
from evergrant_server.core.oauth.requests import (
    REQUEST_LASTS,
    SCOPES,
    AuthorizationRequest,
    SubjectSession,
)
from evergrant_server.store import Transaction
from evergrant_server.telemetry import metrics
from providers.requests.authorization_url import new_random_value

router = APIRouter(tags=["pages"], default_response_class=HTMLResponse)

_PARAMETERS = ("response_type", "client_id", "redirect_uri", "code_challenge", "code_challenge_method")
_IN_QUERY = [
    {"name": it, "in": "query", "required": False, "schema": {"type": "string"}}
    for it in (*_PARAMETERS, "resource", "scope", "state")
]
_CODES_OF_PAGES = {
    "access_denied": ErrorCode.NOT_PERMITTED,
    "unauthorized_client": ErrorCode.CLIENTS_OFF,
}


@dataclass(frozen=True)
class _Begun:
    """A request with its client and its person."""

    query: AuthorizeQuery
    client: GatewayClient
    asked: Asked
    session: SubjectSession


@router.get(AUTHORIZE_PATH, openapi_extra={"parameters": _IN_QUERY})
@client_page
async def authorize(pages: PagesDep) -> Response:
    """The authorization endpoint (RFC 6749 section 3.1): for OAuth clients of the gateways."""
    query = read_query(pages.request.scope["query_string"])
    client, session = await known_client(pages, query), None
    try:
        async with pages.api.store.read() as tx:
            asked = await read_asked(pages, tx, query, client)
            session = await live_subject(pages, tx, asked.rule)
        if session is None:
            return await begin_subject_login(pages, asked.rule, query.raw)
        if client is None:
            client = await read_client(pages, query)
        return await _go_on(pages, _Begun(query, client, asked, session))
    except AuthorizationRefused as refused:
        if client is None or (session is None and leads_to_strangers(client, query)):
            code = _CODES_OF_PAGES.get(refused.error, ErrorCode.INVALID_REQUEST)
            raise Failure(code, refused.sentence) from None
        return error_response(pages, query, refused)


async def _go_on(pages: SubjectPages, begun: _Begun) -> Response:
    """To the client, if the person has agreed to it before; else to the page that asks."""
    asked, session = begun.asked, begun.session
    if not asked.is_for(session.subject):
        if session.created_at + REQUEST_LASTS / 10 < pages.now:  # another login than this request's
            return await begin_subject_login(pages, asked.rule, begun.query.raw, as_another=True)
        raise AuthorizationRefused("access_denied", "the connection is of another person than who logged in")
    require_consentable(asked.connection)
    browser = pages.browsers.cookie_of(pages.request) or pages.browsers.new_cookie()
    request = _request_of(pages, begun, browser)
    if await _is_remembered(pages, begun, request):
        return await _give_code_at_once(pages, request)
    async with pages.api.store.write() as tx:
        await tx.authorization_requests.add(request)
    response = redirect_response(f"{AUTHORIZE_PATH}/{request.id}")
    pages.browsers.set_cookie(response, browser)
    return response


def _request_of(pages: SubjectPages, begun: _Begun, browser: str) -> AuthorizationRequest:
    query, asked, session, now = begun.query, begun.asked, begun.session, pages.now
    return AuthorizationRequest(
        tenant=asked.rule.tenant,
        id=AuthorizationRequestId(new_id("azr")),
        client_id=query.values["client_id"],
        app_id=asked.app.id,
        subject=asked.subject_of(session.subject),
        resource=asked.resource.url,
        connection_id=asked.resource.connection_id,
        scopes=SCOPES,  # others are ignored, and the token's answer says so (RFC 6749 section 3.3)
        rule=asked.rule.id,
        redirect_uri=query.values["redirect_uri"],
        challenge=asked.challenge,
        state=query.once("state"),
        session_id=session.id,
        browser_hash=pages.browsers.hash_cookie(browser),
        created_at=now,
        expires_at=now + REQUEST_LASTS,
    )


async def _is_remembered(pages: SubjectPages, begun: _Begun, request: AuthorizationRequest) -> bool:
    """Whether the person has agreed to this client here, by this rule, and its connection works."""
    if not proves_itself(begun.client, request.redirect_uri) or begun.query.values.get("prompt") == "consent":
        return False
    if needs_provider(begun.asked.connection):
        return False
    async with pages.api.store.read() as tx:
        found = await tx.client_consents.get(request.tenant, consent_to(request, pages).id)
    return found is not None and found.rule == request.rule


async def _give_code_at_once(pages: SubjectPages, request: AuthorizationRequest) -> Response:
    text = new_random_value()

    async def write(tx: Transaction) -> None:
        await tx.client_consents.used(consent_to(request, pages), pages.now)
        await add_code(tx, pages, request, text)

    await run_transaction(pages.api.store, write)
    metrics.count(metrics.AUTHORIZATIONS, "code")
    return code_response(pages, request, text)
