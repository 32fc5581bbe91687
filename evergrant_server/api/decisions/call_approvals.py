"""`/v1/call-approvals`: an agent asks for one call, a person decides, and the call is made once."""

import json
from datetime import datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field
from starlette.responses import Response

from evergrant_server.access.approvals import dangerous
from evergrant_server.api.decisions.calls import CallBody, call_of
from evergrant_server.api.http.call import AdminCall, ApiCall, Call, CommandResponse
from evergrant_server.api.http.models import Body, Page, PageCursor, PageLimit, Text, View
from evergrant_server.audit.decisions import hash_of, use_call_approval
from evergrant_server.core.access import App
from evergrant_server.core.agents.calls import AgentCall
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.decisions import CallApproval, CallApprovalState
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import CallApprovalId, ConnectionId, derived_id
from evergrant_server.core.outbox import call_approval_message
from evergrant_server.policy import Target
from evergrant_server.problems import invalid_request, require_found
from evergrant_server.store import Transaction
from evergrant_server.telemetry import metrics
from evergrant_server.telemetry.metrics import CALL_APPROVALS

router = APIRouter(tags=["agents"])

MOST_WAITING = 50  # of one app
_PATH = "/v1/call-approvals"
_SHORTEST, _LONGEST, _USUAL = timedelta(minutes=1), timedelta(days=30), timedelta(days=3)
_POLL_AFTER_S = 2


class CallApprovalBody(CallBody):
    """`reason` is for the person who decides. `decide_within`: seconds until the request ends undecided."""

    reason: Text
    decide_within: Annotated[float, Field(ge=_SHORTEST.total_seconds(), le=_LONGEST.total_seconds())] = (
        _USUAL.total_seconds()
    )


class CallDecisionBody(Body):
    """`note` is for the agent."""

    note: Text | None = None


class CallHeaderView(View):
    """A header of the call, its name in lower case."""

    name: str
    value: str


class CalledView(View):
    """What is called: all that the approval is for. Neutral headers aren't part of it."""

    method: str | None = None
    url: str | None = None
    headers: list[CallHeaderView] | None = None
    body: str | None = None
    body_sha256: str | None = None
    tool: str | None = None
    arguments: dict[str, Any] | None = None
    params: dict[str, Any] | None = None


class CallApprovalView(View):
    """`call` is what is to be called, null in lists, where `name` is its method or tool. An approved call may
    be made once, until `use_by`."""

    id: str
    state: CallApprovalState
    agent: str
    sponsor: str | None
    connection_id: str
    integration: str
    subject: str
    name: str
    call: CalledView | None
    reason: str
    requested_by: str
    created_at: datetime
    decide_by: datetime
    decided_by: str | None
    decided_at: datetime | None
    note: str | None
    use_by: datetime | None
    used_at: datetime | None

    @classmethod
    def of_approval(cls, approval: CallApproval, now: datetime, **members: Any) -> "CallApprovalView":
        return cls.of(approval, state=approval.state_at(now), **members)


@router.post(_PATH, status_code=202, response_model=CallApprovalView)
async def ask_for_call(body: CallApprovalBody, call: Call) -> Response:
    """Ask a person to approve one call. 202 until it is decided: poll `Location`. The same call again is the
    same request; a denial holds until its deadline.
    """

    async def write(tx: Transaction) -> Response:
        wanted = await call_of(tx, call, body)
        hashed = await hash_of(tx, call.tenant, wanted)
        await tx.take_turns(f"calls to approve:{call.caller.app.id}")
        last = await tx.call_approvals.newest(call.tenant, hashed)
        if last is not None and last.is_answered_by(call.now):
            return _answer(await _view(tx, call, last))
        if await tx.call_approvals.count_waiting(call.tenant, call.caller.app.id) >= MOST_WAITING:
            why = f"{MOST_WAITING} calls of the app wait already: have them decided first."
            raise Failure(ErrorCode.ALREADY_EXISTS, why)
        made = _new_approval(call, body, wanted, hashed, 0 if last is None else last.round + 1)
        await tx.call_approvals.add(made, body.called(wanted))
        await _announce(tx, call, AuditAction.CALL_APPROVAL_REQUESTED, made, call.caller.app)
        return _answer(await _view(tx, call, made))

    return await call.write(write)


