"""The tools that find connections, and ask a person for one."""

from typing import Any

from mcp.types import CallToolResult, InputRequiredResult

from evergrant_server.api.connections.consents import ConnectionWithLink
from evergrant_server.api.connections.create import ConnectionSetup
from evergrant_server.api.connections.models import ConnectionBody, ConnectionView
from evergrant_server.api.connections.routes import list_connections as list_page
from evergrant_server.api.connections.view import connection_view
from evergrant_server.core.access import Action, Effect, Permit
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.consent import Consent, ConsentStatus
from evergrant_server.core.errors import FAILURES, ErrorCode, Failure
from evergrant_server.core.ids import ConsentId
from evergrant_server.gateway.tools.arguments import (
    DescribeConnection,
    ListConnections,
    ListIntegrations,
    RequestConnection,
)
from evergrant_server.gateway.tools.elicitation import PersonPage, hold, returned, show_page
from evergrant_server.gateway.tools.tool_call import ToolCall, failed, result
from evergrant_server.policy import DecisionReason, Target, may_see
from evergrant_server.store import Transaction

MOST_ROWS = 50
_ENDED = "It has ended. Ask for a new one with request_connection."
_NEXT = {
    LifecycleState.PENDING_CONSENT: "The subject has to consent: call request_connection.",
    LifecycleState.NEEDS_REAUTH: "The subject has to consent again: call request_connection.",
    LifecycleState.REVOKING: "Nothing: it is being revoked.",
}


async def list_connections(tool: ToolCall, arguments: ListConnections) -> CallToolResult:
    mine = tool.by.subject
    subject = tool.subject(arguments.subject) if mine is not None else arguments.subject
    page = await list_page(
        tool.call,
        integration=arguments.integration,
        subject=subject,
        state=arguments.state,
        limit=MOST_ROWS,
        cursor=arguments.cursor,
    )
    rows = [_summary(tool, view) for view in page.items]
    return result({"connections": rows, "next_cursor": page.next_cursor})


async def list_integrations(tool: ToolCall, arguments: ListIntegrations) -> CallToolResult:
    """Those at which a permit lets the caller ask for a connection."""
    call = tool.call
    listing = call.listing("mcp integrations", MOST_ROWS, arguments.cursor, app=call.caller.app.id)
    async with call.api.store.read() as tx:
        integrations = await tx.integrations.page(call.tenant, listing.after, listing.most)
    rows = [
        {"integration": integration.name, "provider": integration.provider}
        for integration in integrations[:MOST_ROWS]
        if _may_connect(tool, Target(integration.name, integration.provider, tool.by.subject))
    ]
    next_cursor = listing.next_cursor(integrations, lambda integration: integration.name)
    return result({"integrations": rows, "next_cursor": next_cursor})


async def describe_connection(tool: ToolCall, arguments: DescribeConnection) -> CallToolResult:
    async with tool.parts.api.store.read() as tx:
        connection = await tool.connection(tx, arguments.connection_id)
        view = await connection_view(tx, connection)
    members = {
        **_summary(tool, view),
        "api_base_url": await _api_base_url(tool, connection),
        "requested_scopes": list(view.requested_scopes),
        "token_expires_at": view.expires_at,
        "calls": [_rule(permit) for permit in _permits_for_calls(tool, connection)],
        "next_step": next_step(view),
    }
    return result(members)


async def request_connection(
    tool: ToolCall, arguments: RequestConnection
) -> CallToolResult | InputRequiredResult:
    subject = tool.subject(arguments.subject)
    if (back := await returned(tool)) is not None:
        if back.opened:
            await hold(lambda: _is_over(tool, back.id))
        return await _outcome(tool, back.id)
    wanted = ConnectionBody(
        integration=arguments.integration, subject=subject, label=arguments.label, scopes=arguments.scopes
    )
    opened = await _open(tool, wanted)
    if opened.consent is None or opened.connect_url is None:
        return await _connected(tool, opened.connection)
    id, name = opened.consent.id, tool.by.caller.app.name
    page = PersonPage(
        id,
        opened.connect_url,
        f"{name} asks for access to {arguments.integration}. You log in, see what it asks for, and decide.",
        ErrorCode.CONSENT_REQUIRED,
    )
    return show_page(tool, page, lambda: _is_over(tool, id))


async def _open(tool: ToolCall, wanted: ConnectionBody) -> ConnectionWithLink:
    """The connection, with a link where its subject has to consent, also to further scopes."""
    call = tool.call
    opened = await call.write(lambda tx: ConnectionSetup(call).find_or_create(tx, wanted))
    if opened.connection.state is not LifecycleState.ACTIVE or wanted.scopes is None:
        return opened
    async with call.api.store.read() as tx:
        grant = await tx.grants.get(call.tenant, opened.connection.id)
    if grant is None or set(wanted.scopes) <= set(grant.scopes):
        return opened
    return await call.write(lambda tx: ConnectionSetup(call, step_up=True).find_or_create(tx, wanted))


