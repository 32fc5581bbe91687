"""Sessions of people who administer: how they begin and end, and `/v1/sessions`.

A session begins with a login at the tenant's issuer, or on the host for when people can't log in (break
glass): with a new secret each time, and an audit record. An admin ends any session, each person their own.
"""

import logging
from datetime import datetime

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from evergrant_server.access.context import ApiContext
from evergrant_server.access.people import BEARER_PREFIX, live_session, presented_secret
from evergrant_server.access.transactions import record
from evergrant_server.api.http.call import AdminCall, ApiCall, AuditorCall, Call
from evergrant_server.api.http.models import Page, PageCursor, PageLimit, View
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.clock import Clock
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AdminLoginId, SessionId, Tenant, new_id
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.people.logins import LoginPurpose, LoginStatus, PersonLogin
from evergrant_server.core.people.roles import HOST, Person, PersonRole
from evergrant_server.core.people.sessions import (
    BREAK_GLASS_LASTS,
    SESSION_LASTS,
    PersonSession,
    SessionKind,
    hash_secret,
)
from evergrant_server.core.secret import Secret
from evergrant_server.problems import require_found
from evergrant_server.store import Store, Transaction
from evergrant_server.telemetry.logs import LogEvent, log_event
from evergrant_server.telemetry.traces import trace_of
from providers.requests.authorization_url import new_random_value

log = logging.getLogger("evergrant.cli")
router = APIRouter(tags=["people"])

LOGIN_OVER = "This login was used, or has expired: log in again."
_LONGEST = 255


class SessionView(View):
    """`person` is the id in audit records: `person:psn_…`, of `issuer` and `sub`. `name` is the issuer's.

    `live`: requests with it are accepted now. `authenticated_at` is when the issuer last saw the person's
    proof, null where it doesn't say.
    """

    id: str
    kind: SessionKind
    person: str
    issuer: str
    sub: str
    name: str | None
    role: PersonRole
    reason: str | None
    live: bool
    authenticated_at: datetime | None
    created_at: datetime
    last_used_at: datetime
    expires_at: datetime
    ended_at: datetime | None


@router.get("/v1/sessions")
async def list_sessions(
    call: AuditorCall, limit: PageLimit = 50, cursor: PageCursor = None
) -> Page[SessionView]:
    """The sessions of the tenant's people, ended ones for 30 days, sorted by id."""
    listing = call.listing("sessions", limit, cursor)
    async with call.api.store.read() as tx:
        rule = await tx.admin_logins.of_tenant(call.tenant)
        sessions = await tx.person_sessions.page(call.tenant, listing.after, listing.most)
    current = None if rule is None else rule.id
    views = [_view(session, call.now, of_rule=session.rule in (None, current)) for session in sessions]
    return listing.page(views, sessions, lambda session: session.id)


@router.get("/v1/sessions/current")
async def get_own_session(call: Call) -> SessionView:
    """The session that this request came with: who you are, in which role, and until when."""
    return _view(_own(call), call.now)


@router.delete("/v1/sessions/current", status_code=204)
async def end_own_session(call: Call) -> Response:
    """Log out."""
    return await _end(call, _own(call).id)


@router.get("/v1/sessions/{session_id}")
async def get_session(session_id: str, call: AuditorCall) -> SessionView:
    async with call.api.store.read() as tx:
        rule = await tx.admin_logins.of_tenant(call.tenant)
        session = require_found(await tx.person_sessions.to_end(call.tenant, SessionId(session_id)))
    return _view(session, call.now, of_rule=session.rule in (None, None if rule is None else rule.id))


@router.delete("/v1/sessions/{session_id}", status_code=204)
async def end_session(session_id: str, call: AdminCall) -> Response:
    """End a session. Requests with it are refused at once. Idempotent."""
    return await _end(call, SessionId(session_id))


async def _end(call: ApiCall, id: SessionId) -> Response:
    async def end(tx: Transaction) -> None:
        session = await tx.person_sessions.end(call.tenant, id, call.now)
        if session is not None:
            await call.record(tx, AuditAction.SESSION_ENDED, id, person=session.person_id)

    await call.write(end)
    return Response(status_code=204)


def _own(call: ApiCall) -> PersonSession:
    if call.caller.session is None:
        raise Failure(ErrorCode.NOT_FOUND, "An app has no session.")
    return call.caller.session


def _view(session: PersonSession, now: datetime, *, of_rule: bool = True) -> SessionView:
    person = session.person
    names = {"issuer": person.issuer, "sub": person.sub, "name": person.name}
    live = of_rule and session.is_live(now)
    return SessionView.of(session, person=session.person_id, live=live, **names)


async def verified_login(tx: Transaction, api: ApiContext, login: PersonLogin) -> PersonLogin:
    """The login as the worker has written it. Raises Failure CALLBACK_INVALID, AUTHORITY_BROKEN."""
    verified = await tx.person_logins.get(login.tenant, login.id)
    if verified is None or verified.status is not LoginStatus.VERIFIED:
        raise Failure(ErrorCode.CALLBACK_INVALID, LOGIN_OVER)
    if verified.expires_at <= api.clock.now():
        raise Failure(ErrorCode.CALLBACK_INVALID, LOGIN_OVER)
    return verified


def new_session(login: PersonLogin, kind: SessionKind, api: ApiContext) -> tuple[PersonSession, Secret]:
    """The session of a login that a worker has verified, and its secret."""
    assert login.person is not None
    assert login.role is not None
    assert login.purpose is not LoginPurpose.CLIENT  # whose person administers nothing
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
    detail = {"session": session.id, "kind": session.kind, "role": session.role}
    detail |= session.person.model_dump()
    action = AuditAction.PERSON_LOGGED_IN
    await record(tx, session.tenant, action, session.person_id, context, session.created_at, **detail)


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


async def make_break_glass_session(store: Store, clock: Clock, tenant: Tenant, name: str, reason: str) -> str:
    """Make a session with the role tenant_admin, and return its bearer token. Needs the store and its keys.

    The audit record, which webhooks get as an event, is committed with it. Raises Failure INVALID_REQUEST for
    a name or a reason that no record can hold.
    """
    for field, text in (("who", name), ("reason", reason)):
        if not text.strip() or not text.isprintable() or len(text) > _LONGEST:
            raise Failure(
                ErrorCode.INVALID_REQUEST, f"{field}: 1 to {_LONGEST} printable characters", field=field
            )
    now, secret = clock.now(), new_random_value()
    session = PersonSession(
        tenant=tenant,
        id=SessionId(new_id("ses")),
        kind=SessionKind.BREAK_GLASS,
        secret_hash=hash_secret(secret.reveal()),
        rule=None,
        person=Person(issuer=HOST, sub=name, name=name),
        role=PersonRole.TENANT_ADMIN,
        reason=reason,
        authenticated_at=now,
        created_at=now,
        last_used_at=now,
        expires_at=now + BREAK_GLASS_LASTS,
    )
    until = session.expires_at.isoformat()
    detail = {"who": name, "reason": reason, "person": session.person_id, "until": until}
    async with store.write() as tx:
        await tx.person_sessions.add(session)
        context = RequestContext(by="operator")
        await record(tx, tenant, AuditAction.BREAK_GLASS, session.id, context, now, **detail)
    log_event(log, logging.ERROR, LogEvent.BREAK_GLASS, f"{name} until {until}: {reason}", object=session.id)
    return bearer_of(secret)
