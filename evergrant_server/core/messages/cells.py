"""What crosses Temporal for moves between cells. What is moved goes around Temporal."""

from evergrant_server.core.cells.moves import MoveState
from evergrant_server.core.ids import MoveId, Tenant
from evergrant_server.core.messages.base import Message, RequestMessage


class MoveTenant(RequestMessage):
    """The input of the job that carries a side's part of a move out."""

    tenant: Tenant
    move_id: MoveId


class MoveResult(Message):
    """How the move has ended on this side."""

    state: MoveState = MoveState.UNDONE
    root: str = ""
    rows: int = 0
