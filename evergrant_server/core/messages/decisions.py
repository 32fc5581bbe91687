"""What crosses Temporal for decisions of people. No secrets; what is asked for is in the store."""

from evergrant_server.core.ids import AccessRequestId, CallApprovalId, PermitId, Tenant
from evergrant_server.core.messages.base import Message, Provenance, Received, RequestMessage


class AdvanceAccessRequest(RequestMessage):
    """The input of a request's run, and the signal that it was decided."""

    tenant: Tenant
    request_id: AccessRequestId


class AccessRequestCall(AdvanceAccessRequest):
    """Take the step of a request that is due."""

    provenance: Provenance


class AdvanceCallApproval(RequestMessage):
    """The input of an approval's run, and the signal that it was decided or used."""

    tenant: Tenant
    approval_id: CallApprovalId


class CallApprovalCall(AdvanceCallApproval):
    """Take the step of an approval that is due."""

    provenance: Provenance


class DecisionProgress(Message):
    """The decision's state; `next_s`: seconds until the next step, None when none follows."""

    state: str
    next_s: float | None = None


class ReviewPermits(Received):
    """Propose permits for removal that no lease has used for long (`EVERGRANT_UNUSED_PERMIT_AFTER`)."""


class ReviewPermitsResult(Message):
    """Counts; `after` is the last permit of the last page, where another worker goes on."""

    reviewed: int = 0
    proposed: int = 0
    after: PermitId | None = None
