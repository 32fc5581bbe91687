"""What crosses Temporal for incidents and bulk orders. Ids and counts: what was ordered is in the store."""

from evergrant_server.core.connections.incidents import IncidentState
from evergrant_server.core.ids import BulkId, IncidentId, Tenant
from evergrant_server.core.messages.base import Message, Provenance, RequestMessage


class AdvanceIncident(RequestMessage):
    """The input of an incident's run, and the signal that its row has changed."""

    tenant: Tenant
    incident_id: IncidentId


class IncidentCall(AdvanceIncident):
    """Do the next part."""

    provenance: Provenance


class AdvanceBulk(RequestMessage):
    """The input of a bulk order's run, and the signal that its row has changed."""

    tenant: Tenant
    bulk_id: BulkId


class BulkCall(AdvanceBulk):
    """Do the next part."""

    provenance: Provenance


class IncidentProgress(Message):
    """How far it is. `next_s`: seconds until the next look; None: when a signal comes."""

    state: IncidentState
    paused: bool = False
    selected: int = 0
    ended: int = 0
    next_s: float | None = None
