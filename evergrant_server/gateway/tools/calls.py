"""The tools that call an API, and ask a person to approve one call."""

from typing import Any

from mcp.types import CallToolResult, InputRequiredResult
from starlette.responses import Response

from evergrant_server.api.decisions.call_approvals import (
    CallApprovalBody,
    CallApprovalView,
    ask_for_call,
    get_call_approval,
)
from evergrant_server.api.decisions.calls import CallHeader
from evergrant_server.core.decisions import CallApprovalState
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId
from evergrant_server.gateway.proxy.headers import passed_headers
from evergrant_server.gateway.proxy.outgoing import as_text
from evergrant_server.gateway.proxy.target import read_caller_path, target_of_call
from evergrant_server.gateway.tools.arguments import CallApi, GetApproval, RequestApproval, RequestArguments
from evergrant_server.gateway.tools.elicitation import PersonPage, hold, returned, show_page
from evergrant_server.gateway.tools.through_proxy import send_through_proxy
from evergrant_server.gateway.tools.tool_call import ToolCall, failed, result

_NO_REASON = "The model gave no reason."
_AGAIN = "Call get_approval until its state is approved, then call_api with the same arguments."


async def call_api(tool: ToolCall, given: CallApi) -> CallToolResult | InputRequiredResult:
    await _require_own(tool, given.connection_id)
    back = await returned(tool)
    if back is not None:
        if not back.opened or not await hold(lambda: _is_decided(tool, back.id)):
            return await _undecided(tool, back.id)
        approval = await _approval(tool, back.id)
        if approval.state is not CallApprovalState.APPROVED:
            return _refused(tool, approval)
    try:
        return result(await send_through_proxy(tool, given))
    except Failure as failure:
        if failure.code is not ErrorCode.CALL_APPROVAL_REQUIRED or back is not None:
            raise
    approval = await _ask(tool, given, given.reason or _NO_REASON)
    if approval.state is not CallApprovalState.WAITING:  # a denial holds until its deadline
        return _refused(tool, approval)
    page = PersonPage(
        approval.id,
        page_of(tool, approval.id),
        f"{approval.agent} wants to send {given.method} to {approval.integration}. An admin logs in, "
        "sees the whole request, and approves or denies it.",
        ErrorCode.CALL_APPROVAL_REQUIRED,
    )
    return show_page(tool, page, lambda: _is_decided(tool, approval.id))


async def request_approval(tool: ToolCall, given: RequestApproval) -> CallToolResult:
    await _require_own(tool, given.connection_id)
    return _shown(tool, await _ask(tool, given, given.reason))


async def get_approval(tool: ToolCall, given: GetApproval) -> CallToolResult:
    return _shown(tool, await _approval(tool, given.approval_id))


def page_of(tool: ToolCall, approval_id: str) -> str:
    """Where a person decides."""
    return f"{tool.public_url}/console/call-approvals/{approval_id}"


async def _require_own(tool: ToolCall, connection_id: str) -> None:
    """Raises Failure NOT_FOUND for another subject's connection than the caller's own."""
    if tool.by.subject is not None:
        async with tool.parts.api.store.read() as tx:
            await tool.connection(tx, connection_id)


async def _ask(tool: ToolCall, given: RequestArguments, reason: str) -> CallApprovalView:
    """Ask for exactly the call that the proxy would send. Raises Failure."""
    call = tool.call
    row = await tool.parts.api.lease_rows.load(call.tenant, ConnectionId(given.connection_id))
    if row is None:
        raise Failure(ErrorCode.NOT_FOUND)
    api = await tool.parts.apis.of(row)
    path = read_caller_path(given.method, *given.target)
    target = target_of_call(api.base_url, path, hidden_slashes=api.takes.encoded_slashes)
    sent = passed_headers(given.own_headers, api.credential_names)
    body = CallApprovalBody(
        connection_id=given.connection_id,
        method=given.method,
        url=target.url,
        headers=tuple(CallHeader(name=name, value=value) for name, value in as_text(sent)),
        body=given.content.decode() or None,
        reason=reason,
    )
    return _view(await ask_for_call(body, call))


async def _approval(tool: ToolCall, id: str) -> CallApprovalView:
    view = _view(await get_call_approval(id, tool.call))
    if tool.by.subject not in (None, view.subject):
        raise Failure(ErrorCode.NOT_FOUND)
    return view


def _view(answer: Response) -> CallApprovalView:
    return CallApprovalView.model_validate_json(bytes(answer.body))


async def _is_decided(tool: ToolCall, id: str) -> bool:
    return (await _approval(tool, id)).state is not CallApprovalState.WAITING


async def _undecided(tool: ToolCall, id: str) -> CallToolResult:
    approval = await _approval(tool, id)
    return _refused(tool, approval)


def _refused(tool: ToolCall, approval: CallApprovalView) -> CallToolResult:
    """The call wasn't made: what the approval's state is, and what follows."""
    why = f"The approval of this call is {approval.state.value}."
    if approval.state is CallApprovalState.WAITING:
        why += f" {_AGAIN}"
    return failed(Failure(ErrorCode.CALL_APPROVAL_REQUIRED, why), tool.public_url, **_facts(tool, approval))


def _shown(tool: ToolCall, approval: CallApprovalView) -> CallToolResult:
    said = {
        CallApprovalState.WAITING: f"A person decides at page. {_AGAIN}",
        CallApprovalState.APPROVED: "Call call_api with the same arguments, once, before use_by.",
    }
    return result({**_facts(tool, approval), "next_step": said.get(approval.state, "It is over.")})


def _facts(tool: ToolCall, approval: CallApprovalView) -> dict[str, Any]:
    return {
        "approval_id": approval.id,
        "state": approval.state.value,
        "page": page_of(tool, approval.id),
        "decide_by": approval.decide_by,
        "use_by": approval.use_by,
        "decided_by": approval.decided_by,
        "note": approval.note,
    }
