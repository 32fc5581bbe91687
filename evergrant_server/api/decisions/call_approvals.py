"""`/v1/call-approvals`: an agent asks for one call, a person decides, and the call is made once."""

import hashlib
from datetime import datetime, timedelta
from typing import Annotated, Any, Self

from fastapi import APIRouter
from pydantic import AfterValidator, Field, model_validator
from starlette.responses import Response

from evergrant_server.access.approvals import dangerous
from evergrant_server.access.context import integration_spec
from evergrant_server.api.http.call import AdminCall, ApiCall, Call, CommandResponse
from evergrant_server.api.http.models import (
    Body,
    Page,
    PageCursor,
    PageLimit,
    StorableText,
    Text,
    View,
    _printable,
    request_url,
)
from evergrant_server.audit.decisions import hash_of, use_call_approval
from evergrant_server.core.access import Action, App
from evergrant_server.core.agents.calls import AgentCall, covered_headers, covered_params
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.decisions import CallApproval, CallApprovalState
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AppId, CallApprovalId, ConnectionId, derived_id, is_id
from evergrant_server.core.outbox import call_approval_message
from evergrant_server.policy import Target, may_see
from evergrant_server.problems import invalid_request, require_found
from evergrant_server.store import Transaction
from evergrant_server.telemetry import metrics
from evergrant_server.telemetry.agents import CALL_APPROVALS
from providers.definition.templates import protected_resource_url, server_address

router = APIRouter(tags=["agents"])

MOST_WAITING = 50  # of one app
_PATH = "/v1/call-approvals"
_SHORTEST, _LONGEST, _USUAL = timedelta(minutes=1), timedelta(days=30), timedelta(days=3)
_LONGEST_BODY = 64 * 1024
_MOST_HEADERS = 100
_HEADER_NAME = r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,200}$"  # RFC 9110 section 5.6.2
_HEADER_VALUE = "^[\\t -~\u0080-\u00ff]{0,8000}$"  # section 5.5; a character stands for a byte
_CREDENTIALS = frozenset({"authorization", "proxy-authorization", "cookie"})
_POLL_AFTER_S = 2
_CALLS = frozenset({Action.PROXY, Action.TOKEN})


def _connection_id(value: str) -> str:
    if not is_id(value, "con"):
        raise ValueError("is not the id of a connection")
    return value


def _header_name(value: str) -> str:
    if value.lower() in _CREDENTIALS:
        raise ValueError("is a credential, which is no part of a call: leave it out")
    return value


class CallHeader(Body):
    """A header of a call. Two lines of one name are two headers."""

    name: Annotated[str, Field(pattern=_HEADER_NAME), AfterValidator(_header_name)]
    value: Annotated[str, Field(pattern=_HEADER_VALUE)]


