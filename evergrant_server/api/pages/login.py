"""Logins at the tenant's OpenID Connect issuer, each for a purpose.

- The subject of a consent with `binding: oidc` logs in before its browser goes to the provider.
- A person who administers logs in for a browser session, or for `evergrant login` (LoginPurpose).
- A person who uses an OAuth client logs in for a subject session.

All of them go the same way. The API sends state, nonce and an S256 challenge to the issuer that was pinned
with the rule, from one browser; it checks the callback against these and stores the code; a worker exchanges
it (ADR 0008) and writes who logged in, for which the browser waits.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from starlette.responses import Response

from evergrant_server.access.context import integration_spec
from evergrant_server.access.transactions import run_transaction
from evergrant_server.api.pages.browser import html_response, redirect_response
from evergrant_server.api.pages.callback_outcome import (
    load_bound_session,
    outcome_of,
    parse_query,
    record_refusal,
    require_same_token_endpoint,
)
from evergrant_server.api.pages.session import ConsentSession, SubjectPages, issuer_name
from evergrant_server.api.people.sessions import LOGIN_OVER
from evergrant_server.core.connections.consent import Consent, hash_state, reference_of
from evergrant_server.core.connections.id_token import hash_of_nonce
from evergrant_server.core.connections.login import must_log_in
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import IntegrationId, PersonLoginId, Tenant, new_id
from evergrant_server.core.integrations import Integration, require_pinned_login
from evergrant_server.core.messages.integrations import LoginResult, VerifyLogin, VerifyPerson
from evergrant_server.core.messages.jobs import VERIFY_LOGIN, VERIFY_PERSON
from evergrant_server.core.oauth.client_login import ClientLogin
from evergrant_server.core.people.logins import (
    LOGIN_LASTS,
    LoginPurpose,
    LoginStart,
    LoginStatus,
    PersonLogin,
)
from evergrant_server.core.people.roles import AdminLogin
from evergrant_server.core.people.sessions import STEP_UP_LASTS
from evergrant_server.core.secret import Secret
from evergrant_server.store import Transaction
from evergrant_server.telemetry import metrics
from evergrant_server.telemetry.traces import trace_of
from providers.definition.templates import integration_endpoints
from providers.requests.authorization_url import build_authorization_url, new_random_value
from providers.requests.callback import Callback, read_callback
from providers.requests.callback_parameters import callback_words, state_in

_LOGIN_TIMEOUT_S = 30.0  # the browser waits; each request to the issuer has a shorter limit
_BY = "person"  # until the worker has found out which
_CLIENTS_OFF = "No app is designated for OAuth clients here. An admin does it with: evergrant clients login."

Stored = TypeVar("Stored", Consent, PersonLogin)


# --- to the issuer and back, for every purpose ---------------------------------------------------


class _LoginRequest(NamedTuple):
    """An authentication request (OpenID Connect Core 1.0 section 3.1.2.1), and what the login's row keeps."""

    url: str
    verifier: Secret
    kept: dict[str, Any]


async def _login_request(
    tx: Transaction,
    pages: SubjectPages,
    integration: Integration,
    scopes: tuple[str, ...],
    parameters: Mapping[str, str] | None = None,
) -> _LoginRequest:
    """A new state, code verifier and nonce, for the issuer of our client `integration`.

    `integration` has the issuer that was pinned with the rule: `require_pinned_login` has checked it.
    """
    spec = await integration_spec(tx, pages.api.registry, integration)
    state, verifier, nonce = new_random_value(), new_random_value(), new_random_value()
    redirect_uri = pages.api.redirect_uri(integration.id)
    url = build_authorization_url(
        spec.__replace__(offline_scope=None),  # no token of a login is kept
        integration,
        redirect_uri=redirect_uri,
        state=state,
        verifier=verifier,
        scopes=scopes,
        nonce=nonce,
        account=parameters or {},
    )
    kept = {
        "state_hash": hash_state(state),
        "nonce_hash": hash_of_nonce(nonce.reveal()),
        "redirect_uri": redirect_uri,
        "issuer": integration.issuer,
        "token_endpoint": integration_endpoints(spec, integration).token_endpoint,
    }
    return _LoginRequest(url, verifier, kept)


