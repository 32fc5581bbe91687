"""Connections whose refreshes fail: put into a store in bulk, and told to try again."""

from datetime import datetime
from typing import Any

from temporalio.testing import ActivityEnvironment

from activities.integrations.retries import ConnectionRetryActivities
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import new_id
from evergrant_server.core.integrations import Integration
from evergrant_server.core.messages.integrations import RetryConnections
from evergrant_server.core.messages.names import SignalName
from evergrant_server.core.outbox import OutboxKind
from evergrant_server.store import Store
from evergrant_server.store.connections.tables import ConnectionRow
from evergrant_server.store.database.columns import table_of
from evergrant_server.store.database.rows import column_values
from tests.fakes.api import Api
from tests.fakes.rows import a_connection


async def add_failing_connections(
    store: Store, integration: Integration, number: int, at: datetime, **changes: Any
) -> list[Connection]:
    """Connections of one integration, sorted by id, as a wrong client secret leaves them."""
    failing = {
        "state": LifecycleState.ACTIVE,
        "generation": 1,
        "failures": 3,
        "last_failure": ErrorCode.CLIENT_REJECTED,
        "last_failed_at": at,
        "failing_since": at,
        **changes,
    }
    made = [a_connection(integration, at, subject=new_id("con"), **failing) for _ in range(number)]
    async with store.write() as tx:
        await tx.connection.execute(table_of(ConnectionRow).insert(), [column_values(it) for it in made])
    return sorted(made, key=lambda it: it.id)


async def told_to_try_again(api: Api) -> list[str]:
    """The connections whose workflows hear of a change, by a worker too. The outbox is read empty."""
    found = await api.outbox()
    walk = ConnectionRetryActivities(api.worker, api.clock, longest_wait_s=0)
    for message in found:
        if message.kind is OutboxKind.RETRY_CONNECTIONS:
            request = RetryConnections.model_validate(message.payload)
            await ActivityEnvironment().run(walk.retry_connections, request)
    told = [it for it in found + await api.outbox() if it.name == SignalName.PROVIDER_CHANGED]
    return [it.target.rpartition(":")[2] for it in told]
