"""The circuit breakers of this process: one per integration, and the permit to send through one.

Each worker has its own, from the replies it saw itself. Several workers probe an outage each;
none depends on another, or on the store.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId, IntegrationId
from evergrant_server.core.integrations import Integration
from evergrant_server.core.single_use.circuit_breaker import (
    Admission,
    CircuitBreaker,
    admit,
    answered,
    failed,
    released,
)
from evergrant_server.core.single_use.retry_budget import BreakerRules
from evergrant_server.telemetry import metrics
from providers.requests.sender import SendFailed
from providers.responses.raw_reply import RawReply, retry_after

_Key = tuple[str, IntegrationId, int, str]  # provider, integration, its revision, definition
_MAX_BREAKERS = 10_000


@dataclass
class BreakerPermit:
    """The permit to send one request; its outcome is reported to the breaker."""

    breakers: "CircuitBreakers"
    key: _Key
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
        self._breakers: dict[_Key, CircuitBreaker] = {}

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

    def of(self, key: _Key) -> CircuitBreaker:
        return self._breakers.get(key, CircuitBreaker())

    def put(self, key: _Key, breaker: CircuitBreaker) -> None:
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
