"""Announces the end of a grant that no refresh extends."""

from datetime import datetime

from temporalio import activity

from activities.support.transactions import append_audit, commit_with_retries, load_connection
from evergrant_server import audit
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.clock import Clock
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.lifecycle.grant_install import is_same_end
from evergrant_server.core.messages.activities import AnnounceExpiry
from evergrant_server.core.messages.base import ActivityName
from evergrant_server.store import Store, Transaction


class ExpiryActivities:
    """Writes the audit record; the event is made of it."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    @activity.defn(name=ActivityName.ANNOUNCE_EXPIRY)
    async def announce_expiry(self, request: AnnounceExpiry) -> None:
        """Record it, unless the store holds another grant by now or it was announced before.

        A workflow run doesn't know what the run before it has announced.
        """

        async def announce(tx: Transaction) -> None:
            current = await load_connection(tx, request)
            grant = await tx.grants.get(request.tenant, request.connection_id)
            if current.state is not LifecycleState.ACTIVE or grant is None:
                return
            if not any(
                is_same_end(request.ends_at, it) for it in (grant.expires_at, grant.refresh_expires_at)
            ):
                return
            if await _is_announced(tx, request):
                return
            await append_audit(
                tx,
                request,
                AuditAction.CONNECTION_EXPIRING,
                self._clock.now(),
                days=request.days,
                ends_at=request.ends_at.isoformat(),
            )

        await commit_with_retries(self._store, announce)


async def _is_announced(tx: Transaction, request: AnnounceExpiry) -> bool:
    """True when this end was announced as many days ahead, or more."""
    last = await audit.newest_record(
        tx, request.tenant, request.connection_id, AuditAction.CONNECTION_EXPIRING
    )
    if last is None or last.detail["days"] > request.days:
        return False
    return is_same_end(datetime.fromisoformat(last.detail["ends_at"]), request.ends_at)
