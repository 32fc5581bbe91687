"""Reads a transmitter's keys and pins them to the receiver; the API sends no requests (ADR 0008)."""

from temporalio import activity

from activities.support.transactions import commit_with_retries
from evergrant_server.core.clock import Clock
from evergrant_server.core.errors import Failure
from evergrant_server.core.messages.integrations import FetchReceiverKeys, ReceiverKeysResult
from evergrant_server.core.messages.names import ActivityName
from evergrant_server.egress import Egress
from evergrant_server.store import Store, Transaction
from providers.events.keys import fetch_keys


class ReceiverKeysActivities:
    def __init__(self, store: Store, egress: Egress, clock: Clock) -> None:
        self._store = store
        self._egress = egress
        self._clock = clock

    @activity.defn(name=ActivityName.FETCH_RECEIVER_KEYS)
    async def fetch_keys(self, request: FetchReceiverKeys) -> ReceiverKeysResult:
        """Pin the keys in the transmitter's document. If it can't be read, the old keys stay."""
        async with self._store.read() as tx:
            receiver = await tx.receivers.find_in_any_tenant(request.receiver_id)
        if receiver is None or receiver.tenant != request.tenant or receiver.jwks_uri is None:
            return ReceiverKeysResult(problem="the receiver is gone")
        try:
            keys = await fetch_keys(self._egress, receiver.jwks_uri)
            fetched = ReceiverKeysResult(keys=len(keys))
        except Failure as failure:
            keys = None
            fetched = ReceiverKeysResult(problem=failure.detail)

        async def pin(tx: Transaction) -> None:
            current = await tx.receivers.find_in_any_tenant(request.receiver_id)
            if current is None or current.jwks_uri != receiver.jwks_uri:
                return  # changed meanwhile, which started another fetch
            after = current.__replace__(keys_problem=fetched.problem, keys_at=self._clock.now())
            if keys is not None:
                after = after.__replace__(keys=keys)
            await tx.receivers.replace(after, expected=current.revision)

        await commit_with_retries(self._store, pin)
        return fetched
