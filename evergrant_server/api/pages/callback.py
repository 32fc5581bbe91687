"""`/oauth/callback/{integration}`: the redirect URI (RFC 6749 section 4.1.2).

The query is untrusted: its state must be known, unused, unexpired, and of this integration
and this browser.
"""

import logging
from dataclasses import replace
from urllib.parse import urlencode

from fastapi import APIRouter
from starlette.responses import HTMLResponse, Response

from evergrant_server.access.context import integration_spec
from evergrant_server.api.connections.flows import require_flow_allowed
from evergrant_server.api.pages.attempt import confirm_response, send_away
from evergrant_server.api.pages.browser import form_of, html_response, redirect_response
from evergrant_server.api.pages.callback_outcome import (
    CallbackJudge,
    CallbackUsed,
    Query,
    connect_path,
    judge_code_callback,
    load_bound_session,
    parse_integration_id,
    parse_query,
    record_refusal,
    require_same_endpoints,
    save_outcome,
    verify_signature,
    wait_for_grant,
)
from evergrant_server.api.pages.login import find_login, verify_consent_login
from evergrant_server.api.pages.people import finish_person_login
from evergrant_server.api.pages.session import (
    ConsentSession,
    PagesDep,
    SubjectPages,
    html_route,
    provider_display_name,
)
from evergrant_server.console.pages import FRAGMENT_SCRIPT_HASH
from evergrant_server.core.connections.consent import Consent, ConsentStatus, hash_state
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.connections.grant import FollowUp
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import IntegrationId
from evergrant_server.core.integrations import Integration
from evergrant_server.core.model import CheckedModel
from evergrant_server.core.people.logins import PersonLogin
from evergrant_server.telemetry import metrics
from evergrant_server.telemetry.logs import LogEvent, log_event
from providers.definition.schema import ProviderSpec
from providers.definition.templates import checked_params, fill_template
from providers.oauth1 import flow
from providers.requests.callback import ACCESS_TOKEN_PARAM, Callback, read_fragment
from providers.requests.callback_parameters import callback_words, state_in

router = APIRouter(tags=["pages"], default_response_class=HTMLResponse)
fragment_router = APIRouter(tags=["pages"])

_FORM = "application/x-www-form-urlencoded"
_PARAMETERS = ("state", "code", "iss", "error", "error_description")  # providers send others as well
_OPTIONAL = {"in": "query", "required": False, "schema": {"type": "string"}}
_IN_QUERY = [{"name": name, **_OPTIONAL} for name in _PARAMETERS]


@router.post("/oauth/callback/{integration_id}", openapi_extra=form_of(*_PARAMETERS))
@html_route
async def callback_by_post(pages: PagesDep, integration_id: str) -> Response:
    """`response_mode=form_post`: redirects to GET, because browsers send no Lax cookie with this POST."""
    query = parse_query(await pages.request.body())
    if any(name == ACCESS_TOKEN_PARAM for name, _ in query):
        # a token must not get into a URL
        raise Failure(ErrorCode.CALLBACK_INVALID, "The callback has a token where a code is expected.")
    return redirect_response(f"/oauth/callback/{parse_integration_id(integration_id)}?{urlencode(query)}")


@router.get("/oauth/callback/{integration_id}", openapi_extra={"parameters": _IN_QUERY})
@html_route
async def callback_by_get(pages: PagesDep, integration_id: str) -> Response:
    """Store the code, and show the outcome of its exchange or have the app confirm the subject first.

    The callback of the subject's login sends the browser on to the provider, that of a person who
    administers into a session.
    """
    id, raw = parse_integration_id(integration_id), pages.request.scope["query_string"]
    if not raw and (fragment := await _fragment_page(pages, id)) is not None:
        return fragment
    if (install := await _install_page(pages, id, raw)) is not None:
        return install
    login = await find_login(pages, raw)
    if isinstance(login, PersonLogin):
        return await finish_person_login(pages, integration_id=id, login=login, raw=raw)
    try:
        if login is not None:
            link = await verify_consent_login(pages, id, login, raw)
            return await send_away(pages, link, pages.browsers.cookie_of(pages.request) or "")
        accepted = await _accept_callback(pages, id, raw, judge_code_callback)
    except CallbackUsed as used:  # reloaded, or sent again from the provider's page
        return redirect_response(await connect_path(pages, used.session))
    if accepted.confirm_code is not None:
        pages.api.relay.notify()
        return await confirm_response(pages, accepted, accepted.confirm_code)
    session = await wait_for_grant(pages, accepted)
    ended = session.consent.status in (ConsentStatus.DONE, ConsentStatus.DENIED)
    if ended and session.connection.follow_up is not FollowUp.CHOOSING and session.consent.return_to:
        return await pages.outcome_response(session)
    return redirect_response(await connect_path(pages, session))


