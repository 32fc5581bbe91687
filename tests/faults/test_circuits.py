"""What a worker's circuits say of themselves."""

from typing import Any

import pytest

from activities.breaker import Circuits
from evergrant_server.core.circuit import CircuitRules
from evergrant_server.core.errors import Code, Failure
from evergrant_server.core.ids import ConnectionId
from providers.flows import SendFailed
from tests.conformance.store.samples import an_integration

ONE = ConnectionId("con_1")


async def unreachable() -> Any:
    raise SendFailed(Failure(Code.PROVIDER_UNREACHABLE), sent=False)


async def served() -> Any:
    return None


async def test_a_repaired_integration_is_no_longer_counted_as_left_alone():
    circuits = Circuits(CircuitRules(threshold=1))
    broken = an_integration()
    async with circuits.passing(broken, ONE) as passage:
        with pytest.raises(SendFailed):
            await passage.watch(unreachable())
    assert circuits.open(broken.provider) == 1
    repaired = broken.model_copy(update={"revision": broken.revision + 1})
    async with circuits.passing(repaired, ONE):
        assert circuits.open(broken.provider) == 0