async def _consent(tx: Transaction, tool: ToolCall, id: str) -> Consent:
    consent = await tx.consents.get(tool.by.caller.tenant, ConsentId(id))
    if consent is None:
        raise Failure(ErrorCode.NOT_FOUND)
    return consent


async def _is_over(tool: ToolCall, id: str) -> bool:
    async with tool.parts.api.store.read() as tx:
        consent = await _consent(tx, tool, id)
    return consent.status in (ConsentStatus.DONE, ConsentStatus.DENIED, ConsentStatus.FAILED)


async def _outcome(tool: ToolCall, id: str) -> CallToolResult:
    """What has become of the consent whose page was shown."""
    async with tool.parts.api.store.read() as tx:
        consent = await _consent(tx, tool, id)
        connection = await tool.connection(tx, consent.connection_id)
    if consent.status is ConsentStatus.DENIED:
        return failed(Failure(ErrorCode.CONSENT_DENIED, connection_id=connection.id), tool.public_url)
    if consent.status is ConsentStatus.FAILED:
        code = ErrorCode(consent.failure or ErrorCode.CALLBACK_INVALID)
        return failed(Failure(code, connection_id=connection.id), tool.public_url)
    return await _connected(tool, connection)


async def _connected(tool: ToolCall, connection: Connection) -> CallToolResult:
    async with tool.parts.api.store.read() as tx:
        view = await connection_view(tx, connection)
    return result({**_summary(tool, view), "next_step": next_step(view)})


def next_step(view: ConnectionView) -> str:
    """Who has to do what before a call works."""
    if view.state is LifecycleState.ACTIVE:
        if view.reason is ErrorCode.CHOICE_REQUIRED:
            return "The subject has to choose an account on the connect page."
        return "None: call_api works."
    if view.state is LifecycleState.PENDING_CONSENT and view.flow.is_client_grant:
        why = view.reason
        return FAILURES[why].repair if why else "Wait: a worker gets the first token."
    return _NEXT.get(view.state, _ENDED)


def _summary(tool: ToolCall, view: ConnectionView) -> dict[str, Any]:
    target = Target(view.integration, view.provider, view.subject, view.id)
    return {
        "connection_id": view.id,
        "integration": view.integration,
        "provider": view.provider,
        "subject": view.subject,
        "label": view.label,
        "state": view.state.value,
        "reason": None if view.reason is None else view.reason.value,
        "scopes": list(view.scopes),
        "may_call": _may_call(tool, target),
    }


async def _api_base_url(tool: ToolCall, connection: Connection) -> str | None:
    row = await tool.parts.api.lease_rows.load(connection.tenant, connection.id)
    if row is None:
        return None
    try:
        return (await tool.parts.apis.of(row)).base_url
    except Failure:  # its definition names none
        return None


def _may_connect(tool: ToolCall, target: Target) -> bool:
    """Whether a permit lets the caller connect at least one subject there."""
    if target.subject is not None:
        return tool.call.allows(Action.CONNECT, target)
    if tool.call.judge(Action.CONNECT, target).reason is DecisionReason.DENIED:
        return False
    connecting = [permit for permit in tool.call.caller.permits if Action.CONNECT in permit.actions]
    of_any = [permit.__replace__(subjects=("*",)) for permit in connecting if permit.effect is Effect.ALLOW]
    return may_see(of_any, target, tool.call.now, tool.call.address)


def _may_call(tool: ToolCall, target: Target) -> bool:
    """Whether a permit allows some request to its API."""
    call = tool.call
    calling = [permit for permit in call.caller.permits if Action.PROXY in permit.actions]
    return call.may_see(target) and may_see(calling, target, call.now, call.address)


def _permits_for_calls(tool: ToolCall, connection: Connection) -> list[Permit]:
    """The permits about calls with this connection, and those that deny some of them."""
    call, target = tool.call, Target.of(connection)
    calling = [permit for permit in call.caller.permits if Action.PROXY in permit.actions]
    return [permit for permit in calling if _is_about(permit, target, tool)]


def _is_about(permit: Permit, target: Target, tool: ToolCall) -> bool:
    as_allow = permit.__replace__(effect=Effect.ALLOW)
    return may_see([as_allow], target, tool.call.now, tool.call.address)


def _rule(permit: Permit) -> dict[str, Any]:
    return {
        "effect": permit.effect.value,
        "methods": list(permit.methods) if permit.methods else "every method",
        "paths": list(permit.paths) if permit.paths else "every path",
        "needs_approval": permit.call_approval,
    }
