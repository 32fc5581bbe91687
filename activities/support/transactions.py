"""Transactions that must commit, and the rows that most of them write."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TypeVar

from evergrant_server import audit
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.messages.activities import ConnectionCall
from evergrant_server.core.messages.export import ExportCall
from evergrant_server.core.single_use.attempt import Attempt, AttemptOutcome
from evergrant_server.store import Store, Transaction, UnwrappedKeys

T = TypeVar("T")

_MAX_WAIT_S = 5.0


async def commit_with_retries(
    store: Store, work: Callable[[Transaction], Awaitable[T]], keys: UnwrappedKeys | None = None
) -> T:
    """Run `work` in a write transaction until it commits.

    After a conflict `work` reads the rows again. An unavailable store is waited for: the reply in
    hand can't be requested twice. `keys` were unwrapped before it came, so that an unavailable
    key service is not waited for.
    """
    wait = 0.05
    while True:
        try:
            async with store.write(keys) as tx:
                return await work(tx)
        except Failure as failure:
            if failure.code not in (ErrorCode.STORE_CONFLICT, ErrorCode.STORE_UNAVAILABLE):
                raise
        await asyncio.sleep(wait)
        wait = min(wait * 2, _MAX_WAIT_S)


async def append_audit(
    tx: Transaction,
    call: ConnectionCall | ExportCall,
    action: AuditAction,
    at: datetime,
    object_id: str = "",
    /,
    **detail: object,
) -> None:
    """Append an audit record, with the workflow run and event that decided it.

    `object_id` is what it is about, if that isn't the connection of `call`.
    """
    entry = AuditEntry(
        tenant=call.tenant,
        at=at,
        action=action,
        object=object_id or (call.connection_id if isinstance(call, ConnectionCall) else call.export_id),
        context=call.context,
        detail=detail,
        provenance=call.provenance,
    )
    await audit.append(tx, entry)


async def close_attempt(tx: Transaction, attempt: Attempt, outcome: AttemptOutcome, at: datetime) -> bool:
    """Write how an open or unread attempt ended; False when it has ended, as after a takeover."""
    now = await tx.attempts.get(attempt.tenant, attempt.id)
    if now is None or now.outcome not in (None, AttemptOutcome.UNREAD):
        return False
    await tx.attempts.close(now, outcome, at)
    return True


async def is_taken_over(tx: Transaction, attempt: Attempt) -> bool:
    """True when another attempt has sent its credential since."""
    now = await tx.attempts.get(attempt.tenant, attempt.id)
    return now is not None and now.outcome is AttemptOutcome.SUPERSEDED


async def load_connection(tx: Transaction, call: ConnectionCall, *, locked: bool = False) -> Connection:
    """The stored row, locked until `tx` ends if `locked`. Raises Failure NOT_FOUND."""
    read = tx.connections.get_for_update if locked else tx.connections.get
    connection = await read(call.tenant, call.connection_id)
    if connection is None:
        raise Failure(ErrorCode.NOT_FOUND, f"the row of {call.connection_id} is gone")
    return connection