async def _accept_callback(
    pages: SubjectPages, integration_id: IntegrationId, raw: bytes, judge: CallbackJudge
) -> ConsentSession:
    """Check the callback and store its code, tokens or error. Records a refusal once the state is known.

    A callback of the bound browser that fails its checks ends the attempt. One with a wrong signature
    doesn't: it is not the provider's, whose own callback may still follow.
    """
    consent: Consent | None = None
    session: ConsentSession | None = None
    query: Query = []
    verified = False
    try:
        async with pages.api.store.read() as tx:
            integration = await tx.integrations.find_in_any_tenant(integration_id)
            query = parse_query(raw)
            state = flow.temporary_token_in(query) or state_in(query)
            consent = await tx.consents.by_state(hash_state(state))
            session = await load_bound_session(pages, tx, consent, integration)
        await verify_signature(pages, session, query)
        verified = True
        callback, session = judge(pages, session, query)
    except Failure as failure:
        names = session.spec.callback_error_params if session is not None else ()
        words = callback_words(query, names, unauthenticated=True)
        await record_refusal(pages, consent, failure, end=verified, words=words)
        raise
    try:
        return await save_outcome(pages, session, callback)
    except Failure as failure:
        if failure.code is not ErrorCode.STORE_CONFLICT:
            raise
        used = CallbackUsed(session)
        await record_refusal(pages, consent, used)
        raise used from None


# --- the implicit flow (RFC 6749 section 4.2), which a setting of the operator turns on --------


async def _fragment_page(pages: SubjectPages, integration_id: IntegrationId) -> Response | None:
    """The page that posts the fragment, which browsers don't send; None for other flows.

    Raises Failure CALLBACK_INVALID if the operator doesn't allow the flow (RFC 9700 section 2.1.2).
    """
    async with pages.api.store.read() as tx:
        integration = await tx.integrations.find_in_any_tenant(integration_id)
        if integration is None:
            return None
        spec = await integration_spec(tx, pages.api.registry, integration)
    if Flow.IMPLICIT.value not in spec.auth_modes:
        return None
    try:
        require_flow_allowed(Flow.IMPLICIT, pages.api, ErrorCode.CALLBACK_INVALID)
    except Failure as failure:
        await record_refusal(pages, None, failure)
        raise
    page = pages.templates.fragment(provider=provider_display_name(spec, integration))
    return html_response(page, script=FRAGMENT_SCRIPT_HASH)


class FragmentAccepted(CheckedModel):
    """The path that the page loads next."""

    next: str


@fragment_router.post(
    "/oauth/callback/{integration_id}/fragment", openapi_extra=form_of("state", "access_token", "error")
)
async def accept_fragment(pages: PagesDep, integration_id: str) -> FragmentAccepted:
    """Store the token with its consent, wait for a worker to install it, and return the next path."""
    # the page posts the fragment (section 4.2.2) as a body: URLs end up in logs and browser histories
    id, headers = parse_integration_id(integration_id), pages.request.headers
    try:
        require_flow_allowed(Flow.IMPLICIT, pages.api, ErrorCode.CALLBACK_INVALID)
        if headers.get("content-type", "").partition(";")[0].strip().lower() != _FORM:
            raise Failure(ErrorCode.CALLBACK_INVALID, "Only the callback page may send a fragment.")
    except Failure as failure:
        await record_refusal(pages, None, failure)  # the body with its state wasn't read
        raise
    try:
        session = await _accept_callback(pages, id, await pages.request.body(), _judge_fragment)
    except CallbackUsed as used:
        return FragmentAccepted(next=await connect_path(pages, used.session))
    return FragmentAccepted(next=await connect_path(pages, await wait_for_grant(pages, session)))


def _judge_fragment(
    pages: SubjectPages, session: ConsentSession, fragment: Query
) -> tuple[Callback, ConsentSession]:
    """The parsed fragment. Raises Failure CALLBACK_INVALID, ID_TOKEN_REFUSED, REPLY_UNREADABLE."""
    if session.connection.flow is not Flow.IMPLICIT:
        raise Failure(ErrorCode.CALLBACK_INVALID, "This attempt requested a code, not a token.")
    endpoints = require_same_endpoints(session)
    callback = read_fragment(
        fragment,
        expected_issuer=session.consent.issuer,
        iss_required=endpoints.iss_in_callback,
        spec=session.spec,
        params=session.integration.params,
        requested=session.consent.scopes,
        nonce_hash=session.consent.nonce_hash,
        now=pages.now,
    )
    return callback, replace(session, consent=session.consent.__replace__(facts=callback.metadata))


log = logging.getLogger("evergrant.api")


# --- installs that begin at the provider (ADR 0032) ---------------------------------------------


async def _install_page(pages: SubjectPages, integration_id: IntegrationId, raw: bytes) -> Response | None:
    """The page that says where our own flow begins; None for a callback with a state, or another flow.

    The sender of a browser chooses its code (RFC 6749 section 10.12), so it is neither stored nor
    exchanged, and the page depends on nothing but the integration.
    """
    try:
        if any(name == "state" for name, _ in parse_query(raw)):
            return None
    except Failure:  # the callback's own checks refuse and count it
        return None
    async with pages.api.store.read() as tx:
        integration = await tx.integrations.find_in_any_tenant(integration_id)
        if integration is None:
            return None
        await tx.tenants.require_enabled(integration.tenant)
        spec = await integration_spec(tx, pages.api.registry, integration)
    if spec.flow != "install":
        return None
    metrics.count(metrics.CALLBACKS_REFUSED, "begun_at_provider")
    log_event(log, logging.INFO, LogEvent.CALLBACK_REFUSED, "it began at the provider, without a state")
    name = provider_display_name(spec, integration)
    page = pages.templates.install(provider=name, start_url=_start_url(spec, integration))
    return html_response(page, framed=True)


def _start_url(spec: ProviderSpec, integration: Integration) -> str | None:
    """The app's page that begins our own flow, if the integration names one."""
    if spec.install_start_url is None:
        return None
    try:
        return fill_template(spec.install_start_url, checked_params(spec, integration.params), spec)
    except Failure:
        return None
