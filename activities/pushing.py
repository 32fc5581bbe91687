"""Pushes authorization requests: what a browser waits for is asked by a worker (ADR 0008, ADR 0016)."""

from temporalio import activity

from activities.client_secrets import with_either_secret
from activities.heartbeat import heartbeats
from activities.holdings import Holder, Holdings
from activities.records import settled
from evergrant_server import audit
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.clock import Clock
from evergrant_server.core.consent import Consent
from evergrant_server.core.errors import Failure, Kind
from evergrant_server.core.pushing import ACTIVITY_PUSH_REQUEST, Pushed, PushedRequest, PushRequest
from evergrant_server.store import Store, Tx
from providers.flows import Sender
from providers.pushing import push_request, read_pushed


class PushActivities:
    """Needs a sender and our client's credentials; spends nothing, so it needs no attempt."""

    def __init__(self, store: Store, holder: Holder, sender: Sender, clock: Clock) -> None:
        self._store = store
        self._holder = holder
        self._sender = sender
        self._clock = clock

    @activity.defn(name=ACTIVITY_PUSH_REQUEST)
    async def push_request(self, order: PushRequest) -> Pushed:
        """Write the reference, or why there is none, beside the consent that waits for it."""
        async with heartbeats():
            async with self._store.read() as tx:
                consent = await self._waiting(tx, order)
                if consent is None:
                    return Pushed(superseded=True)
                asked = await tx.consents.request(consent)
            try:
                held = (await self._holder.take(order.tenant, order.connection_id)).believed()
                outcome, _ = await with_either_secret(held, lambda it: self._pushed(it, asked))
            except Failure as failure:
                if failure.kind is Kind.PLATFORM_UNAVAILABLE:
                    raise  # Temporal asks again
                outcome = PushedRequest(failure=failure)
            return await self._written(order, outcome)

    async def _pushed(self, held: Holdings, asked: PushedRequest) -> PushedRequest:
        request = push_request(held.spec, held.endpoints, held.client, asked.fields)
        sent_at = self._clock.now()  # its life is counted from before it began
        reply = await self._sender.mint(held.spec, held.client, request)
        return read_pushed(held.spec, reply, sent_at)

    async def _written(self, order: PushRequest, outcome: PushedRequest) -> Pushed:
        failure = outcome.failure

        async def write(tx: Tx) -> Pushed:
            current = await self._waiting(tx, order)
            if current is None:
                return Pushed(superseded=True)
            await tx.consents.replace(current, expected=order.revision, request=outcome)
            if failure is not None:
                entry = AuditEntry(
                    tenant=order.tenant,
                    at=self._clock.now(),
                    action=AuditAction.CONSENT_FAILED,
                    object=order.connection_id,
                    asked=order.asked,
                    detail={"reason": failure.code, "consent": order.consent_id, "pushed": False},
                )
                await audit.append(tx, entry)
            return Pushed(failure=failure.code if failure else None)

        return await settled(self._store, write)

    @staticmethod
    async def _waiting(tx: Tx, order: PushRequest) -> Consent | None:
        """The consent, while the click that asked for this is the newest one."""
        consent = await tx.consents.get(order.tenant, order.consent_id)
        return consent if consent is not None and consent.is_begun(order.revision) else None
