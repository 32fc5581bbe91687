"""What a worker's circuits say of themselves."""

from typing import Any

import pytest

from activities.single_use.circuit_breakers import CircuitBreakers
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId
from evergrant_server.core.single_use.circuit_breaker import BreakerRules
from providers.requests.sender import SendFailed
from tests.conformance.store.samples import an_integration

ONE = ConnectionId("con_1")


async def unreachable() -> Any:
    raise SendFailed(Failure(ErrorCode.PROVIDER_UNREACHABLE), sent=False)


async def served() -> Any:
    return None


async def test_a_repaired_integration_has_no_open_breaker():
    circuits = CircuitBreakers(BreakerRules(threshold=1))
    broken = an_integration()
    async with circuits.permit(broken, ONE) as passage:
        with pytest.raises(SendFailed):
            await passage.track(unreachable())
    assert circuits.count_open(broken.provider) == 1
    repaired = broken.model_copy(update={"revision": broken.revision + 1})
    async with circuits.permit(repaired, ONE):
        assert circuits.count_open(broken.provider) == 0
