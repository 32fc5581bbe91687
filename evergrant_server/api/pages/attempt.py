"""One attempt of a consent: its browser goes from the connect page to the provider (RFC 6749 section 4.1.1).

With the binding `app_first` the app confirms the browser before; with `oidc` its subject logs in. A worker
pushes the authorization request where the provider takes that (RFC 9126), or requests the temporary
credentials of OAuth 1.0a (RFC 5849 section 2).
"""

from dataclasses import dataclass, replace
from datetime import datetime

from starlette.responses import Response

from evergrant_server.access.context import ApiContext
from evergrant_server.access.transactions import poll_until, run_transaction
from evergrant_server.api.connections.consents import signal_returned
from evergrant_server.api.connections.flows import require_flow_allowed
from evergrant_server.api.integrations.definitions import require_ready
from evergrant_server.api.pages.browser import html_response, redirect_response
from evergrant_server.api.pages.login import begin_consent_login
from evergrant_server.api.pages.session import ConsentSession, SubjectPages, require_open_consent
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.binding import Binding
from evergrant_server.core.connections.confirmation import await_confirm, must_be_confirmed
from evergrant_server.core.connections.consent import (
    Consent,
    ConsentStatus,
    PushedAuthorization,
    hash_state,
    reference_of,
)
from evergrant_server.core.connections.credentials import TokenPair
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.connections.id_token import hash_of_nonce
from evergrant_server.core.connections.login import must_log_in
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import Endpoints
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.integrations import PushAuthorizationRequest, RequestTemporaryCredentials
from evergrant_server.core.messages.names import pushed_authorization_workflow_id
from evergrant_server.core.outbox import OutboxKind, OutboxMessage, outbox_message
from evergrant_server.core.secret import Secret
from evergrant_server.store import Transaction
from providers.definition.templates import integration_endpoints
from providers.oauth1.flow import oauth1_authorization_url, oauth1_endpoints
from providers.requests.authorization_url import (
    account_params,
    build_authorization_url,
    new_random_value,
    sends_nonce,
)
from providers.requests.dpop import wants_dpop
from providers.requests.par import par_authorization_url, par_fields, requires_par, uses_par

_MAX_REVISIONS = 100  # a click makes one to five
_PREPARE_TIMEOUT_S = 30.0  # the subject waits; the request to the provider has a shorter limit
_PUSH_WAIT_S = 12.0
_FALLBACK_CODES = (  # not about the request: the browser can carry it unless pushing is required
    ErrorCode.PROVIDER_UNREACHABLE,
    ErrorCode.PROVIDER_ERROR,
    ErrorCode.PROVIDER_RATE_LIMITED,
    ErrorCode.REPLY_UNREADABLE,
)


@dataclass(frozen=True)
class _Departure:
    """Where a browser goes next: the issuer of its login, or the provider (without a URL: OAuth 1.0a)."""

    session: ConsentSession
    url: str | None = None
    issuer: str | None = None  # for display


async def send_away(pages: SubjectPages, link: str, browser: str) -> Response:
    """Bind the browser, create state and code verifier, and send it to the next place of its consent."""
    # after a conflict, of a double click, again: the browser follows the second response
    departure = await run_transaction(pages.api.store, lambda tx: _start_attempt(tx, pages, link, browser))
    session, url = departure.session, departure.url
    name = departure.issuer or session.provider_name
    if session.confirm_code is not None:
        pages.api.relay.notify()
        return await confirm_response(pages, session, session.confirm_code)
    if url is None:
        url = await _oauth1_redirect_url(pages, session)
    elif departure.issuer is None:
        url = await _pushed_url(pages.api, session) or url
    return html_response(pages.templates.redirecting(parties=pages.parties(session), to=name, url=url))


