"""Reads an issuer's metadata and pins what it says to the integration (RFC 8414)."""

from temporalio import activity

from activities.records import settled
from evergrant_server import audit
from evergrant_server.core.access import IntegrationState
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.clock import Clock
from evergrant_server.core.errors import Code, Failure
from evergrant_server.core.messages import ActivityName, Discover, Discovered
from evergrant_server.egress import Egress
from evergrant_server.store import Store, Tx
from providers.discovery import discover


class DiscoveryActivities:
    def __init__(self, store: Store, egress: Egress, clock: Clock) -> None:
        self._store = store
        self._egress = egress
        self._clock = clock

    @activity.defn(name=ActivityName.DISCOVER)
    async def discover_endpoints(self, order: Discover) -> Discovered:
        """Write READY with the endpoints, or FAILED with the reason, to the integration."""
        async with self._store.read() as tx:
            integration = await tx.integrations.get(order.tenant, order.integration_id)
        if integration is None or integration.issuer is None:
            return Discovered(failure=Code.NOT_FOUND, detail="the integration is gone, or has no issuer")
        try:
            endpoints = await discover(self._egress, integration.issuer)
        except Failure as failure:
            changes = {"state": IntegrationState.FAILED, "problem": failure.detail}
            outcome = Discovered(failure=failure.code, detail=failure.detail)
        else:
            changes = {"state": IntegrationState.READY, "problem": None, "endpoints": endpoints}
            outcome = Discovered()

        async def pin(tx: Tx) -> None:
            now = self._clock.now()
            current = await tx.integrations.get(order.tenant, order.integration_id)
            if current is None or current.issuer != integration.issuer:
                return  # it was changed meanwhile; its own discovery is under way
            await tx.integrations.replace(
                current.model_copy(update={**changes, "changed_at": now}), expected=current.revision
            )
            entry = AuditEntry(
                tenant=order.tenant,
                at=now,
                action=AuditAction.INTEGRATION_DISCOVERED,
                object=order.integration_id,
                asked=order.asked,
                detail={"issuer": integration.issuer, "problem": outcome.failure},
            )
            await audit.append(tx, entry)

        await settled(self._store, pin)
        return outcome
