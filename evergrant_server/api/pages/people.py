"""The pages of people who administer: `/login`, `/session`, `/logout`; and what `evergrant login` calls.

No address to return to is taken from a request: a browser lands on its session's page, or that of the
approval that it was shown last, a command's code on this machine's loopback.
"""

import hmac
import re
from datetime import datetime
from functools import partial
from urllib.parse import urlencode

from authlib.oauth2.rfc7636 import create_s256_code_challenge
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from evergrant_server.access.people import live_session, login_url, presented_secret, session_cookie
from evergrant_server.access.transactions import run_transaction
from evergrant_server.api.http.call import ApiDep
from evergrant_server.api.http.models import Body, StorableSecret, View
from evergrant_server.api.pages.authorization.session import give_subject_session
from evergrant_server.api.pages.browser import html_response, redirect_response
from evergrant_server.api.pages.login import admins_issuer, begin_admin_login, verify_person_login
from evergrant_server.api.pages.session import PagesDep, SubjectPages, html_route, issuer_name
from evergrant_server.api.people.sessions import (
    bearer_of,
    end_presented_session,
    new_session,
    record_login,
    verified_login,
)
from evergrant_server.console.pages import Pages
from evergrant_server.core.connections.binding import is_challenge
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import IntegrationId, Tenant, is_slug
from evergrant_server.core.people.logins import (
    COMMAND_CODE_LASTS,
    CommandStart,
    LoginPurpose,
    LoginStart,
    LoginStatus,
    PersonLogin,
)
from evergrant_server.core.people.roles import PersonRole
from evergrant_server.core.people.sessions import SESSION_LASTS, PersonSession, SessionKind, hash_secret
from evergrant_server.core.secret import Secret
from evergrant_server.problems import invalid_request
from evergrant_server.store import Transaction
from providers.requests.authorization_url import new_random_value

router = APIRouter(tags=["pages"], default_response_class=HTMLResponse)
command_router = APIRouter(tags=["people"])

_person_page = partial(html_route, page=Pages.not_logged_in)
_FORM = "login"  # what the CSRF token of the form is bound to, beside its browser
_FIRST_PORT, _LAST_PORT = 1024, 65_535
_PORT, _STATE = re.compile("[0-9]{4,5}"), re.compile("[A-Za-z0-9_-]{16,128}")


@router.get("/login")
@_person_page
async def show_login(
    pages: PagesDep, tenant: str = "", step_up: str = "", port: str = "", state: str = "", challenge: str = ""
) -> Response:
    """The page with the button that leads to the tenant's issuer. Changes nothing.

    With `port`, `state` and `challenge` it was `evergrant login` that opened it.
    """
    start = _start(pages, tenant, step_up, port, state, challenge)
    async with pages.api.store.read() as tx:
        _, integration = await admins_issuer(tx, start.tenant)
    browser = pages.browsers.cookie_of(pages.request) or pages.browsers.new_cookie()
    csrf = pages.browsers.csrf_token(browser, _FORM)
    page = pages.templates.login(
        host=issuer_name(integration),
        tenant=start.tenant,
        step_up=start.step_up,
        command=start.command,
        csrf=csrf,
    )
    response = html_response(page)
    pages.browsers.set_cookie(response, browser)
    return response


@router.post("/login")
@_person_page
async def start_login(pages: PagesDep) -> Response:
    """Bind the browser, and send it to the issuer."""
    browser, fields = await pages.browsers.read_form(pages.request, _FORM)
    names = ("tenant", "step_up", "port", "state", "challenge")
    start = _start(pages, *(fields.get(name, "") for name in names))
    url, host = await begin_admin_login(pages, start, browser)
    return html_response(pages.templates.redirecting(parties=None, to=host, url=url))


def _start(
    pages: SubjectPages, tenant: str, step_up: str, port: str, state: str, challenge: str
) -> LoginStart:
    """What the browser, or the command that opened it, asks for. Raises Failure INVALID_REQUEST."""
    named = tenant or pages.api.settings.tenant
    if not is_slug(named):
        raise invalid_request("tenant", "This is no tenant's name.")
    command = None
    if port or state or challenge:
        known = _PORT.fullmatch(port) and _STATE.fullmatch(state) and is_challenge(challenge)
        if not known or not _FIRST_PORT <= int(port) <= _LAST_PORT:
            raise invalid_request("port", "A command names its port, a state and a challenge.")
        command = CommandStart(port=int(port), state=state, challenge=challenge)
    return LoginStart(tenant=Tenant(named), step_up=step_up == "true", command=command)


@_person_page
async def finish_person_login(
    pages: SubjectPages, *, integration_id: IntegrationId, login: PersonLogin, raw: bytes
) -> Response:
    """Answer the issuer's callback: with a session's cookie, or with the one-time code of a command."""
    await verify_person_login(pages, integration_id, login, raw)
    match login.purpose:
        case LoginPurpose.CLIENT:
            return await give_subject_session(pages, login)
        case LoginPurpose.COMMAND:
            return await _send_to_command(pages, login)
        case LoginPurpose.SESSION:
            return await _give_session(pages, login)