async def find_login(pages: SubjectPages, raw: bytes) -> PersonLogin | Consent | None:
    """The login whose callback this is: a person's, or that of a consent's subject. None for a provider's
    callback, and for an unknown state."""
    try:
        state_hash = hash_state(state_in(parse_query(raw)))
    except Failure:
        return None
    async with pages.api.store.read() as tx:
        login = await tx.person_logins.by_state(state_hash)
        if login is not None:
            return login
        consent = await tx.consents.by_state(state_hash)
    return consent if consent is not None and must_log_in(consent) else None


async def _read_callback(
    tx: Transaction, pages: SubjectPages, integration: Integration, login: Consent | PersonLogin, raw: bytes
) -> Callback:
    """The issuer's callback, which brings no scopes of a grant.

    Raises Failure CALLBACK_INVALID, for a missing or wrong `iss` too (RFC 9207 section 2.4).
    """
    spec = await integration_spec(tx, pages.api.registry, integration)
    return read_callback(
        parse_query(raw),
        expected_issuer=login.issuer,
        iss_required=integration_endpoints(spec, integration).iss_in_callback,
        spec=spec,
        params=integration.params,
        requested=(),
    )


async def _store_code(pages: SubjectPages, store: Callable[[Transaction], Awaitable[Stored]]) -> Stored:
    """The login's row after `store`, which uses its state up. Raises Failure CALLBACK_INVALID when a parallel
    callback was first."""
    try:
        async with pages.api.store.write() as tx:
            return await store(tx)
    except Failure as failure:
        if failure.code is not ErrorCode.STORE_CONFLICT:
            raise
    raise Failure(ErrorCode.CALLBACK_INVALID, "This callback was already used.")


def _failure_of(result: LoginResult) -> Failure | None:
    """Why the worker refused the login; None for a verified one."""
    if result.failure is None:
        return None
    return Failure(result.failure, result.detail, retry_after=result.retry_after)


# --- the subject of a consent (`binding: oidc`) -------------------------------------------------


async def issuer_host(tx: Transaction, session: ConsentSession) -> str | None:
    """The host at which the subject has to log in first; None if that isn't needed, or not possible."""
    rule = session.integration.login
    if rule is None or not must_log_in(session.consent):
        return None
    integration = await tx.integrations.by_name(session.consent.tenant, rule.integration)
    return None if integration is None else issuer_name(integration)


async def begin_consent_login(
    tx: Transaction, pages: SubjectPages, session: ConsentSession
) -> tuple[Consent, str, str]:
    """Store the login with its consent. Returns the consent, the login's URL and its issuer's host.

    Raises Failure CLIENT_REJECTED with the repair when no subject can log in.
    """
    rule, consent = session.integration.login, session.consent
    named = None if rule is None else await tx.integrations.by_name(consent.tenant, rule.integration)
    integration = require_pinned_login(rule, named)
    assert rule is not None
    request = await _login_request(tx, pages, integration, rule.scopes)
    consent = await tx.consents.replace(
        consent.__replace__(**request.kept), expected=consent.revision, verifier=request.verifier
    )
    return consent, request.url, issuer_name(integration)


async def verify_consent_login(
    pages: SubjectPages, integration_id: IntegrationId, consent: Consent, raw: bytes
) -> str:
    """Have a worker compare who logged in. Returns the connect link, for the browser to go on with.

    A callback of the bound browser that fails its checks ends the attempt; an issuer's error doesn't. Raises
    Failure SUBJECT_MISMATCH for another person, and those of the worker.
    """
    code, link = await _checked_code(pages, integration_id, consent, raw)
    used = consent.__replace__(state_hash=None)
    try:
        waiting = await _store_code(
            pages, lambda tx: tx.consents.replace(used, expected=consent.revision, code=code)
        )
    except Failure as failure:
        if failure.code is ErrorCode.CALLBACK_INVALID:
            await record_refusal(pages, consent, failure)
        raise
    order = VerifyLogin(
        tenant=consent.tenant, consent_id=consent.id, revision=waiting.revision, context=pages.context
    )
    failure = _failure_of(await pages.api.link.run_job(VERIFY_LOGIN, order, timeout=_LOGIN_TIMEOUT_S))
    if failure is not None:
        failure.context["reference"] = reference_of(consent.id)
        raise failure
    return link.reveal()