@router.post(f"{_PATH}/use")
async def use_approval(body: CallBody, call: Call) -> CallApprovalView:
    """Use up the approval of exactly this call, before making it. 403 `call_approval_required` for a call
    that differs, isn't approved, or was made already.
    """

    async def write(tx: Transaction) -> CallApprovalView:
        wanted = await call_of(tx, call, body)
        used = await use_call_approval(tx, call.tenant, wanted, call.context, call.now)
        return await _view(tx, call, used)

    try:
        view = await call.write(write)
    except Failure as failure:
        if failure.code is ErrorCode.CALL_APPROVAL_REQUIRED:
            metrics.count(CALL_APPROVALS, "refused")
        raise
    metrics.count(CALL_APPROVALS, "used")
    return view


@router.get(_PATH)
async def list_call_approvals(
    call: Call, state: CallApprovalState | None = None, limit: PageLimit = 50, cursor: PageCursor = None
) -> Page[CallApprovalView]:
    """Calls, sorted by id: all of the tenant for an admin or an auditor, else the app's own."""
    listing = call.listing("call-approvals", limit, cursor, state=state)
    mine = None if _may_read_all(call) else call.caller.app.id
    async with call.api.store.read() as tx:
        approvals = await tx.call_approvals.page(
            call.tenant, listing.after, listing.most, app_id=mine, state=state
        )
        views = [await _view(tx, call, approval, with_call=False) for approval in approvals[:limit]]
    return listing.page(views, approvals, lambda approval: approval.id)


@router.get(f"{_PATH}/{{call_approval_id}}", response_model=CallApprovalView)
async def get_call_approval(call_approval_id: str, call: Call) -> Response:
    """What is to be called, and what has become of it: 202 with `Retry-After` while it waits."""
    async with call.api.store.read() as tx:
        return _answer(await _view(tx, call, await _visible(tx, call, call_approval_id)))


@router.post(f"{_PATH}/{{call_approval_id}}/approve")
@dangerous("always", second=False)
async def approve_call(
    call_approval_id: str, call: AdminCall, body: CallDecisionBody | None = None
) -> CallApprovalView:
    """Approve the call as it is stored: it may be made once, within a day. No agent may, nor who asks."""
    call.require_step_up()
    note = None if body is None else body.note

    async def write(tx: Transaction) -> CallApprovalView:
        approval, agent = await _undecided(tx, call, call_approval_id)
        after = approval.approved(call.context.by, call.now, note)
        return await _decide(tx, call, AuditAction.CALL_APPROVAL_APPROVED, after, agent)

    return await call.write(write)


@router.post(f"{_PATH}/{{call_approval_id}}/deny")
async def deny_call(
    call_approval_id: str, call: AdminCall, body: CallDecisionBody | None = None
) -> CallApprovalView:
    """Deny it. The same call isn't asked for again before its deadline."""
    note = None if body is None else body.note

    async def write(tx: Transaction) -> CallApprovalView:
        approval, agent = await _undecided(tx, call, call_approval_id)
        after = approval.denied(call.context.by, call.now, note)
        return await _decide(tx, call, AuditAction.CALL_APPROVAL_DENIED, after, agent)

    return await call.write(write)


def visible_call(called: CalledView | None) -> dict[str, str]:
    """The call's members as text in which nothing is invisible."""
    members: dict[str, Any] = {} if called is None else called.model_dump(exclude_none=True)
    if called is not None and called.headers is not None:
        members["headers"] = "\n".join(f"{header.name}: {header.value}" for header in called.headers)
    return {
        name: visible_text(
            member if isinstance(member, str) else json.dumps(member, indent=2, ensure_ascii=False)
        )
        for name, member in members.items()
    }


