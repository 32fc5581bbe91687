"""The circuits of this process: one per integration, and what it takes to pass one.

Each worker has its own, from what it saw itself. Several workers probe an outage each; none
of them needs another, or the store, to leave a provider alone.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from evergrant_server.core.access import Integration
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId, IntegrationId
from evergrant_server.core.single_use.circuit_breaker import (
    Admission,
    BreakerRules,
    CircuitBreaker,
    admit,
    answered,
    failed,
    released,
)
from evergrant_server.telemetry import metrics
from providers.requests.sender import SendFailed
from providers.responses.durations import retry_after
from providers.responses.raw_reply import RawReply

_Key = tuple[IntegrationId, int, str]
_MAX_CIRCUITS = 10_000


class SendSuppressed(Failure):
    """Nothing was sent: the provider fails everybody and is left alone, or fails many and this would be
    one retry too many. Ask again after `retry_after` seconds."""


class BreakerPermit:
    """Leave to send one request; what comes of it is told to the circuit."""

    def __init__(
        self,
        circuits: "CircuitBreakers",
        key: _Key,
        provider: str,
        leave: Admission,
        connection: ConnectionId,
    ) -> None:
        self._circuits = circuits
        self._key = key
        self._provider = provider
        self._admission = leave
        self._connection = connection
        self.reported = False

    async def track(self, sending: Awaitable[RawReply]) -> RawReply:
        """Await a request, and note whether the provider serves."""
        try:
            reply = await sending
        except SendFailed as failure:
            if failure.code is ErrorCode.PROVIDER_UNREACHABLE:
                self._report_failure(failure.code, None)
            raise
        if reply.status == 429:
            self._report_failure(ErrorCode.PROVIDER_RATE_LIMITED, retry_after(reply.headers))
        elif reply.status >= 500:
            self._report_failure(ErrorCode.PROVIDER_ERROR, retry_after(reply.headers))
        else:
            self._report(lambda it, now, rules: answered(it, now, rules, self._connection))
        return reply

    def release(self) -> None:
        if not self.reported:
            leave = self._admission
            self._report(lambda it, now, rules: released(it, probe=leave.probe, retry=leave.retry))

    def _report_failure(self, code: ErrorCode, wait: float | None) -> None:
        probe, whose = self._admission.probe, self._connection
        self._report(lambda it, now, rules: failed(it, now, rules, code, wait, probe=probe, connection=whose))

    def _report(self, change: Callable[[CircuitBreaker, float, BreakerRules], CircuitBreaker]) -> None:
        self.reported = True
        self._circuits.update(self._key, self._provider, change)


class CircuitBreakers:
    """Time and chance are arguments, so that a test can skip an outage."""

    def __init__(
        self,
        rules: BreakerRules,
        *,
        elapsed: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._rules = rules
        self._elapsed = elapsed
        self._random = chance
        self._circuits: dict[_Key, tuple[str, CircuitBreaker]] = {}

    @asynccontextmanager
    async def permit(
        self, integration: Integration, connection: ConnectionId, definition: str = ""
    ) -> AsyncIterator[BreakerPermit]:
        """Wait for a turn of `connection`, if it comes soon. Raises HeldBack.

        A repaired integration is another revision, and starts with a closed circuit; so does each
        version of a definition, whose faults must not close the way of the one before.
        """
        key = (integration.id, integration.revision, definition)
        self._drop_older_revisions(integration)
        _, circuit = self._circuits.get(key, ("", CircuitBreaker()))
        circuit, admission = admit(circuit, self._elapsed(), self._rules, self._random(), connection)
        if admission.delay is None:
            raise _suppressed(integration, circuit, admission)
        self._store(key, integration.provider, circuit)
        passage = BreakerPermit(self, key, integration.provider, admission, connection)
        try:
            if admission.delay:
                await asyncio.sleep(admission.delay)
            yield passage
        finally:
            passage.release()

    def _drop_older_revisions(self, integration: Integration) -> None:
        """The circuits of its older revisions: nobody passes them any more, and the gauge counts them."""
        older = [it for it in self._circuits if it[0] == integration.id and it[1] < integration.revision]
        for key in older:
            self._store(key, integration.provider, CircuitBreaker())

    def update(
        self,
        key: _Key,
        provider: str,
        change: Callable[[CircuitBreaker, float, BreakerRules], CircuitBreaker],
    ) -> None:
        _, before = self._circuits.get(key, (provider, CircuitBreaker()))
        self._store(key, provider, change(before, self._elapsed(), self._rules))

    def count_open(self, provider: str) -> int:
        """How many integrations of a provider are left alone now."""
        return sum(it.opened for name, it in self._circuits.values() if name == provider)

    def _store(self, key: _Key, provider: str, circuit: CircuitBreaker) -> None:
        _, before = self._circuits.pop(key, ("", CircuitBreaker()))
        if circuit != CircuitBreaker():
            if len(self._circuits) >= _MAX_CIRCUITS:
                self._circuits.pop(next(iter(self._circuits)))
            self._circuits[key] = (provider, circuit)
        if before.opened != circuit.opened:
            metrics.set_open_circuits(provider, self.count_open(provider))


def _suppressed(integration: Integration, circuit: CircuitBreaker, admission: Admission) -> SendSuppressed:
    provider, name = integration.provider, integration.name
    if admission.last_failure is not None:
        why = f"{provider} fails for many connections of {name}; their retries are rationed"
    else:
        why = f"{provider} fails for every connection of {name}; it is left alone"
    code = admission.last_failure or circuit.reason or ErrorCode.PROVIDER_ERROR
    return SendSuppressed(code, why, retry_after=admission.retry_after)