async def _checked_code(
    pages: SubjectPages, integration_id: IntegrationId, consent: Consent, raw: bytes
) -> tuple[Secret, Secret]:
    """The login's authorization code, and the consent's connect link. Records a refusal."""
    ends, words = False, None
    try:
        async with pages.api.store.read() as tx:
            integration = await tx.integrations.find_in_any_tenant(integration_id)
            await load_bound_session(pages, tx, consent, integration, login=True)
            assert integration is not None  # `load_bound_session` has checked it
            ends, words = True, callback_words(parse_query(raw), unauthenticated=True)
            spec = await integration_spec(tx, pages.api.registry, integration)
            require_same_token_endpoint(consent, integration_endpoints(spec, integration).token_endpoint)
            callback = await _read_callback(tx, pages, integration, consent, raw)
            link = await tx.consents.connect_link(consent)
        if callback.code is None:
            ends, words = False, callback.said  # the attempt goes on
            raise _not_logged_in(callback, integration)
    except Failure as failure:
        await record_refusal(pages, consent, failure, end=ends, words=words)
        raise
    return callback.code, link


def _not_logged_in(callback: Callback, integration: Integration) -> Failure:
    code = ErrorCode.CONSENT_REQUIRED  # the login was denied, not the consent
    if not callback.denied:
        code = outcome_of(callback)[1] or ErrorCode.PROVIDER_ERROR
    why = callback.error or "access_denied"
    return Failure(code, f"You were not logged in at {issuer_name(integration)}: it answered {why}.")


# --- a person who administers, or uses an OAuth client ------------------------------------------


async def admins_issuer(tx: Transaction, tenant: Tenant) -> tuple[AdminLogin, Integration]:
    """The tenant's rule for people who administer, and where they log in.

    Raises Failure NOT_FOUND, CLIENT_REJECTED, TENANT_DISABLED.
    """
    rule = await tx.admin_logins.of_tenant(tenant)
    if rule is None:
        why = "No people log in here: an admin sets where they do with PUT /v1/admin-login."
        raise Failure(ErrorCode.NOT_FOUND, why)
    await tx.tenants.require_enabled(tenant)
    return rule, rule.issuer_integration(await tx.integrations.by_name(tenant, rule.integration))


async def clients_issuer(tx: Transaction, tenant: Tenant) -> tuple[ClientLogin, Integration]:
    """The tenant's rule for OAuth clients, and where the persons who use them log in.

    Raises Failure CLIENTS_OFF, TENANT_DISABLED, CLIENT_REJECTED, AUTHORITY_BROKEN.
    """
    await tx.tenants.require_enabled(tenant)
    rule = await tx.client_logins.of_tenant(tenant)
    if rule is None:
        raise Failure(ErrorCode.CLIENTS_OFF, _CLIENTS_OFF)
    return rule, rule.issuer_integration(await tx.integrations.by_name(tenant, rule.integration))


async def begin_admin_login(pages: SubjectPages, start: LoginStart, browser: str) -> tuple[str, str]:
    """Store the login of a person who administers. Returns its URL, and its issuer's host."""
    await pages.api.limits.count_login(pages.request.scope)
    max_age = {"max_age": f"{STEP_UP_LASTS.total_seconds():.0f}"} if start.step_up else None
    async with pages.api.store.write() as tx:
        rule, integration = await admins_issuer(tx, start.tenant)
        request = await _login_request(tx, pages, integration, ("openid", *rule.scopes), max_age)
        purpose = {"step_up": start.step_up, "command": start.command}
        await _add_login(tx, pages, rule, integration, browser, request, **purpose)
    return request.url, issuer_name(integration)


