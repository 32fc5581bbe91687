"""Tells failing connections to try again after a change, a page in a transaction.

The message to a connection has an id that is derived from the change's: a page that a worker wrote
before it died is not written again.
"""

import asyncio
import logging

from temporalio import activity

from activities.support.temporal import heartbeating
from evergrant_server.core.clock import Clock, seconds_since_boot
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.ids import OutboxId, derived_id
from evergrant_server.core.messages.connection import ProviderChanged
from evergrant_server.core.messages.integrations import RetryConnections, RetryConnectionsResult
from evergrant_server.core.messages.names import ActivityName, SignalName
from evergrant_server.core.outbox import OutboxMessage, signal_message
from evergrant_server.store import Store
from evergrant_server.store.connections.connection_page import ConnectionPage
from evergrant_server.telemetry.metrics import report_unreadable

log = logging.getLogger("evergrant.activities")

_PAGE_ROWS = 200
_LONGEST_WAIT_S = 10.0  # for the deliveries of a page: one that is postponed doesn't stop the walk
_POLL_INTERVAL_S = 0.2


class ConnectionRetryActivities:
    """Walks the connections by id, and waits for a page's deliveries before the next page.

    So a message of another connection, such as a revocation, waits behind one page at the most.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        *,
        page_rows: int = _PAGE_ROWS,
        longest_wait_s: float = _LONGEST_WAIT_S,
    ) -> None:
        self._store = store
        self._clock = clock
        self._page_rows = page_rows
        self._longest_wait_s = longest_wait_s

    @activity.defn(name=ActivityName.RETRY_CONNECTIONS)
    async def retry_connections(self, request: RetryConnections) -> RetryConnectionsResult:
        """Signal every connection once; a try after the first goes on where the last one was."""
        result = _last_heartbeat() or RetryConnectionsResult()
        async with heartbeating(lambda: result):
            more = True
            while more:
                page = await self._page(request, result)
                more, after = page.has_more, page.last or result.after
                report_unreadable(log, ((row.id, row.why) for row in page.unreadable))
                messages = [self._message(request, connection) for connection in page]
                async with self._store.write() as tx:
                    added = [await tx.outbox.add_once(message) for message in messages]
                result = RetryConnectionsResult(signalled=result.signalled + sum(added), after=after)
                activity.heartbeat(result)
                await self._wait_for_deliveries([message.target for message in messages])
        return result

    async def _page(self, request: RetryConnections, result: RetryConnectionsResult) -> ConnectionPage:
        async with self._store.read() as tx:
            if request.integration_id is not None:
                return await tx.connections.failing(
                    request.tenant, request.integration_id, result.after, self._page_rows
                )
            assert request.source_app is not None
            return await tx.connections.waiting_for_source_app(
                request.tenant, request.source_app, result.after, self._page_rows
            )

    def _message(self, request: RetryConnections, connection: Connection) -> OutboxMessage:
        changed = ProviderChanged(version=request.version, context=request.context)
        name, now = SignalName.PROVIDER_CHANGED, self._clock.now()
        message = signal_message(connection.tenant, connection.id, name, changed, now)
        return message.__replace__(id=OutboxId(derived_id("out", request.id, connection.id)))

    async def _wait_for_deliveries(self, targets: list[str]) -> None:
        ends = seconds_since_boot() + self._longest_wait_s
        while seconds_since_boot() < ends:
            async with self._store.read() as tx:
                if not await tx.outbox.targets_with_undelivered(targets):
                    return
            await asyncio.sleep(_POLL_INTERVAL_S)


def _last_heartbeat() -> RetryConnectionsResult | None:
    details = activity.info().heartbeat_details
    return RetryConnectionsResult.model_validate(details[0]) if details else None
