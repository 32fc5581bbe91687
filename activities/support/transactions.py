"""Transactions that must commit, and the rows that most of them write."""

import asyncio
import logging
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
from evergrant_server.telemetry.logs import LogEvent, log_event

log = logging.getLogger("evergrant.activities")

T = TypeVar("T")

_FIRST_WAIT_S, _MAX_WAIT_S = 0.05, 5.0
_MAX_CONFLICTS = 10  # in a row: about 16 seconds. A race ends by the second or third
_LOG_EVERY = 10  # tries while the store is unavailable: under a minute


async def commit_with_retries(
    store: Store, work: Callable[[Transaction], Awaitable[T]], keys: UnwrappedKeys | None = None
) -> T:
    """Run `work` in a write transaction until it commits.

    After a conflict `work` reads the rows again; raises Failure INTERNAL once the store has refused it
    ten times in a row, for then no other change is the cause. A reply in hand stays in the journal. An
    unavailable store is waited for: that reply can't be requested twice. `keys` were unwrapped before it
    came, so that an unavailable key service is not waited for.
    """
    wait, conflicts, tries = _FIRST_WAIT_S, 0, 0
    while True:
        try:
            async with store.write(keys) as tx:
                return await work(tx)
        except Failure as failure:
            if failure.code not in (ErrorCode.STORE_CONFLICT, ErrorCode.STORE_UNAVAILABLE):
                raise
            tries += 1
            conflicts = conflicts + 1 if failure.code is ErrorCode.STORE_CONFLICT else 0
            if conflicts >= _MAX_CONFLICTS:
                detail = f"the store refuses the change each time: {failure.detail}"
                raise Failure(ErrorCode.INTERNAL, detail) from None
            if tries % _LOG_EVERY == 0:
                log_event(log, logging.WARNING, LogEvent.COMMIT_WAITS, failure.detail, code=failure.code)
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
    return await close_read(tx, await tx.attempts.get(attempt.tenant, attempt.id), outcome, at)


async def close_read(tx: Transaction, now: Attempt | None, outcome: AttemptOutcome, at: datetime) -> bool:
    """As `close_attempt`, for a row that this transaction has read."""
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
