"""Two workers that spend one refresh token: the slow one's answer comes last, or crosses the other's use.

On two hosts neither sees the other's journals. On one host, what the first use brings is good unless the
second one ends it, and only the second answer tells: until then it waits in its journal.
"""

import asyncio
from datetime import timedelta
from functools import partial

import pytest

from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState, RevocationOutcome
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.messages.activities import GrantResult
from evergrant_server.core.single_use.attempt import TimeLimits
from tests.fakes.failures import fails
from tests.fakes.patience import eventually
from tests.fakes.platform.installation import NEVER_ROTATES, STRICT, TENANT, Installation
from tests.fakes.providers.scripted_provider import (
    Answer,
    ScriptedProvider,
    delay,
    drop_after_commit,
    error,
    hold_answer,
    ok,
    status,
)
from tests.faults.late_tokens.test_late_refresh_reply import limits, provider  # noqa: F401  # fixtures
from tests.faults.support.activities import Activities
from tests.faults.support.reply_timing import SHORT, Slow, left, outcome


def two_hosts(place: Installation) -> tuple[Activities, Activities]:
    """Neither sees the other's journals."""
    return Activities(place, "slow"), Activities(place, "quick")


async def test_a_refused_second_use_has_the_installed_grant_tried(
    place: Installation, lenient: ScriptedProvider
):
    """The refusal may have ended the family: whether the new token works is found out at once."""
    connection = await place.connect(NEVER_ROTATES)
    slow, quick = two_hosts(place)
    first, second = asyncio.Event(), asyncio.Event()
    lenient.script(hold_answer(first), delay(second, error("invalid_grant")))
    slowly = asyncio.create_task(slow.refresh(connection, 1))
    await lenient.until("token", 2)
    again = asyncio.create_task(quick.refresh(connection, 1))
    await lenient.until("token", 3)
    first.set()
    assert (await slowly).generation == 2
    second.set()
    assert (await again).generation == 2
    assert (await place.row(connection)).state is LifecycleState.ACTIVE
    await place.until_signalled(connection, "rotate")


async def test_a_revocation_and_a_code_exchange_wait_for_a_refresh_in_flight(
    place: Installation, lenient: ScriptedProvider
):
    """The first would miss the token that lands; the second would be overtaken by it."""
    connection = await place.connect(NEVER_ROTATES)
    worker = Activities(place)
    async with lenient.in_flight(worker.refresh(connection, 1)) as refresh:
        consent = await place.consent(connection, tell=False)
        with fails(ErrorCode.REFRESH_PENDING):
            await worker.exchange(connection, consent)
        await place.revoke(connection, tell=False)
        assert (await worker.revoke(connection)).failure is ErrorCode.REFRESH_PENDING
        assert lenient.count("revoke") == 0
    assert (await refresh).state is LifecycleState.REVOKING
    assert (await worker.revoke(connection)).revocation is RevocationOutcome.CONFIRMED
    assert not any(family.alive for family in lenient.families if family.used or family.access_tokens)


async def test_a_second_send_keeps_the_date_of_the_first(place: Installation, lenient: ScriptedProvider):
    connection = await place.connect(NEVER_ROTATES)
    worker = Activities(place)
    lenient.script(drop_after_commit(), ok(expires_in=3600))  # a long one: the machine may stand still
    await worker.refresh(connection, 1)
    async with place.store.read() as tx:
        first = await tx.attempts.open_of_any_kind(TENANT, connection.id, "main")
    assert first is not None
    assert (await worker.refresh(connection, 1)).obtained_at == first.opened_at


async def test_a_token_is_dated_by_the_send_that_brought_it(place: Installation):
    """It would seem over when it comes, and is not due again at once: callers would go without it."""
    place.idp.script(ok(expires_in=1))
    connection = await place.connect(STRICT)
    here = Activities(place)
    await asyncio.sleep(1.1)
    place.idp.script(status(500), status(500), ok(expires_in=2))
    for _ in range(2):
        assert (await here.refresh(connection, 1)).failure is ErrorCode.PROVIDER_ERROR
    await asyncio.sleep(2.1)
    sent_after = place.parts.clock.now()
    assert (await here.refresh(connection, 1)).generation == 2
    assert (await place.grant(connection))[1].obtained_at >= sent_after


async def test_repeated_500s_do_not_end_the_grant(place: Installation):
    """A 500 doesn't say whether the token is spent. Sending again does, once no client can wait for a reply:
    what it could lose is lost already (strict rotation, an expired access token)."""
    place.idp.script(ok(expires_in=1))
    connection = await place.connect()
    here = Activities(place)
    clock = place.parts.clock
    await eventually(lambda: place.grant(connection), lambda it: not it[1].is_valid(clock.now()))
    place.idp.script(*[status(500)] * 5)
    for _ in range(5):
        assert (await here.refresh(connection, 1)).failure is ErrorCode.PROVIDER_ERROR
        assert (await place.row(connection)).state is LifecycleState.ACTIVE
    assert (await here.refresh(connection, 1)).generation == 2