class CallBody(Body):
    """One call with a connection: `method`, `url`, `headers` and `body`; or a `tool` of an MCP server, its
    `arguments`, and `params` for what is beside them in the message's `params`, such as `_meta` and `task`.

    Neutral headers, such as User-Agent, may be left out. Of a body that the approver needn't read, or that is
    no text, `body_sha256` is enough: its SHA-256 in hex. A tool's `url` is its server's: by default the
    connection's.
    """

    connection_id: Annotated[str, AfterValidator(_connection_id)]
    method: Annotated[str, Field(pattern="^[A-Z]{1,20}$")] | None = None
    url: Annotated[str, Field(max_length=8000), AfterValidator(request_url)] | None = None
    headers: Annotated[tuple[CallHeader, ...], Field(max_length=_MOST_HEADERS)] = ()
    body: Annotated[StorableText, Field(max_length=_LONGEST_BODY)] | None = None
    body_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    tool: Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_printable)] | None = None
    arguments: dict[str, Any] | None = None
    params: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _is_one_call(self) -> Self:
        is_request = self.method is not None and self.url is not None
        is_tool = self.tool is not None
        of_request, of_tool = (self.method, self.body, self.body_sha256), (self.arguments, self.params)
        of_the_other = of_request if is_tool else of_tool
        if not (is_request or is_tool) or any(member is not None for member in of_the_other):
            raise ValueError("needs method and url, or a tool with its arguments")
        if not {"name", "arguments"}.isdisjoint(self.params or ()):
            raise ValueError("params has what is beside name and arguments: these are tool and arguments")
        if self.body is not None and self.body_sha256 is not None:
            raise ValueError("body and body_sha256 say the same: send one of them")
        return self

    def called(self, call: AgentCall) -> dict[str, Any]:
        """What an approver is shown: all that the call's hash is over, with its body where that is known."""
        beside = {
            name: value for name, value in (call.params or {}).items() if name not in ("name", "arguments")
        }
        shown = {
            **self.model_dump(include={"method", "body", "body_sha256", "tool", "arguments"}),
            "url": call.url,
            "headers": [{"name": name, "value": value} for name, value in call.headers] or None,
            "params": beside or None,
        }
        return {name: value for name, value in shown.items() if value is not None}

    def by(self, agent: AppId, connection: Connection, server_url: str | None) -> AgentCall:
        """The call as this agent makes it. `server_url`: of the connection's MCP server."""
        is_tool = self.tool is not None
        digest = hashlib.sha256(self.body.encode()).hexdigest() if self.body else None
        params = {**(self.params or {}), "name": self.tool, "arguments": self.arguments}
        return AgentCall(
            agent=agent,
            subject=connection.subject,
            connection=connection.id,
            method=self.method,
            url=self.url or server_url,
            headers=covered_headers(
                ((header.name, header.value) for header in self.headers), of_tool=is_tool
            ),
            body_sha256=digest or self.body_sha256,
            params=covered_params(params) if is_tool else None,
        )


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
        wanted = await _call_of(tx, call, body)
        hashed = await hash_of(tx, call.tenant, wanted)
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
        wanted = await _call_of(tx, call, body)
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
    bound = {"list": "call-approvals", "state": state}
    after = call.cursors.decode(cursor, call.tenant, **bound)
    mine = None if _may_read_all(call) else call.caller.app.id
    async with call.api.store.read() as tx:
        approvals = await tx.call_approvals.page(call.tenant, after, limit + 1, app_id=mine, state=state)
        views = [await _view(tx, call, approval, with_call=False) for approval in approvals[:limit]]
    next_cursor = call.cursors.next_cursor(
        approvals, limit, lambda approval: approval.id, call.tenant, **bound
    )
    return Page(items=views, next_cursor=next_cursor)


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


# --- steps --------------------------------------------------------------------------------


async def _call_of(tx: Transaction, call: ApiCall, body: CallBody) -> AgentCall:
    """The call as the caller would make it, with a connection that a permit for calls covers: which requests
    the permit is about is judged when the call is made."""
    if call.caller.session is not None:
        raise invalid_request("connection_id", "A person makes no calls: the agent asks with its own key.")
    connection = await call.visible_connection(tx, body.connection_id)
    calling = [permit for permit in call.caller.permits if not _CALLS.isdisjoint(permit.actions)]
    if not may_see(calling, Target.of(connection), call.now, call.address):
        raise Failure(ErrorCode.NOT_PERMITTED, "This needs the action proxy or token.")
    server_url = None if body.tool is None else await _server_url(tx, call, connection)
    return body.by(call.caller.app.id, connection, server_url)


async def _server_url(tx: Transaction, call: ApiCall, connection: Connection) -> str | None:
    """The connection's MCP server, as the gateway calls it; None for another provider's connection."""
    integration = await tx.integrations.get(call.tenant, connection.integration_id)
    if integration is None:
        return None
    spec = await integration_spec(tx, call.api.registry, integration)
    url = protected_resource_url(spec, integration.params)
    return None if url is None else server_address(url)


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
