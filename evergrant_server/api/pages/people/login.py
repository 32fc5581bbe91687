"""The login of a person who administers: to the tenant's issuer and back, into a session or a command.

A worker exchanges the login's code (ADR 0008); the browser waits for it. No address to return to is taken
from a request: a browser lands on its session's page, or that of the approval that it was shown last, a
command's code on this machine's loopback.
"""

from functools import partial
from urllib.parse import urlencode

from starlette.responses import Response

from evergrant_server.access.context import integration_spec
from evergrant_server.access.people import session_cookie
from evergrant_server.access.transactions import run_transaction
from evergrant_server.api.pages.authorization.session import clients_issuer, give_subject_session
from evergrant_server.api.pages.browser import redirect_response
from evergrant_server.api.pages.callback_checks import parse_query, read_login_callback
from evergrant_server.api.pages.names import issuer_name
from evergrant_server.api.pages.people.issuer import begin_at_issuer
from evergrant_server.api.pages.session import SubjectPages, html_route
from evergrant_server.api.people.session_start import end_presented_session, new_session, record_login
from evergrant_server.console.pages import Pages
from evergrant_server.core.connections.consent import hash_state
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import IntegrationId, Tenant
from evergrant_server.core.integrations import Integration
from evergrant_server.core.messages.integrations import VerifyPerson
from evergrant_server.core.people.logins import (
    COMMAND_CODE_LASTS,
    CommandStart,
    LoginStart,
    LoginStatus,
    PersonLogin,
)
from evergrant_server.core.people.roles import AdminLogin
from evergrant_server.core.people.sessions import SESSION_LASTS, STEP_UP_LASTS, SessionKind, hash_secret
from evergrant_server.core.secret import Secret
from evergrant_server.store import Transaction
from evergrant_server.telemetry import metrics
from evergrant_server.telemetry.request_ids import trace_of
from providers.requests.authorization_url import new_random_value
from providers.requests.callback import Callback
from providers.requests.callback_parameters import state_in

LOGIN_TIMEOUT_S = 30.0  # the person waits; each request to the issuer has a shorter limit
_BY = "person"  # until it is known which


async def login_host(tx: Transaction, tenant: Tenant) -> str:
    """The host at which the tenant's people log in. Raises Failure NOT_FOUND, CLIENT_REJECTED."""
    return issuer_name((await _issuer(tx, tenant))[1])


async def begin_person_login(pages: SubjectPages, start: LoginStart, browser: str) -> tuple[str, str]:
    """Store a new state, code verifier and nonce. Returns the login's URL, and its issuer's host."""
    await pages.api.limits.count_login(pages.request.scope)
    max_age = {"max_age": f"{STEP_UP_LASTS.total_seconds():.0f}"} if start.step_up else None
    begun = {"step_up": start.step_up, "command": start.command}
    async with pages.api.store.write() as tx:
        rule, there = await _issuer(tx, start.tenant)
        scopes = ("openid", *rule.scopes)
        url = await begin_at_issuer(tx, pages, rule, there, browser, scopes=scopes, asked=max_age, **begun)
    return url, issuer_name(there)


async def find_person_login(pages: SubjectPages, raw: bytes) -> PersonLogin | None:
    """The login whose callback this is; None for any other callback."""
    try:
        state = state_in(parse_query(raw))
    except Failure:
        return None
    async with pages.api.store.read() as tx:
        return await tx.person_logins.by_state(hash_state(state))


person_page = partial(html_route, page=Pages.not_logged_in)


@person_page
async def finish_person_login(
    pages: SubjectPages, *, integration_id: IntegrationId, login: PersonLogin, raw: bytes
) -> Response:
    """Have a worker find out who logged in, and give the browser its session, or the command its code.

    A callback of the bound browser that fails its checks ends the login, and so does the issuer's error.
    """
    bound = pages.browsers.is_bound(pages.request, login.browser_hash)
    if login.integration_id != integration_id or not bound:
        metrics.count(metrics.CALLBACKS_REFUSED, "unknown_state")
        raise Failure(ErrorCode.CALLBACK_INVALID, "The state is not known in this browser.")
    try:
        code = await _code_of(pages, login, raw)
        waiting = await _save_code(pages, login, code)
    except Failure as failure:
        metrics.count(metrics.CALLBACKS_REFUSED, failure.code)
        raise
    context = trace_of(pages.request).request_context(_BY)
    order = VerifyPerson(tenant=login.tenant, login_id=login.id, revision=waiting.revision, context=context)
    result = await pages.api.link.verify_person(order, timeout=LOGIN_TIMEOUT_S)
    if result.failure is not None:
        raise Failure(result.failure, result.detail, retry_after=result.retry_after)
    if login.authorize is not None:
        found = partial(_verified, pages=pages, login=login)
        return await give_subject_session(pages, found)
    if login.command is not None:
        return await _send_to_command(pages, login, login.command)
    return await _give_session(pages, login)


