"""The tools that call an API, and ask a person to approve one call.

A call is sent as the proxy sends it: the same decision, limits, audit records and echo filter.
"""

import asyncio
from dataclasses import dataclass, field
from typing import Any

from mcp.types import CallToolResult, InputRequiredResult
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Scope

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
from evergrant_server.gateway.proxy.endpoint import PREFIX, ResponseBroken
from evergrant_server.gateway.proxy.headers import passed_headers, values_of
from evergrant_server.gateway.proxy.outgoing import as_text
from evergrant_server.gateway.proxy.target import read_caller_path, target_of_call
from evergrant_server.gateway.tools.arguments import (
    MOST_BODY,
    CallApi,
    GetApproval,
    RequestApproval,
    RequestArguments,
)
from evergrant_server.gateway.tools.elicitation import PersonPage, hold, returned, show_page
from evergrant_server.gateway.tools.tool_call import ToolCall, failed, result

_NO_REASON = "The model gave no reason."
_AGAIN = "Call get_approval until its state is approved, then call_api with the same arguments."
MOST_SHOWN = 64 * 1024  # bytes of a response's body
LONGEST_S = 60.0
_SHOWN_HEADERS = (b"content-type", b"location", b"link", b"retry-after", b"etag", b"last-modified")


async def call_api(tool: ToolCall, arguments: CallApi) -> CallToolResult | InputRequiredResult:
    await _require_own(tool, arguments.connection_id)
    back = await returned(tool)
    if back is not None:
        if not back.opened or not await hold(lambda: _is_decided(tool, back.id)):
            return _refused(tool, await _approval(tool, back.id))
        approval = await _approval(tool, back.id)
        if approval.state is not CallApprovalState.APPROVED:
            return _refused(tool, approval)
    try:
        return result(await send_through_proxy(tool, arguments))
    except Failure as failure:
        if failure.code is not ErrorCode.CALL_APPROVAL_REQUIRED or back is not None:
            raise
    approval = await _ask(tool, arguments, arguments.reason or _NO_REASON)
    if approval.state is not CallApprovalState.WAITING:  # a denial holds until its deadline
        return _refused(tool, approval)
    page = PersonPage(
        approval.id,
        page_of(tool, approval.id),
        f"{approval.agent} wants to send {arguments.method} to {approval.integration}. An admin logs in, "
        "sees the whole request, and approves or denies it.",
        ErrorCode.CALL_APPROVAL_REQUIRED,
    )
    return show_page(tool, page, lambda: _is_decided(tool, approval.id))


async def request_approval(tool: ToolCall, arguments: RequestApproval) -> CallToolResult:
    await _require_own(tool, arguments.connection_id)
    return _shown(tool, await _ask(tool, arguments, arguments.reason))


async def get_approval(tool: ToolCall, arguments: GetApproval) -> CallToolResult:
    return _shown(tool, await _approval(tool, arguments.approval_id))


def page_of(tool: ToolCall, approval_id: str) -> str:
    """Where a person decides."""
    return f"{tool.public_url}/console/call-approvals/{approval_id}"


async def _require_own(tool: ToolCall, connection_id: str) -> None:
    """Raises Failure NOT_FOUND for another subject's connection than the caller's own."""
    if tool.by.subject is not None:
        async with tool.parts.api.store.read() as tx:
            await tool.connection(tx, connection_id)


