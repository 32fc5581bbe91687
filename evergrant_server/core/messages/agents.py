"""What crosses Temporal for agents. No secrets; what is called, and what was ordered, is in the store."""

from evergrant_server.core.ids import AgentStopId, CallApprovalId, Tenant
from evergrant_server.core.messages.base import Message, Provenance, RequestMessage


class AdvanceCallApproval(RequestMessage):
    """The input of an approval's run, and the signal that it was decided or used."""

    tenant: Tenant
    approval_id: CallApprovalId


class CallApprovalCall(AdvanceCallApproval):
    """Take the step that is due."""

    provenance: Provenance


class CallApprovalProgress(Message):
    """The approval's state; `next_s`: seconds until the next step, None when none follows."""

    state: str
    next_s: float | None = None


class AgentStopStart(RequestMessage):
    """The input of a stop's run: an order that stands in the store."""

    tenant: Tenant
    stop_id: AgentStopId


class AgentStopCall(AgentStopStart):
    """End the next of what the agent has."""

    provenance: Provenance


class AgentStopProgress(Message):
    """What has been ended so far."""

    approvals_closed: int = 0
    connections_revoked: int = 0
    connections_kept: int = 0
    delegations_ended: int = 0
    finished: bool = False