def visible_text(text: str) -> str:
    """Controls, and what turns or hides other characters, as their code point."""
    return "".join(
        letter if letter.isprintable() or letter == "\n" else f"[U+{ord(letter):04X}]" for letter in text
    )


# --- steps --------------------------------------------------------------------------------


def _new_approval(
    call: ApiCall, body: CallApprovalBody, wanted: AgentCall, hashed: str, round: int
) -> CallApproval:
    approval = CallApproval(
        tenant=call.tenant,
        id=CallApprovalId(derived_id("cap", call.tenant, hashed, round)),
        app_id=call.caller.app.id,
        connection_id=wanted.connection,
        call_hash=hashed,
        round=round,
        name=wanted.name,
        reason=body.reason,
        requested_by=call.context.by,
        created_at=call.now,
        decide_by=call.now + timedelta(seconds=body.decide_within),
    )
    return approval.awaiting(call.now)


async def _visible(tx: Transaction, call: ApiCall, id: str) -> CallApproval:
    """Raises Failure NOT_FOUND alike for an absent and another app's."""
    approval = require_found(await tx.call_approvals.get(call.tenant, CallApprovalId(id)))
    if approval.app_id != call.caller.app.id and not _may_read_all(call):
        raise Failure(ErrorCode.NOT_FOUND)
    return approval


async def _undecided(tx: Transaction, call: ApiCall, id: str) -> tuple[CallApproval, App]:
    """The request and its agent. Raises Failure NOT_PERMITTED for an agent and for the app that asks;
    INVALID_REQUEST for one that waits no longer."""
    approval = await _visible(tx, call, id)
    agent = require_found(await tx.access.app(call.tenant, approval.app_id))
    decider = call.caller.app
    if decider.is_agent or decider.id == agent.id:
        raise Failure(ErrorCode.NOT_PERMITTED, "A person must decide, or another app that is no agent.")
    state = approval.state_at(call.now)
    if state is not CallApprovalState.WAITING:
        raise invalid_request("call_approval_id", f"It waits no longer: it is {state.value}.")
    return approval, agent


async def _decide(
    tx: Transaction, call: ApiCall, action: AuditAction, after: CallApproval, agent: App
) -> CallApprovalView:
    saved = await tx.call_approvals.replace(after, expected=after.revision)
    await _announce(tx, call, action, saved, agent)
    return await _view(tx, call, saved)


async def _announce(
    tx: Transaction, call: ApiCall, action: AuditAction, approval: CallApproval, agent: App
) -> None:
    """Record it, which sends its event, and have its workflow look at it."""
    await call.record(tx, action, approval.id, **approval.detail(agent.name))
    await tx.outbox.add(call_approval_message(approval, call.context, call.now))
    metrics.count(CALL_APPROVALS, action.rpartition(".")[2])


async def _view(
    tx: Transaction, call: ApiCall, approval: CallApproval, *, with_call: bool = True
) -> CallApprovalView:
    agent = await tx.access.app(call.tenant, approval.app_id)
    connection = await tx.connections.get(call.tenant, ConnectionId(approval.connection_id))
    called = CalledView(**await tx.call_approvals.called(approval)) if with_call else None
    return CallApprovalView.of_approval(
        approval,
        call.now,
        agent="" if agent is None else agent.name,
        sponsor=None if agent is None else agent.sponsor,
        integration="" if connection is None else connection.integration,
        subject="" if connection is None else connection.subject,
        call=called,
    )


def _answer(view: CallApprovalView) -> Response:
    waits = view.state is CallApprovalState.WAITING
    response = CommandResponse.of(view, 202 if waits else 200)
    response.headers["Location"] = f"{_PATH}/{view.id}"
    if waits:
        response.headers["Retry-After"] = str(_POLL_AFTER_S)
    return response


def _may_read_all(call: ApiCall) -> bool:
    return call.may_audit(Target())
