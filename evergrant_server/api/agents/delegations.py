"""`/v1/delegations`: who acts for whom, and the stop of one with all that was delegated by it."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any

from fastapi import APIRouter, Query

from evergrant_server.access.approvals import dangerous
from evergrant_server.access.transactions import record
from evergrant_server.api.http.call import ApiCall, Call
from evergrant_server.api.http.models import Body, Page, PageCursor, PageLimit, Slug, Text, View
from evergrant_server.core.access import Action
from evergrant_server.core.agents.delegations import Delegation, chain_problem
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AppId, DelegationId, is_id
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.policy import Target
from evergrant_server.problems import require_found
from evergrant_server.store import Transaction

router = APIRouter(tags=["agents"])

_TRIES = 100  # a stop must succeed on a busy row


class DelegationState(StrEnum):
    LIVE = "live"
    STOPPED = "stopped"  # it, or one above it
    EXPIRED = "expired"


class DelegationView(View):
    """`act` says who acts for `subject`: the outermost `sub` does, for the one inside it, and so on to the
    app that the person's token was given to (RFC 8693 section 4.1). `parent_id` null: it is the root, which
    is the session. `scopes`, `integrations` and `connections` null: no bound but the permits of all these
    apps. `began_by`: the rule that accepted the person's token, or the delegation it came of. `may_act`: the
    only app that may exchange it. `state` is that of the rows; an app that was disabled ends it too.
    """

    id: str
    session_id: str
    parent_id: str | None
    depth: int
    app: str
    subject: str
    act: dict[str, Any]
    scopes: tuple[str, ...] | None
    integrations: tuple[str, ...] | None
    connections: tuple[str, ...] | None
    actions: tuple[Action, ...]
    may_act: str | None
    began_by: str
    state: DelegationState
    created_at: datetime
    expires_at: datetime
    stopped_at: datetime | None
    stopped_by: str | None
    stop_reason: str | None


async def viewed(tx: Transaction, one: Delegation, now: datetime) -> DelegationView:
    chain = await tx.delegations.chain(one)
    names: dict[str, str] = {}
    for id in {*(delegation.app_id for delegation in chain), *([one.may_act] if one.may_act else [])}:
        app = await tx.access.app(one.tenant, id)
        names[id] = id if app is None else app.name
    act: dict[str, Any] = {}
    for delegation in chain:
        act = {"sub": f"app:{names[delegation.app_id]}", **({"act": act} if act else {})}
    reach = one.reach
    return DelegationView.of(
        one,
        began_by=one.proof,
        session_id=one.root_id,
        depth=len(one.path),
        app=names[one.app_id],
        act=act,
        scopes=reach.scopes,
        integrations=reach.integrations,
        connections=reach.connections,
        actions=reach.actions,
        may_act=names[one.may_act] if one.may_act else None,
        state=_state(chain, now),
    )


def _state(chain: tuple[Delegation, ...], now: datetime) -> DelegationState:
    if now >= chain[-1].expires_at:
        return DelegationState.EXPIRED
    return DelegationState.LIVE if chain_problem(chain, now) is None else DelegationState.STOPPED


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
    listing = call.listing("delegations", limit, cursor, **_said(wanted))
    async with call.api.store.read() as tx:
        columns = {"app_id": await _app_id(tx, call, app), "subject": subject, "root_id": session}
        delegations = await tx.delegations.page(call.tenant, listing.after, listing.most, **columns)
        views = [await viewed(tx, delegation, call.now) for delegation in delegations[:limit]]
    return listing.page(views, delegations, lambda delegation: delegation.id)


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
        delegation = await visible_delegation(tx, call, delegation_id, stopping=True)
        if wanted.part is StoppedPart.SESSION:
            delegation = await visible_delegation(tx, call, delegation.root_id, stopping=True)
        if delegation.stopped_at is not None:
            return _stopped(delegation, 0)
        return await end_delegation(tx, delegation, wanted.reason, call.context, call.now)

    return await call.write(write, tries=_TRIES)


async def end_delegation(
    tx: Transaction, delegation: Delegation, reason: str, context: RequestContext, now: datetime
) -> DelegationStopView:
    """End a live delegation, with all that was delegated by it."""
    ended = await tx.delegations.count_live_under(delegation, now)
    stopped = delegation.stopped(context.by, reason, now)
    await tx.delegations.replace(stopped, expected=delegation.revision)
    detail = {"reason": reason, "session": delegation.root_id, "delegations_ended": ended}
    action, detail = AuditAction.DELEGATION_STOPPED, {"subject": delegation.subject, **detail}
    await record(tx, delegation.tenant, action, delegation.id, context, now, **detail)
    return _stopped(stopped, ended)


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
    delegation = await tx.delegations.get(call.tenant, DelegationId(id)) if is_id(id, "dlg") else None
    delegation = require_found(delegation)
    may_all = call.allows(Action.ADMIN, Target()) if stopping else call.may_audit(Target())
    if may_all:
        return delegation
    if call.caller.app.id in {link.app_id for link in await tx.delegations.chain(delegation)}:
        return delegation
    if call.may_audit(Target()):
        raise Failure(ErrorCode.NOT_PERMITTED)
    raise Failure(ErrorCode.NOT_FOUND)
