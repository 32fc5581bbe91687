"""Write transactions that are repeated after a conflict, and the audit records and messages in them.

API and workers share only the store (ADR 0008): the API polls a row until a worker has changed it.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, TypeVar

from evergrant_server import audit
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import Tenant
from evergrant_server.core.messages.base import Message, RequestContext
from evergrant_server.core.outbox import signal_message
from evergrant_server.store import Store, Transaction

T = TypeVar("T")
ATTEMPTS = 4
_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.001, 0.05
_POLL_INTERVAL_S = 0.1


async def run_transaction(
    store: Store, work: Callable[[Transaction], Awaitable[T]], *, tries: int = ATTEMPTS
) -> T:
    """Run `work` in a write transaction, and again after a conflict.

    `work` reads its input inside the transaction, so that a repetition sees the conflicting write.
    Raises Failure STORE_CONFLICT after `tries`, and those of `work`.
    """
    for attempt in range(1, tries + 1):
        try:
            async with store.write() as tx:
                return await work(tx)
        except Failure as failure:
            if failure.code is not ErrorCode.STORE_CONFLICT or attempt == tries:
                raise
        await asyncio.sleep(random.uniform(0, min(_FIRST_PAUSE_S * 2**attempt, _MAX_PAUSE_S)))
    raise AssertionError("unreachable")


class _RolledBack(Exception):
    """Ends a transaction whose result is wanted, and none of its changes."""

    def __init__(self, result: Any) -> None:
        super().__init__()
        self.result = result


async def run_rolled_back(
    store: Store, work: Callable[[Transaction], Awaitable[T]], *, tries: int = ATTEMPTS
) -> T:
    """As `run_transaction`, and nothing is kept of what `work` writes."""

    async def undone(tx: Transaction) -> T:
        raise _RolledBack(await work(tx))

    try:
        return await run_transaction(store, undone, tries=tries)
    except _RolledBack as transaction:
        return transaction.result


async def poll_until(read: Callable[[], Awaitable[T]], done: Callable[[T], bool], longest: float) -> T:
    """The first value of `read` that is `done`, or the last one after `longest` seconds."""
    ends = asyncio.get_running_loop().time() + longest
    while True:
        value = await read()
        if done(value) or asyncio.get_running_loop().time() >= ends:
            return value
        await asyncio.sleep(_POLL_INTERVAL_S)


async def record(
    tx: Transaction,
    tenant: Tenant,
    action: AuditAction,
    object_id: str,
    context: RequestContext,
    at: datetime,
    /,
    **detail: object,
) -> None:
    """Append one audit record about the object with this id. `detail` must hold no secret."""
    entry = AuditEntry(tenant=tenant, at=at, action=action, object=object_id, context=context, detail=detail)
    await audit.append(tx, entry)


async def signal_connection(
    tx: Transaction, connection: Connection, name: str, message: Message, at: datetime
) -> None:
    """Have the connection's workflow signalled once the transaction is committed."""
    await tx.outbox.add(signal_message(connection.tenant, connection.id, name, message, at))
