"""How often a provider is asked: the circuit breakers of this process, and the pace of refreshes ahead.

There is one of each for an integration. Each worker has its own, from the replies it saw itself: several
workers probe an outage each; none depends on another. How many refreshes were sent is in the store, so all
workers keep to one limit.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from activities.support.provider_context import ProviderContext
from evergrant_server.core.clock import Clock
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId, IntegrationId, Tenant
from evergrant_server.core.integrations import Integration
from evergrant_server.core.single_use import pacing as paces
from evergrant_server.core.single_use.circuit_breaker import (
    Admission,
    CircuitBreaker,
    admit,
    answered,
    failed,
    released,
)
from evergrant_server.core.single_use.pacing import (
    Pace,
    Share,
    postponed,
    wait_for_reset,
    wait_for_share,
)
from evergrant_server.core.single_use.retry_budget import BreakerRules
from evergrant_server.store import Store
from evergrant_server.telemetry import metrics, saturation
from providers.requests.sender import SendFailed
from providers.responses.raw_reply import RawReply, retry_after
from providers.responses.remaining import nothing_left_for

_BreakerKey = tuple[str, IntegrationId, int, str]  # provider, integration, its revision, definition
_MAX_BREAKERS = 10_000


@dataclass
class BreakerPermit:
    """The permit to send one request; its outcome is reported to the breaker."""

    breakers: "CircuitBreakers"
    key: _BreakerKey
    admission: Admission
    connection: ConnectionId
    reported: bool = False

    def answered(self, answer: RawReply | SendFailed) -> None:
        """Report whether the provider answers."""
        if isinstance(answer, SendFailed):
            if answer.code is ErrorCode.PROVIDER_UNREACHABLE:
                self._report_failure(answer.code, None)
        elif answer.status == 429:
            self._report_failure(ErrorCode.PROVIDER_RATE_LIMITED, retry_after(answer.headers))
        elif answer.status >= 500:
            self._report_failure(ErrorCode.PROVIDER_ERROR, retry_after(answer.headers))
        else:
            breakers, now = self.breakers, self.breakers.elapsed()
            self._report(answered(breakers.of(self.key), now, breakers.rules, self.connection))

    def release(self) -> None:
        """Give the permit back without an outcome, unless one was reported."""
        if not self.reported:
            probe, retry = self.admission.probe, self.admission.retry
            self._report(released(self.breakers.of(self.key), probe=probe, retry=retry))

    def _report_failure(self, code: ErrorCode, retry_after_s: float | None) -> None:
        after = failed(
            self.breakers.of(self.key),
            self.breakers.elapsed(),
            self.breakers.rules,
            code,
            retry_after_s,
            probe=self.admission.probe,
            connection=self.connection,
        )
        self._report(after)

    def _report(self, after: CircuitBreaker) -> None:
        self.reported = True
        self.breakers.put(self.key, after)


class CircuitBreakers:
    """Time and chance are arguments, so that a test can skip an outage."""

    def __init__(
        self,
        rules: BreakerRules,
        *,
        elapsed: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.rules = rules
        self.elapsed = elapsed
        self._random = chance
        self._breakers: dict[_BreakerKey, CircuitBreaker] = {}

    @asynccontextmanager
    async def permit(
        self, integration: Integration, connection: ConnectionId, definition: str = ""
    ) -> AsyncIterator[BreakerPermit]:
        """Wait for a turn of `connection`, if it comes soon. Raises Failure with the code of the
        provider's last failure while it fails for every connection, or for one retry too many.

        Each revision of an integration starts with a closed breaker, since it may be repaired; so
        does each version of a definition, whose faults must not close the way of the one before.
        """
        key = (integration.provider, integration.id, integration.revision, definition)
        self._drop_older_revisions(integration)
        breaker, admission = admit(self.of(key), self.elapsed(), self.rules, self._random(), connection)
        if admission.delay is None:
            raise _suppressed(integration, breaker, admission)
        self.put(key, breaker)
        permit = BreakerPermit(self, key, admission, connection)
        try:
            if admission.delay:
                await asyncio.sleep(admission.delay)
            yield permit
        finally:
            permit.release()

    def of(self, key: _BreakerKey) -> CircuitBreaker:
        return self._breakers.get(key, CircuitBreaker())

    def put(self, key: _BreakerKey, breaker: CircuitBreaker) -> None:
        """Replace a breaker. One that equals a new one needs no memory."""
        before = self._breakers.pop(key, CircuitBreaker())
        if breaker != CircuitBreaker():
            if len(self._breakers) >= _MAX_BREAKERS:
                self._breakers.pop(next(iter(self._breakers)))
            self._breakers[key] = breaker
        if before.opened != breaker.opened:
            metrics.CIRCUITS_OPEN.set(self.count_open(key[0]), {metrics.PROVIDER: key[0]})

    def count_open(self, provider: str) -> int:
        """How many of a provider's integrations are not sent to now."""
        return sum(breaker.opened for key, breaker in self._breakers.items() if key[0] == provider)

    def _drop_older_revisions(self, integration: Integration) -> None:
        """The gauge counts them, and no request uses them any more."""
        older = [key for key in self._breakers if key[1] == integration.id and key[2] < integration.revision]
        for key in older:
            self.put(key, CircuitBreaker())


def _suppressed(integration: Integration, breaker: CircuitBreaker, admission: Admission) -> Failure:
    provider, name = integration.provider, integration.name
    if admission.last_failure is not None:
        why = f"{provider} fails for many connections of {name}; their retries are limited"
    else:
        why = f"{provider} fails for every connection of {name}; nothing is sent to it"
    code = admission.last_failure or breaker.reason or ErrorCode.PROVIDER_ERROR
    return Failure(code, why, retry_after=admission.retry_after)


_PaceKey = tuple[Tenant, IntegrationId, int, str]  # tenant, integration, its revision, definition
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
        self._paces: dict[_PaceKey, Pace] = {}

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
        self._put(key, paces.answered(self._of(key), self.elapsed(), sent_at, context.connection.id, left))

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

    def _of(self, key: _PaceKey) -> Pace:
        return self._paces.get(key, Pace())

    def _put(self, key: _PaceKey, pace: Pace) -> None:
        """Replace a pace. One that equals a new one needs no memory."""
        self._paces.pop(key, None)
        if pace != Pace():
            if len(self._paces) >= _MAX_PACES:
                self._paces.pop(next(iter(self._paces)))
            self._paces[key] = pace


def _key(context: ProviderContext) -> _PaceKey:
    integration = context.integration
    definition = context.definition.id if context.definition else ""
    return integration.tenant, integration.id, integration.revision, definition
