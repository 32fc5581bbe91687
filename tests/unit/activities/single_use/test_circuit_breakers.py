"""What of a retry budget the circuits of a worker keep to, with time and chance given."""

import pytest

from activities.single_use.pacing import CircuitBreakers
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId
from evergrant_server.core.single_use.retry_budget import BreakerRules
from providers.requests.sender import SendFailed
from providers.responses.raw_reply import RawReply
from tests.conformance.store.samples import an_integration

ONE, OTHER = ConnectionId("con_1"), ConnectionId("con_2")
BROKEN = an_integration()
RULES = BreakerRules(threshold=100, retries=1, retry_rate=0.1, retry_share=0.5, recovery=20)


class Place:
    def __init__(self, rules: BreakerRules = RULES) -> None:
        self.now = 0.0
        self.circuits = CircuitBreakers(rules, elapsed=lambda: self.now, chance=lambda: 0.5)

    async def send(self, connection: ConnectionId, status: int | None) -> None:
        """None: nobody answers."""

        unreachable = SendFailed(Failure(ErrorCode.PROVIDER_UNREACHABLE), sent=True)
        async with self.circuits.permit(BROKEN, connection) as passage:
            passage.answered(unreachable if status is None else RawReply(status, {}, b""))

    async def held_back(self, connection: ConnectionId) -> Failure:
        with pytest.raises(Failure) as raised:
            await self.send(connection, 200)
        return raised.value


@pytest.mark.parametrize(
    ("status", "code"), [(None, ErrorCode.PROVIDER_UNREACHABLE), (500, ErrorCode.PROVIDER_ERROR)]
)
async def test_a_retry_without_budget_is_suppressed_with_reason_and_delay(
    status: int | None, code: ErrorCode
):
    place = Place()
    await place.send(ONE, status)
    await place.send(ONE, status)
    failure = await place.held_back(ONE)
    assert (failure.code, failure.retry_after) == (code, 10 + 0.5 * 10)
    assert "retries" in failure.detail
    await place.send(OTHER, status)
    assert place.circuits.count_open(BROKEN.provider) == 0
    place.now = 10
    await place.send(ONE, 200)


async def test_any_answer_ends_the_suppression():
    place = Place()
    await place.send(ONE, 500)
    await place.send(ONE, 400)
    for _ in range(3):
        await place.send(ONE, 200)


async def test_a_permit_that_was_not_used_costs_no_budget():
    place = Place()
    await place.send(ONE, 500)
    for _ in range(3):
        async with place.circuits.permit(BROKEN, ONE):
            pass
    await place.send(ONE, 500)
    await place.held_back(ONE)


async def test_a_breaker_that_equals_a_new_one_is_dropped():
    place = Place()
    await place.send(ONE, 500)
    kept = place.circuits._breakers  # pyright: ignore[reportPrivateUsage]  # what it costs is not told
    assert kept
    await place.send(ONE, 200)
    place.now = 10
    await place.send(ONE, 200)
    assert not kept


async def test_an_open_breaker_says_that_every_connection_fails():
    place = Place(BreakerRules(threshold=1))
    await place.send(ONE, 500)
    assert "every connection" in (await place.held_back(ONE)).detail


async def test_a_repaired_integration_has_no_open_breaker():
    place = Place(BreakerRules(threshold=1))
    await place.send(ONE, None)
    assert place.circuits.count_open(BROKEN.provider) == 1
    repaired = BROKEN.model_copy(update={"revision": BROKEN.revision + 1})
    async with place.circuits.permit(repaired, ONE):
        assert place.circuits.count_open(BROKEN.provider) == 0
