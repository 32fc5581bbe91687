"""What crosses Temporal for stops of agents. No secrets; what was ordered is in the store."""

from evergrant_server.core.ids import AgentStopId, Tenant
from evergrant_server.core.messages.base import Message, Provenance, RequestMessage


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