async def _start_attempt(tx: Transaction, pages: SubjectPages, link: str, browser: str) -> _Departure:
    """Store the attempt, or what has to come before it: the app's confirmation, the subject's login."""
    session = await pages.session_of_link(tx, link)
    require_same_browser(pages, session)
    await _require_replaceable(tx, session)
    session = await _undo_unconfirmed(tx, pages, session)
    if session.consent.revision > _MAX_REVISIONS:  # each click may cause a request to the provider
        raise Failure(ErrorCode.CONSENT_EXPIRED, "This link was used too often.")
    require_flow_allowed(session.connection.flow, pages.api)
    bound = session.consent.__replace__(
        status=ConsentStatus.STARTED,
        browser_hash=pages.browsers.hash_cookie(browser),
        redirect_uri=pages.api.redirect_uri(session.integration.id),
    )
    session = replace(session, consent=bound)
    if session.consent.binding is Binding.APP_FIRST and must_be_confirmed(session.consent):
        return _Departure(await _request_confirm(tx, pages, session))
    if must_log_in(session.consent):
        consent, url, issuer = await begin_consent_login(tx, pages, session)
        return _Departure(replace(session, consent=consent), url, issuer)
    url = None
    if session.connection.flow is Flow.OAUTH1:
        consent = await _save_oauth1_attempt(tx, session)
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
    return _Departure(replace(session, consent=consent), url)


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
        account=await _account_params(tx, session),
        nonce=nonce,
        dpop_jkt=await _dpop_thumbprint(tx, session, now) if verifier is not None else None,
    )
    endpoints = integration_endpoints(spec, session.integration)
    pushed = None
    if uses_par(spec, endpoints):
        pushed = PushedAuthorization(fields=par_fields(url, _authorization_endpoint(endpoints)))
    sent = consent.__replace__(
        state_hash=hash_state(state),
        nonce_hash=None if nonce is None else hash_of_nonce(nonce.reveal()),
        issuer=endpoints.issuer,
        token_endpoint=endpoints.token_endpoint,
    )
    started = await tx.consents.replace(sent, expected=consent.revision, verifier=verifier, request=pushed)
    if pushed is not None:
        await tx.outbox.add(_push_message(started, context, now))
    return started, url


async def _pushed_url(api: ApiContext, session: ConsentSession) -> str | None:
    """The URL with the `request_uri`, if a worker pushes the request (RFC 9126) and has done so."""
    endpoints = integration_endpoints(session.spec, session.integration)
    if not uses_par(session.spec, endpoints):
        return None
    api.relay.notify()
    request_uri = await _wait_for_request_uri(api, session, endpoints)
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


async def _require_replaceable(tx: Transaction, session: ConsentSession) -> None:
    """Raise Failure MADE_BY_ANOTHER_APP where another app's consent has come first: a worker would not
    exchange the code of this one."""
    connection = session.connection
    if connection.generation and not session.consent.may_replace_grant(
        await tx.consents.maker_of(connection)
    ):
        raise Failure(ErrorCode.MADE_BY_ANOTHER_APP, connection_id=connection.id)


def require_same_browser(pages: SubjectPages, session: ConsentSession) -> None:
    """Check that the link is open, and was not opened in another browser. Raises Failure CALLBACK_INVALID."""
    require_open_consent(session, pages.now)
    require_ready(session.integration)
    if session.consent.status is ConsentStatus.STARTED and not pages.is_bound(session.consent):
        why = "This link was opened in another browser: continue there."
        raise Failure(ErrorCode.CALLBACK_INVALID, why)


async def _account_params(tx: Transaction, session: ConsentSession) -> dict[str, str]:
    """The app's login hint; after a consent with another account also the prompt to select one."""
    consent = session.consent
    hint = (await tx.consents.account(consent)).login_hint
    mismatch = await tx.consents.last_failure(consent) == ErrorCode.ACCOUNT_MISMATCH
    spec, integration = session.spec, session.integration
    return account_params(spec, integration, consent.scopes, login_hint=hint, select_account=mismatch)


# --- what a worker does while the connect page waits (ADR 0016) ---------------------------------


def _push_message(consent: Consent, context: RequestContext, now: datetime) -> OutboxMessage:
    """Have a worker push the consent's authorization request."""
    order = PushAuthorizationRequest(
        tenant=consent.tenant,
        connection_id=consent.connection_id,
        consent_id=consent.id,
        revision=consent.revision,
        context=context,
    )
    target = pushed_authorization_workflow_id(consent.tenant, consent.id, consent.revision)
    return outbox_message(consent.tenant, OutboxKind.PUSH_AUTHORIZATION_REQUEST, target, order, now)


