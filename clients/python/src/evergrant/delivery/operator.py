"""The operator: an order of a namespace is a delivery, from its first sight until it is gone."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from evergrant.delivery.delivery import Delivery, Look, Pace
from evergrant.delivery.kubernetes import (
    Cluster,
    ClusterError,
    ClusterOrder,
    OrderError,
    TokenSecret,
    order_of,
    tell,
    watch_orders,
)
from evergrant.errors import EvergrantError
from evergrant.sync_client import Evergrant

_LIST_EVERY_S = 60.0  # also without a change that was watched
_AFTER_FAILURE_S = 5.0
Json = Mapping[str, Any]
Say = Callable[[str], None]


@dataclass
class _Delivered:
    """An order that is carried out. `due` is when it is looked at next, by the monotonic clock."""

    ordered: ClusterOrder
    item: Json
    delivery: Delivery
    due: float = 0.0


class Operator:
    """Carries out the orders of one namespace. Belongs to one thread."""

    def __init__(
        self,
        client: Evergrant,
        cluster: Cluster,
        pace: Pace,
        say: Say,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client, self._cluster, self._pace, self._say, self._clock = client, cluster, pace, say, clock
        self._delivered: dict[str, _Delivered] = {}
        self._listed_at: float | None = None

    def run(self, stop: threading.Event, wake: threading.Event) -> None:
        """Carry out orders until `stop`, which sets `wake` too."""
        arguments = (self._cluster, wake, stop)
        threading.Thread(target=watch_orders, args=arguments, name="watch", daemon=True).start()
        changed = True
        while not stop.is_set():
            wake.clear()  # before the orders are read
            changed = wake.wait(self.round(changed=changed))

    def round(self, *, changed: bool) -> float:
        """Read the orders, if they have `changed` or it is time, and look at all that is due.

        Returns the seconds until the next one.
        """
        now = self._clock()
        is_first = self._listed_at is None
        if changed or self._listed_at is None or now - self._listed_at >= _LIST_EVERY_S:
            try:
                self._read_orders()
                if is_first:
                    self._delete_orphans()
                self._listed_at = now
            except ClusterError as error:
                self._say(str(error))
                return _AFTER_FAILURE_S
        for delivered in list(self._delivered.values()):
            if delivered.due <= now:
                delivered.due = now + self._look(delivered)
        soonest = min((delivered.due for delivered in self._delivered.values()), default=now + _LIST_EVERY_S)
        return max(0.0, min(soonest, now + _LIST_EVERY_S) - self._clock())

    def _read_orders(self) -> None:
        items, _ = self._cluster.orders()
        orders: dict[str, tuple[ClusterOrder, Json]] = {}
        for item in items:
            try:
                ordered = order_of(item)
                orders[ordered.uid] = ordered, item
            except OrderError as error:
                self._tell(item, error)
        for uid, delivered in list(self._delivered.items()):
            if uid not in orders or orders[uid][0] != delivered.ordered:
                if not self._removed(delivered):
                    continue  # tried again at the next reading
                del self._delivered[uid]
        for uid, (ordered, item) in orders.items():
            if uid in self._delivered:
                self._delivered[uid].item = item
                continue
            place = TokenSecret(self._cluster, ordered)
            delivery = Delivery(self._client, ordered.order, place, self._pace)
            self._delivered[uid] = _Delivered(ordered, item, delivery)

    def _removed(self, delivered: _Delivered) -> bool:
        """Delete what was written for an order that is gone, or that is another one now."""
        try:
            if delivered.delivery.place.remove():
                self._say(f"deleted {delivered.ordered.secret}: its order is gone, or another one")
        except ClusterError as error:
            self._say(str(error))
            return False
        except OrderError:
            pass  # it belongs to somebody else by now
        return True

    def _delete_orphans(self) -> None:
        """Delete what was written for orders that have gone while no operator ran. Raises ClusterError."""
        for secret in self._cluster.written():
            metadata = cast(Json, secret["metadata"])
            owners = {owner.get("uid") for owner in cast(list[Json], metadata.get("ownerReferences") or [])}
            if not owners & self._delivered.keys():
                self._cluster.delete(
                    str(metadata["name"]), str(metadata["uid"]), str(metadata["resourceVersion"])
                )
                self._say(f"deleted {metadata['name']}: its order is gone")

    def _look(self, delivered: _Delivered) -> float:
        """Look at one order; returns the seconds until the next time. One's failure stops no other."""
        try:
            look = delivered.delivery.look()
        except (OrderError, ClusterError) as error:
            self._tell(delivered.item, error)
            return self._pace.look.total_seconds()
        self._say_look(delivered.ordered, look)
        problem = look.refusal or (look.delay if look.removed else None)
        self._tell(delivered.item, problem)
        return look.wait_s

    def _say_look(self, ordered: ClusterOrder, look: Look) -> None:
        if look.written:
            self._say(f"wrote {ordered.secret} for {ordered.name}")
        if look.removed:
            self._say(f"deleted {ordered.secret}: {look.refusal or look.delay}")

    def _tell(self, item: Json, problem: EvergrantError | None) -> None:
        try:
            tell(self._cluster, item, None if problem is None else f"{problem.code}: {problem.detail}"[:500])
        except ClusterError as error:
            self._say(str(error))
