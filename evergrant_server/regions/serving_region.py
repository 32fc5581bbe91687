"""This process's view of the regions: what refreshes and leases wait for, and who may serve.

`Region` exists only where `EVERGRANT_REGION` is set. While it is running it renews the authority, reads which
tenants' leases wait, and notices that the other region has gone or come back.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import Tenant
from evergrant_server.regions.barrier import Barrier, NotConfirmed
from evergrant_server.store import Store
from evergrant_server.store.database.engine import Pool
from evergrant_server.store.regions import Authority
from evergrant_server.telemetry import metrics
from evergrant_server.telemetry.logs import LogEvent, log_event

log = logging.getLogger("evergrant.regions")

_LOOK_S = 1.0  # between two looks at the row, and two barriers while the other region is away
_RENEWALS = 3  # in the time of an authority
_UNBOUND_RENEWAL_S = 5.0  # without a bound the row says when the other region last confirmed
_RETRY_AFTER_S = 1.0


@dataclass(frozen=True)
class RegionRules:
    """What the settings say."""

    name: str
    wait: timedelta
    stops_when_away: bool = False
    authority: timedelta = timedelta(0)
    durable_by_default: bool = False


class Region:
    """One per process; belongs to one event loop."""

    def __init__(self, store: Store, rules: RegionRules) -> None:
        self.rules, self.name = rules, rules.name
        self._store = store.in_pool(Pool.BACKGROUND)
        self.barrier = Barrier(store, rules.wait.total_seconds())
        self._away = ""  # why the other region counts as away; empty: it confirms
        self._standalone = False
        self._chosen: dict[Tenant, str] = {}
        self.sent_alone = 0  # credentials of this process that the other region doesn't know of

    async def confirmed(self) -> None:
        """Return once the other region has what was committed before this call, or this one goes on alone.

        Raises Failure REGION_FENCED when this region may not serve any more, REGION_AWAY when the other one
        is away and the settings say to stop, STORE_UNAVAILABLE.
        """
        if not (self._away or self._standalone) and await self._passes():
            return
        authority = await self.look()
        if authority is None or not authority.lets(self.name):
            raise fenced(self.name, authority)
        if authority.standalone:
            return
        if self.rules.stops_when_away:
            raise Failure(ErrorCode.REGION_AWAY, f"It is away: {self._away}.", retry_after=_RETRY_AFTER_S)
        self.sent_alone += 1
        metrics.REGION_ALONE.add(1)

    async def unconfirmed(self) -> str:
        """Why the other region may not have what was committed before this call; empty: it has."""
        if not self._away:
            await self._passes()
        return self._away

    async def has_all(self) -> bool:
        """Whether the other region has what was committed before this call, or nobody waits for it. False:
        the settings say to wait, so a journal keeps what it has."""
        if not (self._away or self._standalone) and await self._passes():
            return True
        return self._standalone or not self.rules.stops_when_away

    def waits_for(self, tenant: Tenant) -> bool:
        """Whether the leases of this tenant wait until the other region has their audit records."""
        default = "region" if self.rules.durable_by_default else "local"
        return not self._standalone and self._chosen.get(tenant, default) == "region"

    async def look(self) -> Authority | None:
        """Read the row. Raises Failure STORE_UNAVAILABLE."""
        async with self._store.read() as tx:
            authority = await tx.regions.authority()
            self._chosen = await tx.regions.durabilities()
        self._standalone = authority is not None and authority.standalone
        return authority

    @asynccontextmanager
    async def running(self, *, renews: bool = True) -> AsyncIterator[None]:
        """Renew the authority while the block runs, or only look whether the region has it."""
        task = asyncio.create_task(self._run(self.renew if renews else self.look), name="region")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def is_here(self) -> bool:
        """Whether this region is the one that serves. Not while the store is away."""
        with suppress(Failure):
            authority = await self.look()
            return authority is not None and authority.name == self.name
        return False

    async def renew(self) -> bool:
        """Have the other region confirm, and the authority last from before that on, unless it was renewed a
        moment ago or isn't this region's. Raises Failure STORE_UNAVAILABLE."""
        authority = await self.look()
        if authority is None or authority.name != self.name or authority.standalone:
            return False
        if not self._away and self._is_fresh(authority):
            return False
        if not await self._passes():
            return False
        async with self._store.write() as tx:
            return await tx.regions.renew(authority, self.rules.authority)

    def _is_fresh(self, authority: Authority) -> bool:
        if authority.confirmed_at is None or bool(authority.valid_until) != bool(self.rules.authority):
            return False
        age = (authority.read_at - authority.confirmed_at).total_seconds()
        return age < (self.rules.authority.total_seconds() / _RENEWALS or _UNBOUND_RENEWAL_S)

    async def _run(self, look: Callable[[], Awaitable[object]]) -> None:
        look_s = min(_LOOK_S, self.rules.authority.total_seconds() / (2 * _RENEWALS) or _LOOK_S)
        while True:
            with suppress(Failure):  # while the store is away nothing is leased or refreshed either
                await look()
            await asyncio.sleep(look_s)

    async def _passes(self) -> bool:
        try:
            await self.barrier.passed()
        except NotConfirmed as problem:
            if not self._away:
                log_event(log, logging.ERROR, LogEvent.REGION_AWAY, str(problem), code=ErrorCode.REGION_AWAY)
            self._away = str(problem)
            metrics.REGION_AWAY.set(1)
            return False
        if self._away:
            log_event(log, logging.WARNING, LogEvent.REGION_BACK, f"{self.sent_alone} credentials were sent")
            self.sent_alone = 0
        self._away = ""
        metrics.REGION_AWAY.set(0)
        return True


def fenced(name: str, authority: Authority | None) -> Failure:
    """The failure with which a region without authority answers."""
    if authority is None:
        why = "no region has the authority: python -m evergrant_server region attach gives it to this one"
    elif authority.name != name:
        why = f"{authority.name} has the authority, and this is {name}"
    else:
        why = f"{name} hasn't renewed its authority for {-authority.remaining_s:.0f} s longer than it lasts"
    return Failure(ErrorCode.REGION_FENCED, f"Not served: {why}.", retry_after=_RETRY_AFTER_S)
