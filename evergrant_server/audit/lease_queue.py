"""Leases wait for the batch that records them, in fair order.

The order goes tenant by tenant, and app by app within each: an app that sends more than it can be served
waits for itself, and the leases of others pass it.
"""

import asyncio
from collections import Counter, deque
from time import monotonic
from typing import NamedTuple

from evergrant_server.audit.lease_record import LeaseRecord
from evergrant_server.core.ids import AppId, Tenant

LARGEST_BATCH = 64  # more save little of a commit's cost, and each waits for all of them
APP_SHARE = 2  # of one app, while others lease: what it has open doesn't decide how long a batch takes
_OTHERS_S = 5.0  # an app counts as another for as long after its last lease


class WaitingLease(NamedTuple):
    record: LeaseRecord
    done: "asyncio.Future[int]"  # its number in the tree


class LeaseQueue:
    """The leases of one process that wait for a commit. One whose caller has gone is dropped."""

    def __init__(self) -> None:
        self._tenants: dict[Tenant, dict[AppId, deque[WaitingLease]]] = {}
        self._last_app: AppId | None = None
        self._shared_until = 0.0

    def __bool__(self) -> bool:
        return bool(self._tenants)

    def add(self, waiting: WaitingLease) -> None:
        facts = waiting.record.facts
        app = facts.app_id
        if app != self._last_app:
            if self._last_app is not None:
                self._shared_until = monotonic() + _OTHERS_S
            self._last_app = app
        self._tenants.setdefault(facts.tenant, {}).setdefault(app, deque()).append(waiting)

    def take(self) -> list[WaitingLease]:
        """The next batch: one lease of each tenant in turn, of its apps in turn, until each has its share."""
        share = APP_SHARE if monotonic() < self._shared_until else LARGEST_BATCH
        alone = self._of_one_app()
        if alone is not None:
            return self._take_from(alone, share)
        batch: list[WaitingLease] = []
        taken: Counter[AppId] = Counter()
        turns = deque(self._tenants)
        while turns and len(batch) < LARGEST_BATCH:
            tenant = turns.popleft()
            apps = self._tenants.pop(tenant)
            app = next((name for name in apps if taken[name] < share), None)
            if app is not None:
                leases = apps.pop(app)
                lease = _next_awaited(leases)
                if lease is not None:
                    batch.append(lease)
                    taken[app] += 1
                if leases:
                    apps[app] = leases  # behind the tenant's other apps
                if apps:
                    turns.append(tenant)
            if apps:
                self._tenants[tenant] = apps  # behind the other tenants
        return batch

    def _of_one_app(self) -> deque[WaitingLease] | None:
        """All leases that wait, if they are one app's: then there is no turn to find."""
        if len(self._tenants) != 1:
            return None
        (apps,) = self._tenants.values()
        return next(iter(apps.values())) if len(apps) == 1 else None

    def _take_from(self, leases: deque[WaitingLease], most: int) -> list[WaitingLease]:
        batch: list[WaitingLease] = []
        while leases and len(batch) < most:
            waiting = leases.popleft()
            if not waiting.done.done():
                batch.append(waiting)
        if not leases:
            self._tenants.clear()
        return batch

    def take_all(self) -> list[WaitingLease]:
        queued = [lease for apps in self._tenants.values() for leases in apps.values() for lease in leases]
        self._tenants.clear()
        return queued


def _next_awaited(leases: deque[WaitingLease]) -> WaitingLease | None:
    while leases:
        waiting = leases.popleft()
        if not waiting.done.done():
            return waiting
    return None
