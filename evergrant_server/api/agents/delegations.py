"""`/v1/delegations`: who acts for whom, and the stop of one with all that was delegated by it."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated

from fastapi import APIRouter, Query

from evergrant_server.access.approvals import dangerous
from evergrant_server.api.agents.delegation_views import DelegationView, viewed
from evergrant_server.api.http.call import ApiCall, Call
from evergrant_server.api.http.models import Body, Page, PageCursor, PageLimit, Slug, Text, View
from evergrant_server.core.access import Action
from evergrant_server.core.agents.delegations import Delegation
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AppId, DelegationId, is_id
from evergrant_server.policy import Target
from evergrant_server.problems import require_found
from evergrant_server.store import Transaction

router = APIRouter(tags=["agents"])

_TRIES = 100  # a stop must succeed on a busy row


class StoppedPart(StrEnum):
    """What a stop ends: this one with those below it, or the whole tree that it is of."""

    BRANCH = "branch"
    SESSION = "session"


class StopDelegationBody(Body):
    reason: Text = "stopped"
    part: StoppedPart = StoppedPart.BRANCH


class DelegationStopView(View):
    """`delegations_ended` counts the live ones that ended with this stop, the stopped one among them."""

    id: str
    session_id: str
    stopped_at: datetime
    stopped_by: str
    stop_reason: str
    delegations_ended: int


@router.get("/v1/delegations")
async def list_delegations(
    call: Call,
    app: Slug | None = None,
    subject: Annotated[str | None, Query(max_length=255)] = None,
    session: Annotated[str | None, Query(max_length=40)] = None,
    limit: PageLimit = 50,
    cursor: PageCursor = None,
) -> Page[DelegationView]:
    """Delegations sorted by id, of one app, subject or session, if given. An app sees its own; an admin or
    auditor all. Each is kept for a week after its end."""
    wanted = {"app": app, "subject": subject, "session": session}
    after = call.cursors.decode(cursor, call.tenant, list="delegations", **_said(wanted))
    async with call.api.store.read() as tx:
        columns = {"app_id": await _app_id(tx, call, app), "subject": subject, "root_id": session}
        found = await tx.delegations.page(call.tenant, after, limit + 1, **columns)
        views = [await viewed(tx, it, call.now) for it in found[:limit]]
    next_cursor = call.cursors.next_cursor(
        found, limit, lambda it: it.id, call.tenant, list="delegations", **_said(wanted)
    )
    return Page(items=views, next_cursor=next_cursor)


@router.get("/v1/delegations/{delegation_id}")
async def get_delegation(delegation_id: str, call: Call) -> DelegationView:
    """Who acts for whom, and how far. For an admin or auditor, and each app of its chain."""
    async with call.api.store.read() as tx:
        return await viewed(tx, await visible_delegation(tx, call, delegation_id), call.now)


@router.post("/v1/delegations/{delegation_id}/stop")
@dangerous("always", second=False)
async def stop_delegation(
    delegation_id: str, call: Call, body: StopDelegationBody | None = None
) -> DelegationStopView:
    """End a delegation, with all that was delegated by it. From this response on they lease nothing and call
    nothing, in every process, and open streams are cut within seconds. For an admin, and each app of its
    chain; a whole session for an admin, and the app at its root.
    """
    call.require_step_up()
    wanted = body or StopDelegationBody()

    async def write(tx: Transaction) -> DelegationStopView:
        found = await visible_delegation(tx, call, delegation_id, stopping=True)
        if wanted.part is StoppedPart.SESSION:
            found = await visible_delegation(tx, call, found.root_id, stopping=True)
        if found.stopped_at is not None:
            return _stopped(found, 0)
        ended = await tx.delegations.count_live_under(found, call.now)
        stopped = found.stopped(call.context.by, wanted.reason, call.now)
        await tx.delegations.replace(stopped, expected=found.revision)
        detail = {"reason": wanted.reason, "session": found.root_id, "delegations_ended": ended}
        await call.record(tx, AuditAction.DELEGATION_STOPPED, found.id, subject=found.subject, **detail)
        return _stopped(stopped, ended)

    return await call.write(write, tries=_TRIES)


def _stopped(one: Delegation, ended: int) -> DelegationStopView:
    return DelegationStopView.of(one, session_id=one.root_id, delegations_ended=ended)


def _said(wanted: dict[str, str | None]) -> dict[str, str]:
    return {name: value or "" for name, value in wanted.items()}


async def _app_id(tx: Transaction, call: ApiCall, name: str | None) -> AppId | None:
    """Whose are listed. Raises Failure NOT_PERMITTED for another's, NOT_FOUND."""
    if call.may_audit(Target()):
        return None if name is None else require_found(await tx.access.app_by_name(call.tenant, name)).id
    if name not in (None, call.caller.app.name):
        raise Failure(ErrorCode.NOT_PERMITTED, "An app lists its own delegations alone.")
    return call.caller.app.id


async def visible_delegation(
    tx: Transaction, call: ApiCall, id: str, *, stopping: bool = False
) -> Delegation:
    """One of the tenant that the caller may read, or stop. Raises Failure NOT_FOUND alike for any other."""
    found = await tx.delegations.get(call.tenant, DelegationId(id)) if is_id(id, "dlg") else None
    found = require_found(found)
    may_all = call.allows(Action.ADMIN, Target()) if stopping else call.may_audit(Target())
    if may_all:
        return found
    if call.caller.app.id in {it.app_id for it in await tx.delegations.chain(found)}:
        return found
    if call.may_audit(Target()):
        raise Failure(ErrorCode.NOT_PERMITTED)
    raise Failure(ErrorCode.NOT_FOUND)
