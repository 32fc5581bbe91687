"""The pace of refreshes ahead of one integration: what the provider allows, and what it says is left.

How many were sent is in the store, so all workers keep to one limit. What replies say is each
worker's own, as its circuit breakers are: none depends on another.
"""

import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from activities.support.provider_context import ProviderContext
from evergrant_server.core.clock import Clock
from evergrant_server.core.ids import IntegrationId, Tenant
from evergrant_server.core.single_use.pacing import (
    Pace,
    Share,
    answered,
    postponed,
    wait_for_reset,
    wait_for_share,
)
from evergrant_server.store import Store
from evergrant_server.telemetry import saturation
from providers.responses.raw_reply import RawReply
from providers.responses.remaining import nothing_left_for

_Key = tuple[Tenant, IntegrationId, int, str]  # tenant, integration, its revision, definition
_MAX_PACES = 10_000


@dataclass
class Turn:
    """Whether a refresh is sent now, and what its reply says is left."""

    pacing: "RefreshPacing"
    context: ProviderContext
    postponed_s: float | None = None
    sent_at: float = 0.0

    def sending(self) -> None:
        self.sent_at = self.pacing.elapsed()

    def answered(self, reply: RawReply) -> None:
        """Keep what the reply says. A refusal to serve is the circuit breaker's."""
        if reply.status != 429 and reply.status < 500:
            self.pacing.note(self.context, reply, self.sent_at)


class RefreshPacing:
    """Time and chance are arguments, so that a test can skip a window."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        *,
        elapsed: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._store = store
        self._clock = clock
        self.elapsed = elapsed
        self._chance = chance
        self._paces: dict[_Key, Pace] = {}

    @asynccontextmanager
    async def turn(self, context: ProviderContext, *, may_be_postponed: bool) -> AsyncIterator[Turn]:
        """The turn of a refresh: now, or later."""
        if not may_be_postponed:
            yield Turn(self, context)
            return
        limit = context.spec.token_limit
        key, share = _key(context), None if limit is None else limit.share
        pace = self._of(key)
        self._put(key, replace(pace, running=pace.running + 1))
        try:
            wait, full = wait_for_reset(pace, self.elapsed()), None
            if not wait and share is not None:
                wait, full = wait_for_share(pace, share, await self._age_s(context, share, pace)), share
            yield Turn(self, context, self._postponed_s(context, wait, full) if wait else None)
        finally:
            pace = self._of(key)
            self._put(key, replace(pace, running=max(pace.running - 1, 0)))

    def note(self, context: ProviderContext, reply: RawReply, sent_at: float) -> None:
        """Keep what the reply of a served request says is left."""
        limit = context.spec.token_limit
        if limit is not None and limit.per == "user":
            return
        left = nothing_left_for(reply.headers, context.spec.rate_limit_reset, self._clock.now())
        key = _key(context)
        self._put(key, answered(self._of(key), self.elapsed(), sent_at, context.connection.id, left))

    async def _age_s(self, context: ProviderContext, share: Share, pace: Pace) -> float | None:
        """How long ago the refresh was after which no more of this share fit into a span."""
        back = share.most - pace.running
        if back < 1:
            return None
        integration = context.integration
        async with self._store.read() as tx:
            at = await tx.attempts.newest_refresh(integration.tenant, integration.id, back)
        return None if at is None else (self._clock.now() - at).total_seconds()

    def _postponed_s(self, context: ProviderContext, wait: float, full: Share | None) -> float:
        """`full`: the share of the limit that has no room; None: the provider says that nothing is left."""
        key = _key(context)
        pace, wait = postponed(self._of(key), self.elapsed(), wait, full, self._chance())
        self._put(key, pace)
        why = "nothing_left" if full is None else "limit"
        saturation.count_postponed_refresh(context.spec.name, why)
        return wait

    def _of(self, key: _Key) -> Pace:
        return self._paces.get(key, Pace())

    def _put(self, key: _Key, pace: Pace) -> None:
        """Replace a pace. One that equals a new one needs no memory."""
        self._paces.pop(key, None)
        if pace != Pace():
            if len(self._paces) >= _MAX_PACES:
                self._paces.pop(next(iter(self._paces)))
            self._paces[key] = pace


def _key(context: ProviderContext) -> _Key:
    integration = context.integration
    definition = context.definition.id if context.definition else ""
    return integration.tenant, integration.id, integration.revision, definition
