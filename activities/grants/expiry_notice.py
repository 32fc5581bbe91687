"""Says ahead that a grant will end which no refresh keeps alive."""

from datetime import datetime

from temporalio import activity

from activities.support.transactions import append_audit, commit_with_retries, load_connection
from evergrant_server import audit
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.clock import Clock
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.lifecycle.timers import is_same_end
from evergrant_server.core.messages.connection import ActivityName, AnnounceExpiry
from evergrant_server.store import Store, Transaction


class ExpiryActivities:
    """Writes the audit record that events are made of. Tells nobody itself."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    @activity.defn(name=ActivityName.ANNOUNCE_EXPIRY)
    async def announce_expiry(self, order: AnnounceExpiry) -> None:
        """Record it, unless the store holds another grant by now, or was told before.

        A run that begins again doesn't know what the one before it has announced.
        """

        async def announce(tx: Transaction) -> None:
            current = await load_connection(tx, order)
            grant = await tx.grants.get(order.tenant, order.connection_id)
            if current.state is not LifecycleState.ACTIVE or grant is None:
                return
            if not any(is_same_end(order.ends_at, it) for it in (grant.expires_at, grant.refresh_expires_at)):
                return
            if await _is_announced(tx, order):
                return
            await append_audit(
                tx,
                order,
                AuditAction.CONNECTION_EXPIRING,
                self._clock.now(),
                days=order.days,
                ends_at=order.ends_at.isoformat(),
            )

        await commit_with_retries(self._store, announce)


async def _is_announced(tx: Transaction, order: AnnounceExpiry) -> bool:
    """As much of this end, or more, was said already."""
    last = await audit.newest_record(tx, order.tenant, order.connection_id, AuditAction.CONNECTION_EXPIRING)
    if last is None or last.detail["days"] > order.days:
        return False
    return is_same_end(datetime.fromisoformat(last.detail["ends_at"]), order.ends_at)