async def _give_session(pages: SubjectPages, login: PersonLogin) -> Response:
    """A new session, and so a new cookie, at each login (ASVS 7.2.4); the browser's earlier one ends."""

    async def write(tx: Transaction) -> Secret:
        verified = await verified_login(tx, pages.api, login)
        await end_presented_session(tx, pages.api, pages.request)
        session, secret = new_session(verified, SessionKind.BROWSER, pages.api)
        done = verified.__replace__(status=LoginStatus.DONE)
        await tx.person_logins.replace(done, expected=verified.revision)
        await tx.person_sessions.add(session)
        await record_login(tx, session, pages.request)
        return secret

    secret = await run_transaction(pages.api.store, write)
    response = redirect_response(pages.browsers.page_after_login(pages.request, login.tenant, "/session"))
    cookie = session_cookie(pages.api.settings.public_url)
    pages.browsers.begin_session(response, cookie, secret.reveal(), SESSION_LASTS)
    return response


async def _send_to_command(pages: SubjectPages, login: PersonLogin) -> Response:
    """The one-time code goes to the loopback interface of the person's own machine (RFC 8252 section 7.3)."""
    assert login.command is not None
    code = new_random_value()

    async def write(tx: Transaction) -> None:
        verified = await verified_login(tx, pages.api, login)
        code_given = verified.__replace__(
            status=LoginStatus.CODE_GIVEN,
            code_hash=hash_secret(code.reveal()),
            expires_at=pages.now + COMMAND_CODE_LASTS,
        )
        await tx.person_logins.replace(code_given, expected=verified.revision)

    await run_transaction(pages.api.store, write)
    query = {"code": code.reveal(), "state": login.command.state, "iss": pages.api.settings.public_url}
    return redirect_response(f"http://127.0.0.1:{login.command.port}/?{urlencode(query)}")


@router.get("/session")
@_person_page
async def show_session(pages: PagesDep) -> Response:
    """Who is logged in in this browser, and the button to log out."""
    session = await _browser_session(pages)
    if session is None:
        return redirect_response("/login")
    browser = pages.browsers.cookie_of(pages.request) or pages.browsers.new_cookie()
    page = pages.templates.session(
        session=session,
        step_up=login_url(pages.api, session.tenant, step_up=True),
        csrf=pages.browsers.csrf_token(browser, session.id),
    )
    response = html_response(page)
    pages.browsers.set_cookie(response, browser)
    return response


@router.post("/logout")
@_person_page
async def log_out(pages: PagesDep) -> Response:
    """End this browser's session."""
    session = await _browser_session(pages)
    if session is not None:
        await pages.browsers.read_form(pages.request, session.id)

        async def end(tx: Transaction) -> None:
            await end_presented_session(tx, pages.api, pages.request)

        await run_transaction(pages.api.store, end)
    response = html_response(pages.templates.logged_out())
    pages.browsers.end_session(response, session_cookie(pages.api.settings.public_url))
    return response


async def _browser_session(pages: SubjectPages) -> PersonSession | None:
    presented = presented_secret(pages.api, pages.request)
    if presented is None or not presented[1]:
        return None
    async with pages.api.store.read() as tx:
        return await live_session(tx, pages.api, presented[0], by_cookie=True)


# --- `evergrant login` -------------------------------------------------------------------


class CommandCodeBody(Body):
    """The one-time code that came to the loopback interface, and the verifier of its challenge (RFC 7636)."""

    code: StorableSecret
    verifier: StorableSecret


class CommandSessionView(View):
    """The only response that contains the session's token."""

    token: str
    role: PersonRole
    name: str | None
    person: str
    tenant: str
    expires_at: datetime


@command_router.post("/login/command")
async def exchange_command_code(body: CommandCodeBody, request: Request, api: ApiDep) -> CommandSessionView:
    """Exchange the code for a session, once, within a minute."""
    made: tuple[PersonSession, Secret] | None = None

    async def write(tx: Transaction) -> tuple[PersonSession, Secret] | None:
        login = await tx.person_logins.by_code(hash_secret(body.code.reveal()))
        if login is None or login.status is not LoginStatus.CODE_GIVEN or login.command is None:
            return None
        right = hmac.compare_digest(
            create_s256_code_challenge(body.verifier.reveal()).encode(), login.command.challenge.encode()
        )
        good = right and api.clock.now() < login.expires_at
        status = LoginStatus.DONE if good else LoginStatus.FAILED  # a wrong verifier burns the code
        await tx.person_logins.replace(login.__replace__(status=status), expected=login.revision)
        if not good:
            return None
        session, secret = new_session(login, SessionKind.COMMAND, api)
        await tx.person_sessions.add(session)
        await record_login(tx, session, request)
        return session, secret

    made = await run_transaction(api.store, write)
    if made is None:
        raise Failure(
            ErrorCode.CALLBACK_INVALID, "The code is unknown, was used, or has expired: log in again."
        )
    session, secret = made
    members = {"token": bearer_of(secret), "person": session.person_id, "name": session.person.name}
    return CommandSessionView.of(session, **members)
