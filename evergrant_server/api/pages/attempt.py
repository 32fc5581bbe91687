"""Sends a browser from the connect page to the provider; before that to its app or issuer, if bound so."""

from dataclasses import dataclass, replace
from datetime import datetime

from starlette.responses import Response

from evergrant_server.access.context import ApiContext
from evergrant_server.access.transactions import run_transaction
from evergrant_server.api.connections.flows import require_flow_allowed
from evergrant_server.api.integrations.definitions import require_ready
from evergrant_server.api.pages.accounts import params_for_account
from evergrant_server.api.pages.browser import html_response
from evergrant_server.api.pages.confirmation import confirm_response, request_confirm, undo_unconfirmed
from evergrant_server.api.pages.login import begin_login
from evergrant_server.api.pages.preparation import (
    oauth1_redirect_url,
    push_message,
    save_oauth1_attempt,
    wait_for_request_uri,
)
from evergrant_server.api.pages.session import ConsentSession, SubjectPages, require_open_consent
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.binding import Binding
from evergrant_server.core.connections.confirmation import must_be_confirmed
from evergrant_server.core.connections.consent import Consent, ConsentStatus, PushedAuthorization, hash_state
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.connections.id_token import hash_of_nonce
from evergrant_server.core.connections.login import must_log_in
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

_MAX_REVISIONS = 100  # a click makes one to five


@dataclass(frozen=True)
class Departure:
    """Where a browser goes next: the issuer of its login, or the provider (without a URL: OAuth 1.0a)."""

    session: ConsentSession
    url: str | None = None
    issuer: str | None = None  # for display


async def send_away(pages: SubjectPages, link: str, browser: str) -> Response:
    """Bind the browser, create state and code verifier, and send it to the next place of its consent."""
    # after a conflict, of a double click, again: the browser follows the second response
    going = await run_transaction(pages.api.store, lambda tx: _start_attempt(tx, pages, link, browser))
    session, url, name = going.session, going.url, going.issuer or going.session.provider_name
    if session.confirm_code is not None:
        pages.api.relay.notify()
        return await confirm_response(pages, session, session.confirm_code)
    if url is None:
        url = await oauth1_redirect_url(pages, session)
    elif going.issuer is None:
        url = await _pushed_url(pages.api, session) or url
    return html_response(pages.templates.redirecting(who=pages.parties(session), to=name, url=url))


async def _start_attempt(tx: Transaction, pages: SubjectPages, link: str, browser: str) -> Departure:
    """Store the attempt.

    With the binding `app_first` the app confirms the browser before it leaves; with `oidc` its subject
    logs in.
    """
    session = await pages.session_of_link(tx, link)
    require_same_browser(pages, session)
    await _require_replaceable(tx, session)
    session = await undo_unconfirmed(tx, pages, session)
    if session.consent.revision > _MAX_REVISIONS:  # each click may cause a request to the provider
        raise Failure(ErrorCode.CONSENT_EXPIRED, "This link was used too often.")
    require_flow_allowed(session.connection.flow, pages.api)
    session = replace(
        session,
        consent=session.consent.__replace__(
            status=ConsentStatus.STARTED,
            browser_hash=pages.browsers.hash_cookie(browser),
            redirect_uri=pages.api.redirect_uri(session.integration.id),
        ),
    )
    if session.consent.binding is Binding.APP_FIRST and must_be_confirmed(session.consent):
        return Departure(await request_confirm(tx, pages, session))
    if must_log_in(session.consent):
        consent, url, issuer = await begin_login(tx, pages, session)
        return Departure(replace(session, consent=consent), url, issuer)
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
    return Departure(replace(session, consent=consent), url)


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
    started = await tx.consents.replace(
        consent.__replace__(
            state_hash=hash_state(state),
            nonce_hash=None if nonce is None else hash_of_nonce(nonce.reveal()),
            issuer=endpoints.issuer,
            token_endpoint=endpoints.token_endpoint,
        ),
        expected=consent.revision,
        verifier=verifier,
        request=pushed,
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
