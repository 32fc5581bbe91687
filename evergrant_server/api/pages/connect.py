"""`GET /connect/{link}` shows who asks for what; a POST goes on.

Link previews send GETs, so a GET changes nothing.
"""

from dataclasses import dataclass, replace
from datetime import datetime

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, Response

from evergrant_server.api.connections.create import require_ready
from evergrant_server.api.http.context import ApiContext
from evergrant_server.api.http.tracing import trace_of
from evergrant_server.api.pages import oauth1
from evergrant_server.api.pages.browser import html_response
from evergrant_server.api.pages.forms import read_form
from evergrant_server.api.pages.implicit import require_flow_allowed
from evergrant_server.api.pages.par import push_message, wait_for_request_uri
from evergrant_server.api.pages.session import (
    SUBJECT_ACTOR,
    ConsentSession,
    SubjectPages,
    html_route,
    require_open_consent,
    subject_pages,
)
from evergrant_server.core.access import Endpoints
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.consent import (
    Consent,
    ConsentKind,
    ConsentStatus,
    hash_link,
    hash_state,
)
from evergrant_server.core.connections.device_code import DeviceCode
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.connections.id_token import hash_of_nonce
from evergrant_server.core.connections.pushed_authorization import PushedAuthorization
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.store import Transaction
from providers.definition.templates import integration_endpoints
from providers.requests.authorization_url import (
    asks_for_id_token,
    build_authorization_url,
    new_nonce,
    new_state,
    new_verifier,
)
from providers.requests.dpop import wants_dpop
from providers.requests.par import par_authorization_url, par_fields, uses_par

router = APIRouter(tags=["pages"], default_response_class=HTMLResponse)

_ATTEMPTS = 3
_MAX_REVISIONS = 100  # a click makes one to three


@router.get("/connect/{link}")
@html_route
async def show_consent(request: Request, link: str) -> Response:
    """Who asks for what. Nothing is bound or started by looking."""
    subjects = subject_pages(request)
    async with subjects.parts.store.read() as tx:
        going = await subjects.load_session(tx, await tx.consents.by_link(hash_link(link)))
        device = await tx.consents.device_code(going.consent)
    if going.consent.kind is ConsentKind.DEVICE:
        return await _device_page(request, subjects, going, device)
    if _has_ended(subjects, request, going):
        return await subjects.outcome_response(request, going)
    _require_same_browser(subjects, request, going)
    browser = subjects.browsers.cookie_of(request) or subjects.browsers.new_cookie()
    html = subjects.pages.connect(
        provider=going.provider_name,
        integration=going.integration.name,
        subject=going.connection.subject,
        consent=going.consent,
        csrf=subjects.browsers.csrf_token(browser, link),
    )
    response = html_response(html)
    subjects.browsers.set_cookie(response, browser)
    return response


async def _device_page(
    request: Request, subjects: SubjectPages, going: ConsentSession, device: DeviceCode | None
) -> Response:
    """The code to type in elsewhere. Nothing is bound to this browser: there is nothing to take over."""
    if going.consent.status is not ConsentStatus.CODE_RECEIVED or device is None:
        return await subjects.outcome_response(request, going)
    if device.expires_at <= subjects.parts.clock.now():
        raise Failure(ErrorCode.CONSENT_EXPIRED, "This code has expired.")
    return html_response(
        subjects.pages.device(provider=going.provider_name, consent=going.consent, device=device)
    )


@router.post("/connect/{link}")
@html_route
async def start_consent(request: Request, link: str) -> Response:
    """Bind this browser, make a fresh state and verifier, and send it to the provider."""
    subjects = subject_pages(request)
    browser = (await read_form(request, subjects.browsers, link)).browser
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return html_response(await _start_attempt(subjects, request, link, browser))
        except Failure as failure:  # a double click: the second one wins, and the browser follows it
            if failure.code is not ErrorCode.STORE_CONFLICT or attempt == _ATTEMPTS:
                raise
    raise AssertionError("unreachable")


@dataclass(frozen=True)
class AuthorizationAttempt:
    """An attempt that is committed, and where its browser goes unless a worker gets a reference first."""

    consent: Consent
    url: str
    endpoints: Endpoints
    is_pushed: bool


