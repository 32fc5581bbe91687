"""`/connect/{link}`: GET shows the requested access, POST redirects to the provider.

GET changes nothing: link previews send GETs too.
"""

from dataclasses import dataclass, replace
from datetime import datetime

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, Response

from evergrant_server.api.connections.flows import require_flow_allowed
from evergrant_server.api.http.context import ApiContext
from evergrant_server.api.http.tracing import trace_of
from evergrant_server.api.integrations.definitions import require_ready
from evergrant_server.api.pages import oauth1
from evergrant_server.api.pages.browser import html_response
from evergrant_server.api.pages.forms import read_form
from evergrant_server.api.pages.par import push_message, wait_for_request_uri
from evergrant_server.api.pages.session import (
    SUBJECT_ACTOR,
    ConsentSession,
    SubjectPages,
    html_route,
    require_open_consent,
    subject_pages,
)
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.consent import (
    Consent,
    ConsentKind,
    ConsentStatus,
    DeviceCode,
    PushedAuthorization,
    hash_of_nonce,
    hash_state,
)
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import Endpoints
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.store import Transaction
from providers.definition.templates import integration_endpoints
from providers.requests.authorization_url import (
    asks_for_id_token,
    build_authorization_url,
    new_random_value,
)
from providers.requests.dpop import wants_dpop
from providers.requests.par import par_authorization_url, par_fields, uses_par

router = APIRouter(tags=["pages"], default_response_class=HTMLResponse)

_ATTEMPTS = 3
_MAX_REVISIONS = 100  # a click makes one to three


@router.get("/connect/{link}")
@html_route
async def show_consent(request: Request, link: str) -> Response:
    """The page that shows which app requests which access. Changes nothing."""
    pages = subject_pages(request)
    async with pages.api.store.read() as tx:
        session = await pages.session_of_link(tx, link)
        device = await tx.consents.device_code(session.consent)
    if session.consent.kind is ConsentKind.DEVICE:
        return await _device_page(request, pages, session, device)
    if _has_ended(pages, request, session):
        return await pages.outcome_response(request, session)
    _require_same_browser(pages, request, session)
    browser = pages.browsers.cookie_of(request) or pages.browsers.new_cookie()
    response = html_response(
        pages.templates.connect(
            provider=session.provider_name,
            integration=session.integration.name,
            subject=session.connection.subject,
            consent=session.consent,
            csrf=pages.browsers.csrf_token(browser, link),
        )
    )
    pages.browsers.set_cookie(response, browser)
    return response


async def _device_page(
    request: Request, pages: SubjectPages, session: ConsentSession, device: DeviceCode | None
) -> Response:
    """The page with the device code. It is not bound to a browser: it starts no attempt."""
    if session.consent.status is not ConsentStatus.CODE_RECEIVED or device is None:
        return await pages.outcome_response(request, session)
    if device.expires_at <= pages.api.clock.now():
        raise Failure(ErrorCode.CONSENT_EXPIRED, "This code has expired.")
    return html_response(
        pages.templates.device(provider=session.provider_name, consent=session.consent, device=device)
    )


@router.post("/connect/{link}")
@html_route
async def start_consent(request: Request, link: str) -> Response:
    """Bind the browser, create state and code verifier, and redirect to the provider."""
    pages = subject_pages(request)
    browser = (await read_form(request, pages.browsers, link)).browser
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return html_response(await _start_attempt(pages, request, link, browser))
        except Failure as failure:  # a double click: the browser follows the second response
            if failure.code is not ErrorCode.STORE_CONFLICT or attempt == _ATTEMPTS:
                raise
    raise AssertionError("unreachable")


@dataclass(frozen=True)
class AuthorizationAttempt:
    """A committed attempt and its authorization URL, used unless a worker pushes the request (RFC 9126)."""

    consent: Consent
    url: str
    endpoints: Endpoints
    is_pushed: bool


