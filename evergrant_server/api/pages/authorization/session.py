"""The subject session of a person who uses OAuth clients: begun by a login, kept by a cookie.

It is no session of a person who administers: it reaches pages of authorization requests, and the person's own
(`api.me`).
"""

from functools import partial

from starlette.responses import Response

from evergrant_server.access.transactions import record, run_transaction
from evergrant_server.api.pages.browser import redirect_response
from evergrant_server.api.pages.session import AUTHORIZE_PATH, DEVICE_PATH, ME_PATH, SubjectPages, html_route
from evergrant_server.api.people.sessions import verified_login
from evergrant_server.console.pages import Pages
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.ids import SessionId, new_id
from evergrant_server.core.oauth.client_login import ClientLogin
from evergrant_server.core.oauth.requests import SUBJECT_SESSION_LASTS, SubjectSession
from evergrant_server.core.people.logins import LoginStatus, PersonLogin
from evergrant_server.core.people.sessions import hash_secret
from evergrant_server.core.secret import Secret
from evergrant_server.store import Transaction
from evergrant_server.telemetry.alarms import unless_broken
from providers.requests.authorization_url import new_random_value

client_page = partial(html_route, page=Pages.not_authorized)


def _subject_cookie(public_url: str) -> str:
    """The cookie's name. `__Host-` needs Secure, and browsers refuse Secure cookies over plain http."""
    return "__Host-evergrant-subject" if public_url.startswith("https://") else "evergrant-dev-subject"


async def live_subject(pages: SubjectPages, tx: Transaction, rule: ClientLogin) -> SubjectSession | None:
    """The browser's session, if it is live and of this rule. A row that was changed by hand is none, with an
    alarm."""
    secret = pages.request.cookies.get(_subject_cookie(pages.api.settings.public_url))
    if secret is None:
        return None
    session = await unless_broken(tx.subject_sessions.by_secret(hash_secret(secret)))
    if session is None or session.tenant != rule.tenant or session.rule != rule.id:
        return None
    return session if session.is_live(pages.now) else None


async def give_subject_session(pages: SubjectPages, login: PersonLogin) -> Response:
    """A new session, and so a new cookie, at each login; the browser goes on with its request."""

    async def write(tx: Transaction) -> Secret:
        verified, secret = await verified_login(tx, pages.api, login), new_random_value()
        assert verified.subject is not None
        assert verified.person is not None  # a worker has verified it
        done = verified.__replace__(status=LoginStatus.DONE)
        await tx.person_logins.replace(done, expected=verified.revision)
        now = pages.now
        session = SubjectSession(
            tenant=verified.tenant,
            id=SessionId(new_id("ses")),
            secret_hash=hash_secret(secret.reveal()),
            rule=verified.rule,
            subject=verified.subject,
            person=verified.person,
            created_at=now,
            expires_at=now + SUBJECT_SESSION_LASTS,
        )
        await tx.subject_sessions.add(session)
        detail = {"session": session.id, **session.person.model_dump()}
        action = AuditAction.SUBJECT_LOGGED_IN
        await record(tx, verified.tenant, action, session.subject, pages.context, now, **detail)
        return secret

    secret = await run_transaction(pages.api.store, write)
    response = redirect_response(_page_of(login))
    cookie = _subject_cookie(pages.api.settings.public_url)
    pages.browsers.begin_session(response, cookie, secret.reveal(), SUBJECT_SESSION_LASTS)
    return response


def _page_of(login: PersonLogin) -> str:
    """The page for which the subject has logged in, told by what its query begins with."""
    query = login.authorize or ""
    for begins, path in (("user_code=", DEVICE_PATH), ("tenant=", ME_PATH)):
        if query.startswith(begins):
            return f"{path}?{query}"
    return f"{AUTHORIZE_PATH}?{query}"


async def end_session(pages: SubjectPages, tx: Transaction, session: SubjectSession) -> None:
    ended = session.__replace__(ended_at=pages.now)
    await tx.subject_sessions.replace(ended, expected=session.revision)