async def _start_attempt(subjects: SubjectPages, request: Request, link: str, browser: str) -> str:
    """A page that leads to the provider, once the attempt it belongs to is committed."""
    parts, asked = subjects.parts, trace_of(request).request_context(SUBJECT_ACTOR)
    async with parts.store.write() as tx:
        going = await subjects.load_session(tx, await tx.consents.by_link(hash_link(link)))
        _require_same_browser(subjects, request, going)
        if going.consent.revision > _MAX_REVISIONS:  # each click may have a worker ask the provider
            raise Failure(ErrorCode.CONSENT_EXPIRED, "This link was used too often.")
        require_flow_allowed(going.connection.flow, parts)
        bound = {
            "status": ConsentStatus.STARTED,
            "browser_hash": subjects.browsers.hash_cookie(browser),
            "redirect_uri": parts.redirect_uri(going.integration.id),
        }
        going = replace(going, consent=going.consent.model_copy(update=bound))
        if going.connection.flow is Flow.OAUTH1:
            begun = await oauth1.save_oauth1_attempt(tx, going)
        else:
            begun = await _save_attempt(tx, going, asked, parts.clock.now())
        await _record_start(tx, subjects, request, going)
    if isinstance(begun, Consent):
        url = await oauth1.oauth1_redirect_url(subjects, going, begun, asked)
    else:
        url = await _authorization_url(parts, going, begun)
    return subjects.pages.redirecting(provider=going.provider_name, url=url)


async def _save_attempt(
    tx: Transaction, going: ConsentSession, asked: RequestContext, now: datetime
) -> AuthorizationAttempt:
    """A fresh state, verifier and nonce; a worker is told where the request is to be pushed."""
    state, spec, consent = new_state(), going.spec, going.consent
    assert consent.redirect_uri is not None
    verifier = None if going.connection.flow is Flow.IMPLICIT else new_verifier()
    asks = asks_for_id_token(spec, going.integration, consent.scopes)
    nonce = new_nonce() if asks else None
    url = build_authorization_url(
        spec,
        going.integration,
        redirect_uri=consent.redirect_uri,
        state=state,
        verifier=verifier,
        scopes=consent.scopes,
        slot_scopes=consent.slot_scopes,
        target=going.connection.target,
        nonce=nonce,
        dpop_jkt=await _dpop_thumbprint(tx, going, now) if verifier is not None else None,
    )
    endpoints = integration_endpoints(spec, going.integration)
    pushed = None
    if uses_par(spec, endpoints):
        pushed = PushedAuthorization(par_fields(url, _authorization_endpoint(endpoints)))
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
        await tx.outbox.add(push_message(started, asked, now))
    return AuthorizationAttempt(started, url, endpoints, pushed is not None)


async def _authorization_url(parts: ApiContext, going: ConsentSession, begun: AuthorizationAttempt) -> str:
    """With the reference that a worker got, where the request was pushed."""
    if not begun.is_pushed:
        return begun.url
    parts.relay.notify()
    reference = await wait_for_request_uri(parts, begun.consent, going.spec, begun.endpoints)
    if reference is None:
        return begun.url
    return par_authorization_url(
        going.spec, going.integration, _authorization_endpoint(begun.endpoints), reference
    )


async def _dpop_thumbprint(tx: Transaction, going: ConsentSession, now: datetime) -> str | None:
    """The key that code and tokens are to be bound to: a stolen code is then of no use to anybody else."""
    connection = going.connection
    grant = await tx.grants.get(connection.tenant, connection.id)
    if not wants_dpop(going.spec, going.integration, grant):
        return None
    return (await tx.proof_keys.get_or_create(connection.tenant, connection.id, now)).thumbprint


def _authorization_endpoint(endpoints: Endpoints) -> str:
    assert endpoints.authorization_endpoint is not None  # or there had been nothing to ask
    return endpoints.authorization_endpoint


async def _record_start(
    tx: Transaction, subjects: SubjectPages, request: Request, going: ConsentSession
) -> None:
    await subjects.record(
        tx,
        request,
        AuditAction.CONSENT_STARTED,
        going.consent.tenant,
        going.connection.id,
        consent_id=going.consent.id,
        scopes=list(going.consent.all_scopes),
        asked_by=going.consent.by,
    )


def _has_ended(subjects: SubjectPages, request: Request, going: ConsentSession) -> bool:
    """True when the browser that went through it looks at the link again."""
    ended = going.consent.status not in (ConsentStatus.OPEN, ConsentStatus.STARTED)
    return ended and subjects.browsers.is_bound(request, going.consent.browser_hash)


def _require_same_browser(subjects: SubjectPages, request: Request, going: ConsentSession) -> None:
    """The subject who starts is the one who finishes: a begun link works in its browser alone."""
    require_open_consent(going, subjects.parts.clock.now())
    require_ready(going.integration)
    if going.consent.status is ConsentStatus.STARTED and not subjects.browsers.is_bound(
        request, going.consent.browser_hash
    ):
        raise Failure(
            ErrorCode.CALLBACK_INVALID,
            "This link was opened in another browser. Finish there, or ask for a new link.",
        )
