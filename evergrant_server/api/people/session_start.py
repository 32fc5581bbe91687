"""How sessions of people begin and end: a new secret at each login, and an audit record of each."""

from starlette.requests import Request

from evergrant_server.access.context import ApiContext
from evergrant_server.access.people import BEARER_PREFIX, live_session, presented_secret
from evergrant_server.access.transactions import record
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.ids import AdminLoginId, SessionId, new_id
from evergrant_server.core.people.logins import PersonLogin
from evergrant_server.core.people.sessions import SESSION_LASTS, PersonSession, SessionKind, hash_secret
from evergrant_server.core.secret import Secret
from evergrant_server.store import Transaction
from evergrant_server.telemetry.request_ids import trace_of
from providers.requests.authorization_url import new_random_value


def new_session(login: PersonLogin, kind: SessionKind, api: ApiContext) -> tuple[PersonSession, Secret]:
    """The session of a login that a worker has verified, and its secret."""
    assert login.person is not None
    assert login.role is not None
    assert login.authorize is None  # that of a person who uses an OAuth client is no session of an admin
    now, secret = api.clock.now(), new_random_value()
    session = PersonSession(
        tenant=login.tenant,
        id=SessionId(new_id("ses")),
        kind=kind,
        secret_hash=hash_secret(secret.reveal()),
        rule=AdminLoginId(login.rule),
        person=login.person,
        role=login.role,
        authenticated_at=login.authenticated_at,
        created_at=now,
        last_used_at=now,
        expires_at=now + SESSION_LASTS,
    )
    return session, secret


async def record_login(tx: Transaction, session: PersonSession, request: Request) -> None:
    context = trace_of(request).request_context(session.by)
    said = {"session": session.id, "kind": session.kind, "role": session.role, **session.person.model_dump()}
    action = AuditAction.PERSON_LOGGED_IN
    await record(tx, session.tenant, action, session.person_id, context, session.created_at, **said)


async def end_presented_session(tx: Transaction, api: ApiContext, request: Request) -> None:
    """End the session of this browser's cookie, if it has one."""
    presented = presented_secret(api, request)
    if presented is None or not presented[1]:
        return
    session = await live_session(tx, api, presented[0], by_cookie=True)
    if session is None:
        return
    now = api.clock.now()
    await tx.person_sessions.end(session.tenant, session.id, now)
    context = trace_of(request).request_context(session.by)
    detail = {"person": session.person_id}
    await record(tx, session.tenant, AuditAction.SESSION_ENDED, session.id, context, now, **detail)


def bearer_of(secret: Secret) -> str:
    return f"{BEARER_PREFIX}{secret.reveal()}"
