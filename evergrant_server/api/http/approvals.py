"""The second person: commands that another app must approve before they are carried out.

With EVERGRANT_FOUR_EYES an export, a new API key, and a permit that reaches tokens or the configuration need
the approval of another app with `admin`. The first app sends its command again afterwards.
"""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TypeVar

from pydantic import BaseModel

from evergrant_server.api.http.call import ApiCall
from evergrant_server.core.access import Approval
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ApprovalId, derived_id
from evergrant_server.store import Transaction

T = TypeVar("T")

APPROVAL_TTL = timedelta(days=1)


class _NotApproved(Exception):
    """The command waits for its approval; its transaction is rolled back."""


async def use_approval(tx: Transaction, call: ApiCall, sent: BaseModel | None) -> dict[str, str]:
    """Use up the approval of this command, and return who gave it, for its audit record.

    To be called in the transaction of a command that `with_approval` runs. Empty without
    EVERGRANT_FOUR_EYES. Raises Failure STEP_UP_REQUIRED.
    """
    call.require_step_up()
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
