"""`/v1/approvals`: commands of others that wait for a second admin (`access.approvals`)."""

from datetime import datetime
from typing import Any

from fastapi import APIRouter

from evergrant_server.access.approvals import dangerous, is_second_admin
from evergrant_server.api.http.call import AdminCall, AuditorCall
from evergrant_server.api.http.models import Page, View
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.decisions import Approval
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ApprovalId
from evergrant_server.store import Transaction

router = APIRouter(tags=["apps"])

_MOST_LISTED = 200


class ApprovalView(View):
    """`command` and `body` are the request that waits; `resolves_to` is what its names stand for: ids,
    revisions, issuers and endpoints, for which alone the approval is good. `approved_by` is null until it is
    approved."""

    id: str
    by: str
    command: str
    body: dict[str, Any] | None
    resolves_to: dict[str, Any]
    created_at: datetime
    expires_at: datetime
    approved_by: str | None


@router.get("/v1/approvals")
async def list_approvals(call: AuditorCall) -> Page[ApprovalView]:
    """The commands that wait for an approval, or were approved and not sent again; the 200 oldest."""
    async with call.api.store.read() as tx:
        approvals = await tx.approvals.open(call.tenant, call.now, _MOST_LISTED)
    return Page(items=[ApprovalView.of(approval) for approval in approvals])


@router.post("/v1/approvals/{approval_id}")
@dangerous("always", second=False)
async def approve(approval_id: str, call: AdminCall) -> ApprovalView:
    """Approve a command of another app or person, for what it resolves to. Who sent it may send it again,
    once, until `expires_at`. No agent may approve. Idempotent.
    """
    call.require_step_up()

    async def write(tx: Transaction) -> Approval:
        approval = await tx.approvals.get(call.tenant, ApprovalId(approval_id))
        if approval is None or not approval.is_open(call.now):
            raise Failure(ErrorCode.NOT_FOUND, "There is no such command, or it waits no longer.")
        if approval.app_id == call.caller.app.id or not await is_second_admin(tx, call, approval.by):
            why = "Another admin must approve it: no agent, nor who answers for the agent that sent it."
            raise Failure(ErrorCode.NOT_PERMITTED, why)
        if approval.approved_by is not None:
            return approval
        approved = approval.__replace__(approved_by=call.context.by)
        await tx.approvals.put(approved, expected=approval.revision)
        await call.record(
            tx, AuditAction.APPROVAL_GIVEN, approval.id, command=approval.command, by=approval.by
        )
        return approved

    return ApprovalView.of(await call.write(write))