async def _issuer(tx: Transaction, tenant: Tenant) -> tuple[AdminLogin, Integration]:
    """Raises Failure NOT_FOUND, CLIENT_REJECTED, TENANT_DISABLED."""
    rule = await tx.admin_logins.of_tenant(tenant)
    if rule is None:
        why = "No people log in here: an admin sets where they do with PUT /v1/admin-login."
        raise Failure(ErrorCode.NOT_FOUND, why)
    await tx.tenants.require_enabled(tenant)
    return rule, rule.issuer_integration(await tx.integrations.by_name(tenant, rule.integration))


async def _code_of(pages: SubjectPages, login: PersonLogin, raw: bytes) -> Secret:
    """The authorization code. Raises Failure CALLBACK_INVALID, for a missing or wrong `iss` too (RFC 9207
    section 2.4), and after an error of the issuer."""
    if login.status is not LoginStatus.STARTED or login.expires_at <= pages.now:
        raise Failure(ErrorCode.CALLBACK_INVALID, "This login was used, or has expired: log in again.")
    try:
        callback = await _read_callback(pages, login, raw)
    except Failure:
        await _end(pages, login)
        raise
    if callback.code is None:
        await _end(pages, login)
        why = f"You were not logged in: the issuer answered {callback.error or 'access_denied'}."
        raise Failure(ErrorCode.CALLBACK_INVALID, why)
    return callback.code


async def _read_callback(pages: SubjectPages, login: PersonLogin, raw: bytes) -> Callback:
    async with pages.api.store.read() as tx:
        if login.authorize is None:
            _, there = await _issuer(tx, login.tenant)
        else:
            _, there = await clients_issuer(tx, login.tenant)
        spec = await integration_spec(tx, pages.api.registry, there)
    return read_login_callback(spec, there, login.issuer, raw)


async def _end(pages: SubjectPages, login: PersonLogin) -> None:
    ended = login.__replace__(status=LoginStatus.FAILED, state_hash=None)

    async def write(tx: Transaction) -> None:
        await tx.person_logins.verified(ended, expected=login.revision)

    await run_transaction(pages.api.store, write, tries=1)


async def _save_code(pages: SubjectPages, login: PersonLogin, code: Secret) -> PersonLogin:
    """Its state is used up. One of parallel callbacks wins."""
    used = login.__replace__(state_hash=None, status=LoginStatus.CODE_RECEIVED)
    try:
        async with pages.api.store.write() as tx:
            return await tx.person_logins.code_received(used, code, expected=login.revision)
    except Failure as failure:
        if failure.code is not ErrorCode.STORE_CONFLICT:
            raise
    raise Failure(ErrorCode.CALLBACK_INVALID, "This callback was already used.")


async def _verified(tx: Transaction, pages: SubjectPages, login: PersonLogin) -> PersonLogin:
    """The login as the worker has written it. Raises Failure CALLBACK_INVALID, AUTHORITY_BROKEN."""
    found = await tx.person_logins.get(login.tenant, login.id)
    if found is None or found.status is not LoginStatus.VERIFIED or found.expires_at <= pages.now:
        raise Failure(ErrorCode.CALLBACK_INVALID, "This login was used, or has expired: log in again.")
    return found


async def _give_session(pages: SubjectPages, login: PersonLogin) -> Response:
    """A new session, and so a new cookie, at each login (ASVS 7.2.4); the browser's earlier one ends."""

    async def write(tx: Transaction) -> Secret:
        found = await _verified(tx, pages, login)
        await end_presented_session(tx, pages.api, pages.request)
        session, secret = new_session(found, SessionKind.BROWSER, pages.api)
        done = found.__replace__(status=LoginStatus.DONE)
        await tx.person_logins.replace(done, expected=found.revision)
        await tx.person_sessions.add(session)
        await record_login(tx, session, pages.request)
        return secret

    secret = await run_transaction(pages.api.store, write)
    response = redirect_response(pages.browsers.page_after_login(pages.request, "/session"))
    cookie = session_cookie(pages.api.settings.public_url)
    pages.browsers.begin_session(response, cookie, secret.reveal(), SESSION_LASTS)
    return response


async def _send_to_command(pages: SubjectPages, login: PersonLogin, command: CommandStart) -> Response:
    """The one-time code goes to the loopback interface of the person's own machine (RFC 8252 section 7.3)."""
    code = new_random_value()

    async def write(tx: Transaction) -> None:
        found = await _verified(tx, pages, login)
        await tx.person_logins.replace(
            found.__replace__(
                status=LoginStatus.CODE_GIVEN,
                code_hash=hash_secret(code.reveal()),
                expires_at=pages.now + COMMAND_CODE_LASTS,
            ),
            expected=found.revision,
        )

    await run_transaction(pages.api.store, write)
    query = {"code": code.reveal(), "state": command.state, "iss": pages.api.settings.public_url}
    return redirect_response(f"http://127.0.0.1:{command.port}/?{urlencode(query)}")
