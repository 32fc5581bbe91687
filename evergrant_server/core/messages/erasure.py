"""What crosses Temporal for erasures. Ids and counts: what was ordered is in the store."""

from evergrant_server.core.connections.erasure import ErasureState
from evergrant_server.core.ids import ErasureId, Tenant
from evergrant_server.core.messages.base import Message, Provenance, RequestMessage


class ErasureStart(RequestMessage):
    """The input of an erasure's run."""

    tenant: Tenant
    erasure_id: ErasureId


class ErasureCall(ErasureStart):
    """Erase the next part."""

    provenance: Provenance


class ErasureProgress(Message):
    """What has been erased so far. `next_s`: seconds until the next look; None: nothing is left."""

    state: ErasureState
    connections: int = 0
    unconfirmed: int = 0
    keys: int = 0
    rows: int = 0
    records: int = 0
    waiting: int = 0
    next_s: float | None = None