async def _start_attempt(pages: SubjectPages, request: Request, link: str, browser: str) -> str:
    """Commit the attempt, and return the page that redirects to the provider."""
    api, context = pages.api, trace_of(request).request_context(SUBJECT_ACTOR)
    async with api.store.write() as tx:
        session = await pages.session_of_link(tx, link)
        _require_same_browser(pages, request, session)
        if session.consent.revision > _MAX_REVISIONS:  # each click may cause a request to the provider
            raise Failure(ErrorCode.CONSENT_EXPIRED, "This link was used too often.")
        require_flow_allowed(session.connection.flow, api)
        bound = {
            "status": ConsentStatus.STARTED,
            "browser_hash": pages.browsers.hash_cookie(browser),
            "redirect_uri": api.redirect_uri(session.integration.id),
        }
        session = replace(session, consent=session.consent.model_copy(update=bound))
        if session.connection.flow is Flow.OAUTH1:
            attempt = await oauth1.save_oauth1_attempt(tx, session)
        else:
            attempt = await _save_attempt(tx, session, context, api.clock.now())
        await pages.record(
            tx,
            request,
            AuditAction.CONSENT_STARTED,
            session.consent.tenant,
            session.connection.id,
            consent_id=session.consent.id,
            scopes=list(session.consent.all_scopes),
            requested_by=session.consent.by,
        )
    if isinstance(attempt, Consent):
        url = await oauth1.oauth1_redirect_url(pages, session, attempt, context)
    else:
        url = await _authorization_url(api, session, attempt)
    return pages.templates.redirecting(provider=session.provider_name, url=url)


async def _save_attempt(
    tx: Transaction, session: ConsentSession, context: RequestContext, now: datetime
) -> AuthorizationAttempt:
    """Store a new state, code verifier and nonce; have a worker push the request where PAR is used."""
    state, spec, consent = new_random_value(), session.spec, session.consent
    assert consent.redirect_uri is not None
    verifier = None if session.connection.flow is Flow.IMPLICIT else new_random_value()
    nonce = new_random_value() if asks_for_id_token(spec, session.integration, consent.scopes) else None
    url = build_authorization_url(
        spec,
        session.integration,
        redirect_uri=consent.redirect_uri,
        state=state,
        verifier=verifier,
        scopes=consent.scopes,
        slot_scopes=consent.slot_scopes,
        target=session.connection.target,
        nonce=nonce,
        dpop_jkt=await _dpop_thumbprint(tx, session, now) if verifier is not None else None,
    )
    endpoints = integration_endpoints(spec, session.integration)
    pushed = None
    if uses_par(spec, endpoints):
        pushed = PushedAuthorization(fields=par_fields(url, _authorization_endpoint(endpoints)))
    sent = {
        "state_hash": hash_state(state),
        "nonce_hash": None if nonce is None else hash_of_nonce(nonce.reveal()),
        "issuer": endpoints.issuer,
        "token_endpoint": endpoints.token_endpoint,
    }
    started = await tx.consents.replace(
        consent.model_copy(update=sent), expected=consent.revision, verifier=verifier, request=pushed
    )
    if pushed is not None:
        await tx.outbox.add(push_message(started, context, now))
    return AuthorizationAttempt(started, url, endpoints, pushed is not None)


async def _authorization_url(api: ApiContext, session: ConsentSession, attempt: AuthorizationAttempt) -> str:
    """The URL with the `request_uri` if a worker pushed the request, else with its parameters."""
    if not attempt.is_pushed:
        return attempt.url
    api.relay.notify()
    request_uri = await wait_for_request_uri(api, attempt.consent, session.spec, attempt.endpoints)
    if request_uri is None:
        return attempt.url
    endpoint = _authorization_endpoint(attempt.endpoints)
    return par_authorization_url(session.spec, session.integration, endpoint, request_uri)


async def _dpop_thumbprint(tx: Transaction, session: ConsentSession, now: datetime) -> str | None:
    """`dpop_jkt`, the key that the code is bound to (RFC 9449 section 10); None without DPoP."""
    connection = session.connection
    grant = await tx.grants.get(connection.tenant, connection.id)
    if not wants_dpop(session.spec, session.integration, grant):
        return None
    return (await tx.proof_keys.get_or_create(connection.tenant, connection.id, now)).thumbprint


def _authorization_endpoint(endpoints: Endpoints) -> str:
    assert endpoints.authorization_endpoint is not None  # require_usable has checked it
    return endpoints.authorization_endpoint


def _has_ended(pages: SubjectPages, request: Request, session: ConsentSession) -> bool:
    """True when the consent has ended and this browser gave it."""
    ended = session.consent.status not in (ConsentStatus.OPEN, ConsentStatus.STARTED)
    return ended and pages.browsers.is_bound(request, session.consent.browser_hash)


def _require_same_browser(pages: SubjectPages, request: Request, session: ConsentSession) -> None:
    """Check that the link is open, and was not opened in another browser. Raises Failure CALLBACK_INVALID."""
    require_open_consent(session, pages.api.clock.now())
    require_ready(session.integration)
    if session.consent.status is ConsentStatus.STARTED and not pages.browsers.is_bound(
        request, session.consent.browser_hash
    ):
        raise Failure(
            ErrorCode.CALLBACK_INVALID,
            "This link was opened in another browser. Continue there, or ask for a new link.",
        )
