"""The circuits of this process: one per integration, and what it takes to pass one.

Each worker has its own, from what it saw itself. Several workers probe an outage each; none
of them needs another, or the store, to leave a provider alone.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from evergrant_server import telemetry_metrics as metrics
from evergrant_server.core.access import Integration
from evergrant_server.core.circuit import Admission, Circuit, CircuitRules, admit, answered, failed, unheard
from evergrant_server.core.errors import Code, Failure
from evergrant_server.core.ids import ConnectionId, IntegrationId
from providers.flows import SendFailed
from providers.reply import RawReply
from providers.times import retry_after

_Key = tuple[IntegrationId, int, str]
_MOST = 10_000


class HeldBack(Failure):
    """Nothing was sent: the provider fails everybody and is left alone, or fails many and this would be
    one retry too many. Ask again after `retry_after` seconds."""


class Passage:
    """Leave to send one request; what comes of it is told to the circuit."""

    def __init__(
        self, circuits: "Circuits", key: _Key, provider: str, leave: Admission, connection: ConnectionId
    ) -> None:
        self._circuits = circuits
        self._key = key
        self._provider = provider
        self._leave = leave
        self._connection = connection
        self.heard = False

    async def watch(self, sending: Awaitable[RawReply]) -> RawReply:
        """Await a request, and note whether the provider serves."""
        try:
            reply = await sending
        except SendFailed as failure:
            if failure.code is Code.PROVIDER_UNREACHABLE:
                self._failed(failure.code, None)
            raise
        if reply.status == 429:
            self._failed(Code.PROVIDER_RATE_LIMITED, retry_after(reply.headers))
        elif reply.status >= 500:
            self._failed(Code.PROVIDER_ERROR, retry_after(reply.headers))
        else:
            self._note(lambda it, now, rules: answered(it, now, rules, self._connection))
        return reply

    def end(self) -> None:
        if not self.heard:
            leave = self._leave
            self._note(lambda it, now, rules: unheard(it, probe=leave.probe, retry=leave.retry))

    def _failed(self, code: Code, wait: float | None) -> None:
        probe, whose = self._leave.probe, self._connection
        self._note(lambda it, now, rules: failed(it, now, rules, code, wait, probe=probe, connection=whose))

    def _note(self, change: Callable[[Circuit, float, CircuitRules], Circuit]) -> None:
        self.heard = True
        self._circuits.change(self._key, self._provider, change)


class Circuits:
    """Time and chance are arguments, so that a test can skip an outage."""

    def __init__(
        self,
        rules: CircuitRules,
        *,
        elapsed: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._rules = rules
        self._elapsed = elapsed
        self._chance = chance
        self._circuits: dict[_Key, tuple[str, Circuit]] = {}

    @asynccontextmanager
    async def passing(
        self, integration: Integration, connection: ConnectionId, definition: str = ""
    ) -> AsyncIterator[Passage]:
        """Wait for a turn of `connection`, if it comes soon. Raises HeldBack.

        A repaired integration is another revision, and starts with a closed circuit; so does each
        version of a definition, whose faults must not close the way of the one before.
        """
        key = (integration.id, integration.revision, definition)
        self._forget_repaired(integration)
        _, circuit = self._circuits.get(key, ("", Circuit()))
        circuit, admission = admit(circuit, self._elapsed(), self._rules, self._chance(), connection)
        if admission.go_in is None:
            raise _held_back(integration, circuit, admission)
        self._put(key, integration.provider, circuit)
        passage = Passage(self, key, integration.provider, admission, connection)
        try:
            if admission.go_in:
                await asyncio.sleep(admission.go_in)
            yield passage
        finally:
            passage.end()

    def _forget_repaired(self, integration: Integration) -> None:
        """The circuits of its older revisions: nobody passes them any more, and the gauge counts them."""
        older = [it for it in self._circuits if it[0] == integration.id and it[1] < integration.revision]
        for key in older:
            self._put(key, integration.provider, Circuit())

    def change(
        self, key: _Key, provider: str, change: Callable[[Circuit, float, CircuitRules], Circuit]
    ) -> None:
        _, before = self._circuits.get(key, (provider, Circuit()))
        self._put(key, provider, change(before, self._elapsed(), self._rules))

    def open(self, provider: str) -> int:
        """How many integrations of a provider are left alone now."""
        return sum(it.opened for name, it in self._circuits.values() if name == provider)

    def _put(self, key: _Key, provider: str, circuit: Circuit) -> None:
        _, before = self._circuits.pop(key, ("", Circuit()))
        if circuit != Circuit():
            if len(self._circuits) >= _MOST:
                self._circuits.pop(next(iter(self._circuits)))
            self._circuits[key] = (provider, circuit)
        if before.opened != circuit.opened:
            metrics.circuits_open(provider, self.open(provider))


def _held_back(integration: Integration, circuit: Circuit, admission: Admission) -> HeldBack:
    provider, name = integration.provider, integration.name
    if admission.missed is not None:
        why = f"{provider} fails for many connections of {name}; their retries are rationed"
    else:
        why = f"{provider} fails for every connection of {name}; it is left alone"
    code = admission.missed or circuit.reason or Code.PROVIDER_ERROR
    return HeldBack(code, why, retry_after=admission.retry_after)
