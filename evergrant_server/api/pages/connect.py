"""`/connect/{link}`: GET shows the requested access, POST redirects to the provider.

GET changes nothing: link previews send GETs too. `…/choice` takes the choice of an account.
"""

from dataclasses import replace
from datetime import datetime

from fastapi import APIRouter
from starlette.responses import HTMLResponse, Response

from evergrant_server.api.connections.commands import save_account_choice
from evergrant_server.api.connections.flows import require_flow_allowed
from evergrant_server.api.http.context import ApiContext
from evergrant_server.api.http.transactions import run_transaction
from evergrant_server.api.integrations.definitions import require_ready
from evergrant_server.api.pages.accounts import params_for_account
from evergrant_server.api.pages.browser import html_response
from evergrant_server.api.pages.confirmation import request_confirm, undo_unconfirmed
from evergrant_server.api.pages.preparation import (
    oauth1_redirect_url,
    push_message,
    save_oauth1_attempt,
    wait_for_request_uri,
)
from evergrant_server.api.pages.session import (
    GOES_ON,
    ConsentSession,
    PagesDep,
    SubjectPages,
    html_route,
    require_open_consent,
)
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.binding import Binding
from evergrant_server.core.connections.confirmation import must_be_confirmed
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.consent import (
    Consent,
    ConsentKind,
    ConsentStatus,
    PushedAuthorization,
    hash_state,
)
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.connections.grant import FollowUp
from evergrant_server.core.connections.id_token import hash_of_nonce
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import Endpoints
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.store import Transaction
from providers.definition.templates import integration_endpoints
from providers.requests.authorization_url import (
    build_authorization_url,
    new_random_value,
    sends_nonce,
)
from providers.requests.dpop import wants_dpop
from providers.requests.par import par_authorization_url, par_fields, uses_par

router = APIRouter(tags=["pages"], default_response_class=HTMLResponse)

_MAX_REVISIONS = 100  # a click makes one to three


@router.get("/connect/{link}")
@html_route
async def show_consent(pages: PagesDep, link: str) -> Response:
    """The page that shows which app requests which access. Changes nothing."""
    async with pages.api.store.read() as tx:
        session = await pages.session_of_link(tx, link)
        device = await tx.consents.device_code(session.consent)
    if session.consent.kind is ConsentKind.DEVICE:
        # not bound to a browser: it starts no attempt
        if session.consent.status is not ConsentStatus.CODE_RECEIVED or device is None:
            return await pages.outcome_response(session)
        if device.expires_at <= pages.now:
            raise Failure(ErrorCode.CONSENT_EXPIRED, "This code has expired.")
        name, consent = session.provider_name, session.consent
        return html_response(pages.templates.device(provider=name, consent=consent, device=device))
    ended = session.consent.status not in GOES_ON
    if ended and pages.is_bound(session.consent):
        return await pages.outcome_response(session)
    if (confirm := pages.confirm_page(session)) is not None:
        return confirm
    _require_same_browser(pages, session)
    browser = pages.browsers.cookie_of(pages.request) or pages.browsers.new_cookie()
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


@router.post("/connect/{link}/choice")
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


@router.post("/connect/{link}")
@html_route
async def start_consent(pages: PagesDep, link: str) -> Response:
    """Bind the browser, create state and code verifier, and redirect to the provider."""
    browser, _ = await pages.browsers.read_form(pages.request, link)
    # after a conflict, of a double click, again: the browser follows the second response
    session, url = await run_transaction(pages.api.store, lambda tx: _start_attempt(tx, pages, link, browser))
    if session.confirm_code is not None:
        pages.api.relay.notify()
        return await pages.confirm_response(session, session.confirm_code)
    if url is None:
        url = await oauth1_redirect_url(pages, session)
    else:
        url = await _pushed_url(pages.api, session) or url
    return html_response(pages.templates.redirecting(provider=session.provider_name, url=url))


async def _start_attempt(
    tx: Transaction, pages: SubjectPages, link: str, browser: str
) -> tuple[ConsentSession, str | None]:
    """Store the attempt. Returns it with its authorization URL; None for OAuth 1.0a.

    With the binding `app_first` the app confirms the browser before it leaves.
    """
    session = await pages.session_of_link(tx, link)
    _require_same_browser(pages, session)
    session = await undo_unconfirmed(tx, pages, session)
    if session.consent.revision > _MAX_REVISIONS:  # each click may cause a request to the provider
        raise Failure(ErrorCode.CONSENT_EXPIRED, "This link was used too often.")
    require_flow_allowed(session.connection.flow, pages.api)
    bound = {
        "status": ConsentStatus.STARTED,
        "browser_hash": pages.browsers.hash_cookie(browser),
        "redirect_uri": pages.api.redirect_uri(session.integration.id),
    }
    session = replace(session, consent=session.consent.model_copy(update=bound))
    if session.consent.binding is Binding.APP_FIRST and must_be_confirmed(session.consent):
        return await request_confirm(tx, pages, session), None
    url = None
    if session.connection.flow is Flow.OAUTH1:
        consent = await save_oauth1_attempt(tx, session)
    else:
        consent, url = await _save_attempt(tx, session, pages.context, pages.now)
    await pages.record(
        tx,
        AuditAction.CONSENT_STARTED,
        consent.tenant,
        session.connection.id,
        consent_id=consent.id,
        scopes=list(consent.all_scopes),
        requested_by=consent.by,
    )
    return replace(session, consent=consent), url


async def _save_attempt(
    tx: Transaction, session: ConsentSession, context: RequestContext, now: datetime
) -> tuple[Consent, str]:
    """Store a new state, code verifier and nonce; have a worker push the request where PAR is used."""
    state, spec, consent = new_random_value(), session.spec, session.consent
    assert consent.redirect_uri is not None
    verifier = None if session.connection.flow is Flow.IMPLICIT else new_random_value()
    nonce = new_random_value() if sends_nonce(spec, session.integration, consent.scopes) else None
    url = build_authorization_url(
        spec,
        session.integration,
        redirect_uri=consent.redirect_uri,
        state=state,
        verifier=verifier,
        scopes=consent.scopes,
        slot_scopes=consent.slot_scopes,
        target=session.connection.target,
        account=await params_for_account(tx, session),
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
    return started, url


async def _pushed_url(api: ApiContext, session: ConsentSession) -> str | None:
    """The URL with the `request_uri`, if a worker pushes the request (RFC 9126) and has done so."""
    endpoints = integration_endpoints(session.spec, session.integration)
    if not uses_par(session.spec, endpoints):
        return None
    api.relay.notify()
    request_uri = await wait_for_request_uri(api, session, endpoints)
    if request_uri is None:
        return None
    endpoint = _authorization_endpoint(endpoints)
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


def _require_same_browser(pages: SubjectPages, session: ConsentSession) -> None:
    """Check that the link is open, and was not opened in another browser. Raises Failure CALLBACK_INVALID."""
    require_open_consent(session, pages.now)
    require_ready(session.integration)
    if session.consent.status is ConsentStatus.STARTED and not pages.is_bound(session.consent):
        why = "This link was opened in another browser. Continue there, or ask for a new link."
        raise Failure(ErrorCode.CALLBACK_INVALID, why)
