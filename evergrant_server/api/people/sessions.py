"""`/v1/sessions`: who is logged in. An admin ends any session, each person their own."""

from datetime import datetime

from fastapi import APIRouter
from starlette.responses import Response

from evergrant_server.api.http.call import AdminCall, ApiCall, AuditorCall, Call
from evergrant_server.api.http.models import Page, PageCursor, PageLimit, View
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import SessionId
from evergrant_server.core.people.roles import PersonRole
from evergrant_server.core.people.sessions import PersonSession, SessionKind
from evergrant_server.store import Transaction

router = APIRouter(tags=["people"])


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
    after = call.cursors.decode(cursor, call.tenant, list="sessions")
    async with call.api.store.read() as tx:
        rule = await tx.admin_logins.of_tenant(call.tenant)
        found = await tx.person_sessions.page(call.tenant, after, limit + 1)
    next_cursor = call.cursors.next_cursor(found, limit, lambda it: it.id, call.tenant, list="sessions")
    current = None if rule is None else rule.id
    items = [_view(it, call.now, of_rule=it.rule in (None, current)) for it in found[:limit]]
    return Page(items=items, next_cursor=next_cursor)


@router.get("/v1/sessions/current")
async def get_own_session(call: Call) -> SessionView:
    """The session that this request came with: who you are, in which role, and until when."""
    return _view(_own(call), call.now)


@router.delete("/v1/sessions/current", status_code=204)
async def end_own_session(call: Call) -> Response:
    """Log out."""
    return await _end(call, _own(call).id)


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
