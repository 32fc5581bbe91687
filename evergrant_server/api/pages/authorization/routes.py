"""`/oauth/authorize`: has the person of a request log in, asks them, and leads back to the client.

An error before the redirect URI is proven is a page, and so is one at a host that a stranger may have
registered; else it goes to the client. A browser that has to consent at a provider too comes back from there.
"""

from dataclasses import dataclass

from fastapi import APIRouter
from starlette.responses import HTMLResponse, Response

from evergrant_server.access.context import integration_spec
from evergrant_server.access.transactions import run_transaction
from evergrant_server.api.pages.authorization.answers import (
    ANSWERED,
    add_code,
    code_response,
    consent_to,
    deny,
    error_response,
    find_request,
    give_code,
    open_request,
    remember,
)
from evergrant_server.api.pages.authorization.device import user_code_of
from evergrant_server.api.pages.authorization.request import (
    Asked,
    AuthorizationRefused,
    AuthorizeQuery,
    known_client,
    leads_to_strangers,
    proves_itself,
    read_asked,
    read_client,
    read_query,
)
from evergrant_server.api.pages.authorization.session import client_page, end_session, live_subject
from evergrant_server.api.pages.authorization.upstream import (
    consent_at_provider,
    needs_provider,
    require_consentable,
)
from evergrant_server.api.pages.browser import form_of, html_response, redirect_response
from evergrant_server.api.pages.login import begin_client_login
from evergrant_server.api.pages.session import AUTHORIZE_PATH, PagesDep, SubjectPages, provider_display_name
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AuthorizationRequestId, new_id
from evergrant_server.core.oauth.clients import GatewayClient
from evergrant_server.core.oauth.redirects import where_it_leads
from evergrant_server.core.oauth.requests import (
    REQUEST_LASTS,
    SCOPES,
    AuthorizationRequest,
    RequestStatus,
    SubjectSession,
)
from evergrant_server.policy import WILDCARD
from evergrant_server.store import Transaction
from evergrant_server.telemetry import metrics
from providers.requests.authorization_url import new_random_value

router = APIRouter(tags=["pages"], default_response_class=HTMLResponse)

_PARAMETERS = ("response_type", "client_id", "redirect_uri", "code_challenge", "code_challenge_method")
_IN_QUERY = [
    {"name": name, "in": "query", "required": False, "schema": {"type": "string"}}
    for name in (*_PARAMETERS, "resource", "scope", "state")
]
_MOST_NAMED = 8  # integrations
_CODES_OF_PAGES = {"access_denied": ErrorCode.NOT_PERMITTED, "unauthorized_client": ErrorCode.CLIENTS_OFF}


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
            return await begin_client_login(pages, asked.rule, query.raw)
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
            return await begin_client_login(pages, asked.rule, begun.query.raw, as_another=True)
        raise AuthorizationRefused("access_denied", "the connection is of another person than who logged in")
    require_consentable(asked.connection)
    browser = pages.browsers.cookie_of(pages.request) or pages.browsers.new_cookie()
    request = _request_of(pages, begun, browser)
    if await _is_remembered(pages, begun, request):
        response = await _give_code_at_once(pages, request)
        if response is not None:
            return response
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
        consent = await tx.client_consents.get(request.tenant, consent_to(request, pages).id)
    return consent is not None and consent.rule == request.rule


async def _give_code_at_once(pages: SubjectPages, request: AuthorizationRequest) -> Response | None:
    """None where what the person agreed to was forgotten meanwhile."""
    text = new_random_value()

    async def write(tx: Transaction) -> bool:
        if not await tx.client_consents.used(consent_to(request, pages), pages.now):
            return False
        await add_code(tx, pages, request, text)
        return True

    if not await run_transaction(pages.api.store, write):
        return None
    metrics.count(metrics.AUTHORIZATIONS, "code")
    return code_response(pages, request, text)


# --- the page that asks the person --------------------------------------------------------------


@router.get(AUTHORIZE_PATH + "/{request_id}")
@client_page
async def show_request(pages: PagesDep, request_id: str) -> Response:
    """The page that asks the person; after a consent at the provider, the way back to the client."""
    request = await find_request(pages, request_id)
    if request.status is RequestStatus.AT_PROVIDER:
        return await _after_provider(pages, request)
    opened = await open_request(pages, request)
    async with pages.api.store.read() as tx:
        target, rights, provider = await _describe_reach(tx, pages, opened.asked, request.subject)
        user_code = await user_code_of(tx, request)
    page = pages.templates.authorize(
        client=opened.client,
        target=target,
        rights=rights,
        person=opened.session.person.name or opened.session.subject,
        leads_to=where_it_leads(request.redirect_uri) if user_code is None else None,
        user_code=user_code,
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
            if request.device_id is None:  # any program may show a code: it is asked about each time
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


async def _describe_reach(
    tx: Transaction, pages: SubjectPages, asked: Asked, subject: str
) -> tuple[str, list[str], str | None]:
    """In words for the page: the target of the request, what the client may do with it, and the provider's
    name if there is one."""
    connection = asked.connection
    if connection is None:
        return "your connections", _own_server(asked, subject), None
    integration = await tx.integrations.get(connection.tenant, connection.integration_id)
    name = connection.provider
    if integration is not None:
        spec = await integration_spec(tx, pages.api.registry, integration)
        name = provider_display_name(spec, integration)
    rights = [
        f"Use {name} as {connection.subject}: each tool and request that the app {asked.app.name} may use",
        "Go on doing so while you are away, until you or an admin ends it",
    ]
    return f"{connection.integration} at {name}", rights, name


def _own_server(asked: Asked, subject: str) -> list[str]:
    names = asked.integrations_for(subject)
    if WILDCARD in names:
        apis = "everything that you have connected"
    elif not names:
        apis = "nothing yet: an admin has to give the app a permit"
    else:
        unnamed = len(names) - _MOST_NAMED
        apis = ", ".join(names[:_MOST_NAMED]) + (f" and {unnamed} more" if unnamed > 0 else "")
    return [
        "See which of your accounts are connected",
        f"Call their APIs as you: {apis}",
        "Ask you to connect others, and for your approval of single calls",
        "Go on doing so while you are away, until you or an admin ends it",
    ]
