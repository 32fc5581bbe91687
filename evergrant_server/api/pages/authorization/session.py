"""The session of a person who uses OAuth clients: begun by a login at the tenant's issuer, kept by a cookie.

It is no session of a person who administers: it reaches pages of authorization requests alone.
"""

from collections.abc import Awaitable, Callable
from functools import partial

from starlette.responses import Response

from evergrant_server.access.transactions import record, run_transaction
from evergrant_server.api.pages.browser import redirect_response
from evergrant_server.api.pages.people.issuer import begin_at_issuer
from evergrant_server.api.pages.session import AUTHORIZE_PATH, SubjectPages, html_route
from evergrant_server.console.pages import Pages
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import SessionId, Tenant, new_id
from evergrant_server.core.integrations import Integration
from evergrant_server.core.oauth.client_login import ClientLogin
from evergrant_server.core.oauth.requests import SUBJECT_SESSION_LASTS, SubjectSession
from evergrant_server.core.people.logins import LoginStatus, PersonLogin
from evergrant_server.core.people.sessions import hash_secret
from evergrant_server.core.secret import Secret
from evergrant_server.store import Transaction
from evergrant_server.telemetry.alarms import report_broken_authority
from providers.requests.authorization_url import new_random_value

client_page = partial(html_route, page=Pages.not_authorized)
_OFF = "No app is designated for OAuth clients here. An admin does it with: evergrant clients login."


def subject_cookie(public_url: str) -> str:
    """The cookie's name. `__Host-` needs Secure, and browsers refuse Secure cookies over plain http."""
    return "__Host-evergrant-subject" if public_url.startswith("https://") else "evergrant-dev-subject"


async def clients_issuer(tx: Transaction, tenant: Tenant) -> tuple[ClientLogin, Integration]:
    """The tenant's rule, and where its persons log in.

    Raises Failure CLIENTS_OFF, TENANT_DISABLED, CLIENT_REJECTED, AUTHORITY_BROKEN.
    """
    await tx.tenants.require_enabled(tenant)
    rule = await tx.client_logins.of_tenant(tenant)
    if rule is None:
        raise Failure(ErrorCode.CLIENTS_OFF, _OFF)
    return rule, rule.issuer_integration(await tx.integrations.by_name(tenant, rule.integration))


async def live_subject(pages: SubjectPages, tx: Transaction, rule: ClientLogin) -> SubjectSession | None:
    """The browser's session, if it is live and of this rule. A row that was changed by hand is none, with an
    alarm."""
    secret = pages.request.cookies.get(subject_cookie(pages.api.settings.public_url))
    if secret is None:
        return None
    try:
        session = await tx.subject_sessions.by_secret(hash_secret(secret))
    except Failure as failure:
        if failure.code is not ErrorCode.AUTHORITY_BROKEN:
            raise
        report_broken_authority(failure)
        return None
    if session is None or session.tenant != rule.tenant or session.rule != rule.id:
        return None
    return session if session.is_live(pages.now) else None


async def begin_subject_login(
    pages: SubjectPages, rule: ClientLogin, query: str, *, as_another: bool = False
) -> Response:
    """Send the browser to the tenant's issuer; it comes back to the request with this query.

    `as_another`: the issuer asks who it is, even if it knows the browser (OpenID Connect Core 1.0 section
    3.1.2.1).
    """
    await pages.api.limits.count_login(pages.request.scope)
    browser = pages.browsers.cookie_of(pages.request) or pages.browsers.new_cookie()
    asked = {"prompt": "login"} if as_another else None
    scopes = rule.login.scopes
    async with pages.api.store.write() as tx:
        _, there = await clients_issuer(tx, rule.tenant)
        url = await begin_at_issuer(
            tx, pages, rule, there, browser, scopes=scopes, asked=asked, authorize=query
        )
    response = redirect_response(url)
    pages.browsers.set_cookie(response, browser)
    return response


async def give_subject_session(
    pages: SubjectPages, verified: Callable[[Transaction], Awaitable[PersonLogin]]
) -> Response:
    """A new session, and so a new cookie, at each login; the browser goes on with its request."""

    async def write(tx: Transaction) -> tuple[PersonLogin, Secret]:
        login, secret = await verified(tx), new_random_value()
        assert login.subject is not None
        assert login.person is not None  # a worker has verified it
        await tx.person_logins.replace(login.__replace__(status=LoginStatus.DONE), expected=login.revision)
        now = pages.now
        session = SubjectSession(
            tenant=login.tenant,
            id=SessionId(new_id("ses")),
            secret_hash=hash_secret(secret.reveal()),
            rule=login.rule,
            subject=login.subject,
            person=login.person,
            created_at=now,
            expires_at=now + SUBJECT_SESSION_LASTS,
        )
        await tx.subject_sessions.add(session)
        said = {"session": session.id, **session.person.model_dump()}
        action = AuditAction.SUBJECT_LOGGED_IN
        await record(tx, login.tenant, action, session.subject, pages.context, now, **said)
        return login, secret

    login, secret = await run_transaction(pages.api.store, write)
    response = redirect_response(f"{AUTHORIZE_PATH}?{login.authorize}")
    cookie = subject_cookie(pages.api.settings.public_url)
    pages.browsers.begin_session(response, cookie, secret.reveal(), SUBJECT_SESSION_LASTS)
    return response


async def end_session(pages: SubjectPages, tx: Transaction, session: SubjectSession) -> None:
    ended = session.__replace__(ended_at=pages.now)
    await tx.subject_sessions.replace(ended, expected=session.revision)