async def _wait_for_request_uri(api: ApiContext, session: ConsentSession, endpoints: Endpoints) -> str | None:
    """The `request_uri` of the pushed request; None if the browser may carry the request instead.

    Raises the Failure of a refused request, of any failure if the provider requires PAR, and
    CALLBACK_INVALID when a later click has replaced this attempt.
    """
    outcome = await _wait_for_push(api, session.consent)
    if outcome.request_uri is not None and outcome.expires_at is not None:
        if api.clock.now() < outcome.expires_at:
            return outcome.request_uri
        outcome = PushedAuthorization.failed(_push_timed_out("the provider's answer arrived too late"))
    failure = outcome.failure or _push_timed_out("no worker has pushed it yet")
    if requires_par(session.spec, endpoints) or failure.code not in _FALLBACK_CODES:
        ours = failure.detail if failure.code is ErrorCode.PROVIDER_UNREACHABLE else ""
        raise Failure(failure.code, ours, reference=reference_of(session.consent.id))
    return None


async def _wait_for_push(api: ApiContext, consent: Consent) -> PushedAuthorization:
    """The outcome of the push; unsettled after `_PUSH_WAIT_S`."""

    async def look() -> PushedAuthorization:
        async with api.store.read() as tx:
            current = await tx.consents.get(consent.tenant, consent.id)
            if current is None or current.state_hash != consent.state_hash:
                why = "This form was sent twice; continue in the other page."
                raise Failure(ErrorCode.CALLBACK_INVALID, why)
            return await tx.consents.pushed_request(current)

    return await poll_until(look, lambda outcome: outcome.is_answered, _PUSH_WAIT_S)


def _push_timed_out(why: str) -> Failure:
    return Failure(ErrorCode.PROVIDER_UNREACHABLE, f"The request could not be prepared: {why}. Try again.")


async def _save_oauth1_attempt(tx: Transaction, session: ConsentSession) -> Consent:
    """Store the attempt. Its state is the temporary token, which a worker will request."""
    consent, endpoints = session.consent, oauth1_endpoints(session.spec, session.integration)
    sent = consent.__replace__(issuer=None, token_endpoint=endpoints.token, state_hash=None)
    return await tx.consents.replace(sent, expected=consent.revision)


async def _oauth1_redirect_url(pages: SubjectPages, session: ConsentSession) -> str:
    """The provider's authorization URL. Raises the Failure of the request for temporary credentials."""
    api, consent = pages.api, session.consent
    order = RequestTemporaryCredentials(
        tenant=consent.tenant, consent_id=consent.id, revision=consent.revision, context=pages.context
    )
    prepared = await api.link.prepare_consent(order, timeout=_PREPARE_TIMEOUT_S)
    if prepared.failure is not None:
        raise Failure(prepared.failure, prepared.detail, retry_after=prepared.retry_after)
    async with api.store.read() as tx:
        newest = await tx.consents.get(consent.tenant, consent.id)
        if newest is None or newest.revision != consent.revision + 1:
            raise Failure(ErrorCode.STORE_CONFLICT, "The consent was started again.")
        temporary = TokenPair.from_secret(await tx.consents.verifier(newest))
    return oauth1_authorization_url(session.spec, session.integration, temporary, newest.scopes)


# --- confirmations by the app -------------------------------------------------------------------


async def _undo_unconfirmed(tx: Transaction, pages: SubjectPages, session: ConsentSession) -> ConsentSession:
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


async def _request_confirm(tx: Transaction, pages: SubjectPages, session: ConsentSession) -> ConsentSession:
    """Store that the app has to confirm this browser, and make the confirm code."""
    consent, code = await_confirm(session.consent, pages.now)
    consent = await tx.consents.replace(consent, expected=consent.revision)
    await signal_returned(tx, session.connection, consent, pages.context, pages.now)
    return replace(session, consent=consent, confirm_code=code)
