"""Requested rotations of keys: their starts in the outbox.

One whose workflow runs already is delivered without an effect: a second one isn't added beside it.
"""

from sqlalchemy import ColumnElement, exists, func, or_, select

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.outbox import OutboxKind, OutboxMessage
from evergrant_server.store import Transaction
from evergrant_server.store.database.columns import table_of
from evergrant_server.store.outbox import OutboxRow

_O = table_of(OutboxRow).c
_UNDELIVERED = _O.delivered_at.is_(None)


async def last_request(tx: Transaction, target: str) -> int:
    """The number of the newest request to this workflow; 0: there is none."""
    newest = select(func.coalesce(func.max(_O.seq), 0)).where(_to(target))
    return (await tx.connection.execute(newest)).scalar_one()


async def add_request(tx: Transaction, message: OutboxMessage, last: int) -> None:
    """Request a rotation that doesn't run, as Temporal has said; `last` was the newest request before that.

    Raises Failure ALREADY_EXISTS when another one came since, or waits.
    """
    await tx.outbox.add(message)  # from here on no other is added
    other = _to(message.target) & (_O.id != message.id) & or_(_UNDELIVERED, _O.seq > last)
    if (await tx.connection.execute(select(exists().where(other)))).scalar_one():
        raise Failure(ErrorCode.ALREADY_EXISTS, "Another rotation of these keys was requested just now.")


def _to(target: str) -> ColumnElement[bool]:
    mine = _O.target == target
    by_index = or_(mine & _UNDELIVERED, mine & ~_UNDELIVERED)  # of two partial ones
    return by_index & (_O.kind == OutboxKind.START_KEY_ROTATION.value)
