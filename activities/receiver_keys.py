"""Reads a transmitter's keys and pins them to the receiver; the API never calls anybody (ADR 0008)."""

from temporalio import activity

from activities.records import settled
from evergrant_server.core.clock import Clock
from evergrant_server.core.errors import Failure
from evergrant_server.core.receivers import ACTIVITY_FETCH_KEYS, FetchKeys, KeysFetched
from evergrant_server.egress import Egress
from evergrant_server.store import Store, Tx
from providers.events.keys import read_keys


class ReceiverKeysActivities:
    def __init__(self, store: Store, egress: Egress, clock: Clock) -> None:
        self._store = store
        self._egress = egress
        self._clock = clock

    @activity.defn(name=ACTIVITY_FETCH_KEYS)
    async def fetch_keys(self, order: FetchKeys) -> KeysFetched:
        """Pin what the document has now. Keys that can't be read again stay, and the row says why."""
        async with self._store.read() as tx:
            receiver = await tx.receivers.find(order.receiver_id)
        if receiver is None or receiver.tenant != order.tenant or receiver.jwks_uri is None:
            return KeysFetched(problem="the receiver is gone")
        try:
            keys = await read_keys(self._egress, receiver.jwks_uri)
            changes = {"keys": keys, "keys_problem": None}
            fetched = KeysFetched(keys=len(keys))
        except Failure as failure:
            changes = {"keys_problem": failure.detail}
            fetched = KeysFetched(problem=failure.detail)

        async def pin(tx: Tx) -> None:
            current = await tx.receivers.find(order.receiver_id)
            if current is None or current.jwks_uri != receiver.jwks_uri:
                return  # it was changed meanwhile; its own reading is under way
            after = current.model_copy(update={**changes, "keys_at": self._clock.now()})
            await tx.receivers.replace(after, expected=current.revision)

        await settled(self._store, pin)
        return fetched
