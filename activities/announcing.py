"""Says ahead that a grant will end which no refresh keeps alive."""

from datetime import datetime

from temporalio import activity

from activities.records import connection_of, record, settled
from evergrant_server import audit
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.clock import Clock
from evergrant_server.core.connection import State
from evergrant_server.core.messages import ActivityName, AnnounceExpiry
from evergrant_server.core.waking import same_end
from evergrant_server.store import Store, Tx


class AnnouncingActivities:
    """Writes the audit record that events are made of. Tells nobody itself."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    @activity.defn(name=ActivityName.ANNOUNCE_EXPIRY)
    async def announce_expiry(self, order: AnnounceExpiry) -> None:
        """Record it, unless the store holds another grant by now, or was told before.

        A run that begins again doesn't know what the one before it has announced.
        """

        async def announce(tx: Tx) -> None:
            current = await connection_of(tx, order)
            grant = await tx.grants.get(order.tenant, order.connection_id)
            if current.state is not State.ACTIVE or grant is None:
                return
            if not any(same_end(order.ends_at, it) for it in (grant.expires_at, grant.refresh_expires_at)):
                return
            if await _announced(tx, order):
                return
            await record(
                tx,
                order,
                AuditAction.CONNECTION_EXPIRING,
                self._clock.now(),
                days=order.days,
                ends_at=order.ends_at.isoformat(),
            )

        await settled(self._store, announce)


async def _announced(tx: Tx, order: AnnounceExpiry) -> bool:
    """As much of this end, or more, was said already."""
    last = await audit.newest(tx, order.tenant, order.connection_id, AuditAction.CONNECTION_EXPIRING)
    if last is None or last.detail["days"] > order.days:
        return False
    return same_end(datetime.fromisoformat(last.detail["ends_at"]), order.ends_at)