async def _ask(tool: ToolCall, arguments: RequestArguments, reason: str) -> CallApprovalView:
    """Ask for exactly the call that the proxy would send. Raises Failure."""
    call = tool.call
    row = await tool.parts.api.lease_rows.load(call.tenant, ConnectionId(arguments.connection_id))
    if row is None:
        raise Failure(ErrorCode.NOT_FOUND)
    api = await tool.parts.apis.of(row)
    path = read_caller_path(arguments.method, *arguments.target)
    target = target_of_call(api.base_url, path, hidden_slashes=api.takes.encoded_slashes)
    sent = passed_headers(arguments.own_headers, api.credential_names)
    body = CallApprovalBody(
        connection_id=arguments.connection_id,
        method=arguments.method,
        url=target.url,
        headers=tuple(CallHeader(name=name, value=value) for name, value in as_text(sent)),
        body=arguments.content.decode() or None,
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


def _refused(tool: ToolCall, approval: CallApprovalView) -> CallToolResult:
    """The call wasn't made: what the approval's state is, and what follows."""
    why = f"The approval of this call is {approval.state.value}."
    if approval.state is CallApprovalState.WAITING:
        why += f" {_AGAIN}"
    return failed(Failure(ErrorCode.CALL_APPROVAL_REQUIRED, why), tool.public_url, **_facts(tool, approval))


def _shown(tool: ToolCall, approval: CallApprovalView) -> CallToolResult:
    next_steps = {
        CallApprovalState.WAITING: f"A person decides at page. {_AGAIN}",
        CallApprovalState.APPROVED: "Call call_api with the same arguments, once, before use_by.",
    }
    return result({**_facts(tool, approval), "next_step": next_steps.get(approval.state, "It is over.")})


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


class _Enough(Exception):
    """The response has more than is shown."""


@dataclass
class _Response:
    """Gathers a response as the proxy sends it."""

    status: int = 0
    headers: list[tuple[bytes, bytes]] = field(default_factory=list[tuple[bytes, bytes]])
    body: bytes = b""
    cut: str | None = None  # why it isn't whole

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], list(message["headers"])
            return
        self.body += message.get("body", b"")
        if len(self.body) > MOST_SHOWN:
            self.body = self.body[:MOST_SHOWN]
            raise _Enough

    def members(self) -> dict[str, Any]:
        """What the model is told of it."""
        headers = {
            name.decode(): b", ".join(values).decode("latin-1")
            for name in _SHOWN_HEADERS
            if (values := values_of(name, self.headers))
        }
        body, note = self._text(), None
        if self.cut is not None:
            note = f"The body was cut after {len(self.body)} bytes: {self.cut}. Ask for less of it."
        elif body is None:
            note = f"The body has {len(self.body)} bytes that are no text, and isn't shown."
        return {"status": self.status, "headers": headers, "body": body, "cut": bool(self.cut), "note": note}

    def _text(self) -> str | None:
        """The body, without a character that the cut has halved; None: it is no text."""
        whole = self.body[:-3] if self.cut else self.body
        try:
            text = whole.decode()
        except UnicodeDecodeError as error:
            if not self.cut or error.start < len(whole) - 3:
                return None
            text = whole[: error.start].decode()
        return None if "\0" in text else text


async def send_through_proxy(tool: ToolCall, arguments: CallApi) -> dict[str, Any]:
    """The API's response. Raises Failure."""
    request, content = Request(_scope(tool, arguments)), arguments.content
    if len(content) > MOST_BODY:
        raise Failure(ErrorCode.BODY_TOO_LARGE, f"A body has at most {MOST_BODY} bytes here.", field="body")
    answer, sent = _Response(), False

    async def receive() -> Message:
        nonlocal sent
        if sent:
            await asyncio.Event().wait()  # the caller doesn't leave: this task is cancelled if it does
        sent = True
        return {"type": "http.request", "body": content, "more_body": False}

    try:
        async with asyncio.timeout(LONGEST_S):
            await tool.proxy.serve(request, (tool.by.caller, False), receive, answer.send)
    except _Enough:
        answer.cut = f"at most {MOST_SHOWN} bytes are shown"
    except TimeoutError:
        answer.cut = f"it took longer than {LONGEST_S:.0f} seconds"
    except ResponseBroken:
        answer.cut = "it broke off, or is no longer permitted"
    if not answer.status:
        raise Failure(ErrorCode.PROVIDER_UNREACHABLE, f"No answer within {LONGEST_S:.0f} seconds.")
    return answer.members()


def _scope(tool: ToolCall, arguments: CallApi) -> Scope:
    """The request as it would have come to `/v1/proxy`."""
    path, query = arguments.target
    raw = PREFIX + arguments.connection_id.encode() + b"/" + path
    length = [(b"content-length", str(len(arguments.content)).encode())] if arguments.content else []
    ours = [
        header for header in tool.request.headers.raw if header[0] in (b"authorization", b"x-forwarded-for")
    ]
    changed = {
        "method": arguments.method,
        "path": raw.decode(),
        "raw_path": raw,
        "query_string": query,
        "headers": [*arguments.own_headers, *length, *ours],
    }
    kept = {name: value for name, value in tool.request.scope.items() if name != "state"}
    return {**kept, **changed}