async def begin_client_login(
    pages: SubjectPages, rule: ClientLogin, query: str, *, as_another: bool = False, form: bool = False
) -> Response:
    """Send the browser of a person who uses an OAuth client to the issuer; it comes back to the authorization
    request with this query.

    `as_another`: the issuer asks who it is, even if it knows the browser (OpenID Connect Core 1.0 section
    3.1.2.1). `form`: it answers a form, by a page: our policy for forms would apply to every hop of a
    redirect.
    """
    await pages.api.limits.count_login(pages.request.scope)
    browser = pages.browsers.cookie_of(pages.request) or pages.browsers.new_cookie()
    prompt = {"prompt": "login"} if as_another else None
    async with pages.api.store.write() as tx:
        _, integration = await clients_issuer(tx, rule.tenant)
        request = await _login_request(tx, pages, integration, rule.login.scopes, prompt)
        await _add_login(tx, pages, rule, integration, browser, request, authorize=query)
    response = redirect_response(request.url)
    if form:
        to = issuer_name(integration)
        response = html_response(pages.templates.redirecting(parties=None, to=to, url=request.url))
    pages.browsers.set_cookie(response, browser)
    return response


async def _add_login(
    tx: Transaction,
    pages: SubjectPages,
    rule: AdminLogin | ClientLogin,
    integration: Integration,
    browser: str,
    request: _LoginRequest,
    **purpose: Any,
) -> None:
    login = PersonLogin(
        tenant=rule.tenant,
        id=PersonLoginId(new_id("pln")),
        rule=rule.id,
        integration_id=integration.id,
        browser_hash=pages.browsers.hash_cookie(browser),
        created_at=pages.now,
        expires_at=pages.now + LOGIN_LASTS,
        **request.kept,
        **purpose,
    )
    await tx.person_logins.add(login, request.verifier)


async def verify_person_login(
    pages: SubjectPages, integration_id: IntegrationId, login: PersonLogin, raw: bytes
) -> None:
    """Have a worker find out who logged in. Raises Failure CALLBACK_INVALID, and those of the worker.

    A callback of the bound browser that fails its checks ends the login, and so does the issuer's error.
    """
    bound = pages.is_bound_to(login.browser_hash)
    if login.integration_id != integration_id or not bound:
        metrics.count(metrics.CALLBACKS_REFUSED, "unknown_state")
        raise Failure(ErrorCode.CALLBACK_INVALID, "The state is not known in this browser.")
    try:
        code = await _code_of(pages, login, raw)
        used = login.__replace__(state_hash=None, status=LoginStatus.CODE_RECEIVED)
        waiting = await _store_code(
            pages, lambda tx: tx.person_logins.code_received(used, code, expected=login.revision)
        )
    except Failure as failure:
        metrics.count(metrics.CALLBACKS_REFUSED, failure.code)
        raise
    context = trace_of(pages.request).request_context(_BY)
    order = VerifyPerson(tenant=login.tenant, login_id=login.id, revision=waiting.revision, context=context)
    failure = _failure_of(await pages.api.link.run_job(VERIFY_PERSON, order, timeout=_LOGIN_TIMEOUT_S))
    if failure is not None:
        raise failure


async def _code_of(pages: SubjectPages, login: PersonLogin, raw: bytes) -> Secret:
    """The authorization code. Raises Failure CALLBACK_INVALID, also after an error of the issuer."""
    if login.status is not LoginStatus.STARTED or login.expires_at <= pages.now:
        raise Failure(ErrorCode.CALLBACK_INVALID, LOGIN_OVER)
    issuer_of = clients_issuer if login.purpose is LoginPurpose.CLIENT else admins_issuer
    try:
        async with pages.api.store.read() as tx:
            _, integration = await issuer_of(tx, login.tenant)
            callback = await _read_callback(tx, pages, integration, login, raw)
        if callback.code is None:
            why = f"You were not logged in: the issuer answered {callback.error or 'access_denied'}."
            raise Failure(ErrorCode.CALLBACK_INVALID, why)
    except Failure:
        ended = login.__replace__(status=LoginStatus.FAILED, state_hash=None)
        await run_transaction(
            pages.api.store, lambda tx: tx.person_logins.verified(ended, expected=login.revision), tries=1
        )
        raise
    return callback.code
