"""Commands that need a second person: `/v1/approvals`, and the check in the commands themselves.

With EVERGRANT_FOUR_EYES an export, a new API key, and a permit that reaches tokens or the configuration need
the approval of another app with `admin`. The first app sends its command again afterwards.
"""

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any, TypeVar

from fastapi import APIRouter
from pydantic import BaseModel

from evergrant_server.api.http.call import AdminCall, ApiCall
from evergrant_server.api.http.models import Page, View
from evergrant_server.core.access import Approval
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ApprovalId, derived_id
from evergrant_server.store import Transaction

router = APIRouter(tags=["apps"])

T = TypeVar("T")

APPROVAL_TTL = timedelta(days=1)
_MOST_LISTED = 200


class ApprovalView(View):
    """`command` and `body` are the request that waits; `approved_by` is null until it is approved."""

    id: str
    by: str
    command: str
    body: dict[str, Any] | None
    created_at: datetime
    expires_at: datetime
    approved_by: str | None


@router.get("/v1/approvals")
async def list_approvals(call: AdminCall) -> Page[ApprovalView]:
    """The commands that wait for an approval, or were approved and not sent again; the 200 oldest."""
    async with call.api.store.read() as tx:
        found = await tx.approvals.open(call.tenant, call.now, _MOST_LISTED)
    return Page(items=[ApprovalView.of(approval) for approval in found])


@router.post("/v1/approvals/{approval_id}")
async def approve(approval_id: str, call: AdminCall) -> ApprovalView:
    """Approve another app's command. That app may send it again, once, until `expires_at`. Idempotent."""

    async def write(tx: Transaction) -> Approval:
        found = await tx.approvals.get(call.tenant, ApprovalId(approval_id))
        if found is None or not found.is_open(call.now):
            raise Failure(ErrorCode.NOT_FOUND, "There is no such command, or it waits no longer.")
        if found.app_id == call.caller.app.id:
            raise Failure(ErrorCode.NOT_PERMITTED, "Another app must approve it.")
        if found.approved_by is not None:
            return found
        approved = found.model_copy(update={"approved_by": call.context.by})
        await tx.approvals.put(approved, expected=found.revision)
        await call.record(tx, AuditAction.APPROVAL_GIVEN, found.id, command=found.command, by=found.by)
        return approved

    return ApprovalView.of(await call.write(write))


class _NotApproved(Exception):
    """The command waits for its approval; its transaction is rolled back."""


async def use_approval(tx: Transaction, call: ApiCall, sent: BaseModel | None) -> dict[str, str]:
    """Use up the approval of this command, and return who gave it, for its audit record.

    To be called in the transaction of a command that `with_approval` runs. Empty without
    EVERGRANT_FOUR_EYES.
    """
    if not call.api.settings.four_eyes:
        return {}
    found = await tx.approvals.get(call.tenant, _approval_id(call, sent))
    if found is None or found.approved_by is None or not found.is_open(call.now):
        raise _NotApproved
    await tx.approvals.put(found.model_copy(update={"used_at": call.now}), expected=found.revision)
    return {"approved_by": found.approved_by}


async def with_approval(call: ApiCall, sent: BaseModel | None, command: Callable[[], Awaitable[T]]) -> T:
    """Run a command. Raises Failure APPROVAL_REQUIRED, once it is stored, for one that isn't approved."""
    try:
        return await command()
    except _NotApproved:
        approval = await call.write(lambda tx: _request(tx, call, sent))
    raise Failure(ErrorCode.APPROVAL_REQUIRED, approval_id=approval.id)


async def _request(tx: Transaction, call: ApiCall, sent: BaseModel | None) -> Approval:
    """The approval that the command waits for, stored if there is none."""
    id = _approval_id(call, sent)
    before = await tx.approvals.get(call.tenant, id)
    if before is not None and before.is_open(call.now):
        return before
    approval = Approval(
        tenant=call.tenant,
        id=id,
        app_id=call.caller.app.id,
        by=call.context.by,
        command=f"{call.request.method} {call.request.url.path}",
        body=None if sent is None else sent.model_dump(mode="json"),
        created_at=call.now,
        expires_at=call.now + APPROVAL_TTL,
    )
    await tx.approvals.put(approval, expected=None if before is None else before.revision)
    await call.record(tx, AuditAction.APPROVAL_REQUESTED, id, command=approval.command)
    return approval


def _approval_id(call: ApiCall, sent: BaseModel | None) -> ApprovalId:
    return ApprovalId(derived_id("apr", call.tenant, call.caller.app.id, call.request_hash(sent)))
