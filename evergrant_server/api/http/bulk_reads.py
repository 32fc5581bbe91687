"""The alarm on bulk reads: an app that leases many connections within an hour, or requests an export."""

import logging
from datetime import datetime, timedelta

from evergrant_server.api.http.call import ApiCall
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.ids import AppId, ConnectionId
from evergrant_server.store import Transaction
from evergrant_server.telemetry import metrics
from evergrant_server.telemetry.logs import LogEvent, log_event

log = logging.getLogger("evergrant.api")

PERIOD = timedelta(hours=1)


class LeasedConnections:
    """The connections that each app has leased in the current hour, in this process."""

    def __init__(self, alarm_at: int) -> None:
        """`alarm_at` 0 counts nothing."""
        self._alarm_at = alarm_at
        self._since: datetime | None = None
        self._leased: dict[AppId, set[ConnectionId]] = {}

    def reaches_alarm(self, app_id: AppId, connection_id: ConnectionId, now: datetime) -> bool:
        """Count a lease. True for the one that reaches the limit, once an hour for each app."""
        if not self._alarm_at:
            return False
        if self._since is None or abs(now - self._since) >= PERIOD:
            self._since, self._leased = now, {}
        leased = self._leased.setdefault(app_id, set())
        if len(leased) >= self._alarm_at or connection_id in leased:
            return False
        leased.add(connection_id)
        return len(leased) == self._alarm_at


async def alarm(tx: Transaction, call: ApiCall, kind: str, **detail: object) -> None:
    """Record a bulk read of the caller, which notifies webhooks, and log and count it."""
    app = call.caller.app
    await call.record(tx, AuditAction.BULK_READ, app.id, app=app.name, kind=kind, **detail)
    log_event(log, logging.WARNING, LogEvent.BULK_READ, f"{kind} by the app {app.name}", object=app.id)
    metrics.count(metrics.BULK_READS, kind)