class Crossing:
    """A slow worker and its neighbour, which has sent the same token again."""

    def __init__(self, place: Installation) -> None:
        self._place, self._idp = place, place.idp
        # waits as long for the other's answer, as a busy machine must
        patient = TimeLimits(send=SHORT.send, answer=timedelta(seconds=60), poll_interval=SHORT.poll_interval)
        self.slow = Slow(place, patient)
        self.quick = Activities(place, "elsewhere", SHORT)
        self.answers = asyncio.Event()
        self._second: asyncio.Task[GrantResult] | None = None

    async def begins(self, connection: Connection, second: Answer) -> None:
        """Both have sent; the answer to the first use comes now, the other one with `answers`."""
        await self.slow.refreshes(connection)
        self._idp.script(second)
        self._second = await left(self._idp, partial(self.quick.refresh, connection, 1, token_over=True))
        assert (await self.slow.answered()).failure is ErrorCode.REFRESH_PENDING
        assert (await self._place.row(connection)).generation == 1, "it is still unknown whether it works"
        assert await self.slow.worker.replayer.sweep() == 0, "its journal keeps it"

    async def answered(self) -> None:
        """The second use."""
        assert self._second is not None
        self.answers.set()
        await self._second

    async def ends(self) -> None:
        """And what the first one brought is looked at again."""
        await self.answered()
        assert await self.slow.worker.replayer.sweep() == 1


@pytest.fixture
def crossing(place: Installation) -> Crossing:
    return Crossing(place)


async def test_a_lost_second_reply_has_the_installed_grant_tried(place: Installation, crossing: Crossing):
    """When the reply is installed this is still unknown: the second reply is lost."""
    connection = await place.connect(STRICT)
    await crossing.begins(connection, delay(crossing.answers, drop_after_commit()))
    await crossing.ends()
    over = await place.until(
        connection, lambda it: it.state is LifecycleState.NEEDS_REAUTH
    )  # without a caller
    assert (over.generation, over.reason) == (2, ErrorCode.OUTCOME_UNKNOWN)
    assert not place.idp.families[-1].alive


async def test_a_later_refusal_counts_when_the_second_use_did_nothing(
    place: Installation, crossing: Crossing
):
    connection = await place.connect(STRICT)
    await crossing.begins(connection, delay(crossing.answers, status(429)))
    await crossing.ends()
    assert (await place.row(connection)).generation == 2
    place.idp.families[-1].alive = False  # its subject has taken it back
    assert (await crossing.quick.refresh(connection, 2)).failure is ErrorCode.GRANT_REJECTED
    assert "rotate" not in await place.signals(connection)


async def test_a_revocation_waits_for_the_newest_token(place: Installation, crossing: Crossing):
    """The revocation waits for the journalled reply, which then waits for no other use."""
    connection = await place.connect(STRICT)
    await crossing.begins(connection, delay(crossing.answers, status(503)))
    await crossing.answered()
    await place.revoke(connection, tell=False)
    assert (await crossing.quick.revoke(connection)).failure is ErrorCode.REFRESH_PENDING
    assert await crossing.slow.worker.replayer.sweep() == 1
    row = await place.row(connection)
    assert (row.state, row.generation) == (LifecycleState.REVOKING, 2)
    assert (await crossing.quick.revoke(connection)).revocation is RevocationOutcome.CONFIRMED
    assert not place.idp.families[-1].alive


async def test_a_revocation_ends_the_wait_of_a_reply(place: Installation, crossing: Crossing):
    connection = await place.connect(STRICT)
    await crossing.begins(connection, delay(crossing.answers, status(503)))
    await place.revoke(connection, tell=False)
    assert await crossing.slow.worker.replayer.sweep() == 1
    row = await place.row(connection)
    assert (row.state, row.generation) == (LifecycleState.REVOKING, 2)
    await crossing.answered()


async def test_a_refusal_of_the_first_use_has_the_successor_tried(place: Installation):
    """Its bytes left after the other's: its tokens may be revoked, and no other process learns of it."""
    connection = await place.connect(STRICT)
    slow, quick = (Activities(place, it, SHORT) for it in ("one", "another"))
    answers = asyncio.Event()
    place.idp.script(delay(answers, error("invalid_grant")))
    first = await left(place.idp, partial(slow.refresh, connection, 1))
    assert (await outcome(partial(quick.refresh, connection, 1, token_over=True))).generation == 2
    answers.set()
    assert (await first).generation == 2
    await place.until_signalled(connection, "rotate")
    failed = await place.records(AuditAction.REFRESH_FAILED)
    assert failed[0].detail["reason"] == ErrorCode.OUTCOME_UNKNOWN
