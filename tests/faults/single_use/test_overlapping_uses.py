"""Two workers of one host, one token: one's answer comes while the other's is still waited for.

What the first one brings is good unless the second use ends it, and only the second answer tells.
Until then it waits in its journal: it is neither installed nor asked for again.
"""

import asyncio
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState, RevocationOutcome
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.messages.activities import GrantResult
from evergrant_server.core.single_use.attempt import TimeLimits
from tests.fakes.databases import database_url, postgres_server
from tests.fakes.patience import PATIENCE_S
from tests.fakes.platform.installation import Installation
from tests.fakes.providers.scripted_provider import (
    Answer,
    ScriptedProvider,
    delay,
    drop,
    drop_after_commit,
    error,
    hold_answer,
    status,
)
from tests.faults.late_tokens.test_late_refresh_reply import STRICT, Slow, brief, place
from tests.faults.support.activities import Activities
from tests.faults.support.reply_timing import SHORT, left, outcome

__all__ = ["brief", "database_url", "place", "postgres_server"]  # fixtures


class Crossing:
    """A slow worker and its neighbour, which has sent the same token again."""

    def __init__(self, place: Installation, idp: ScriptedProvider, folder: Path) -> None:
        self._place, self._idp = place, idp
        # waits as long for the other's answer, as a busy machine must
        patient = TimeLimits(send=SHORT.send, answer=timedelta(seconds=60), poll_interval=SHORT.poll_interval)
        self.slow = Slow(place, idp, folder, patient)
        self.quick = Activities(place, (idp.allowance,), folder / "elsewhere", SHORT)
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
def crossing(place: Installation, brief: ScriptedProvider, tmp_path: Path) -> Crossing:
    return Crossing(place, brief, tmp_path)


async def test_a_reply_ended_by_the_second_use_is_not_installed(
    place: Installation, brief: ScriptedProvider, crossing: Crossing
):
    """Else the connection would be called active, and its next refresh be refused without a reason."""
    connection = await place.connect(brief, STRICT)
    await crossing.begins(connection, hold_answer(crossing.answers))
    await crossing.ends()
    async with asyncio.timeout(PATIENCE_S):
        while await place.late_tokens(connection):  # verified, and refused
            await asyncio.sleep(0.05)
    row = await place.row(connection)
    assert (row.state, row.reason, row.generation) == (
        LifecycleState.NEEDS_REAUTH,
        ErrorCode.OUTCOME_UNKNOWN,
        1,
    )
    assert AuditAction.GRANT_REFRESHED not in await place.actions(connection)
    assert await place.open_attempts(connection) == 0


async def test_a_reply_untouched_by_the_second_use_reactivates_the_connection(
    place: Installation, brief: ScriptedProvider, crossing: Crossing
):
    connection = await place.connect(brief, STRICT)
    await crossing.begins(connection, delay(crossing.answers, error("invalid_grant")))
    await crossing.ends()
    back = await place.until(connection, lambda it: it.state is LifecycleState.ACTIVE)
    assert (back.generation, back.reason) == (2, None)
    assert brief.families[-1].alive


@pytest.mark.parametrize("nothing_said", [status(500), drop()], ids=["500", "dropped"])
async def test_a_reply_is_installed_once_the_second_use_has_failed(
    place: Installation, brief: ScriptedProvider, crossing: Crossing, nothing_said: Answer
):
    """In an outage it can't be verified; and a connection that works isn't called lost."""
    connection = await place.connect(brief, STRICT)
    await crossing.begins(connection, delay(crossing.answers, nothing_said))
    await crossing.ends()
    row = await place.row(connection)
    assert (row.state, row.generation) == (LifecycleState.ACTIVE, 2)
    await place.until_signalled(connection, "provider_changed")
    assert (await crossing.quick.refresh(row, 2)).generation == 3, "its refresh token is the newest"
    assert brief.families[-1].alive


async def test_a_lost_second_reply_has_the_installed_grant_tried(
    place: Installation, brief: ScriptedProvider, crossing: Crossing
):
    """When the reply is installed this is still unknown: the second reply is lost."""
    connection = await place.connect(brief, STRICT)
    await crossing.begins(connection, delay(crossing.answers, drop_after_commit()))
    await crossing.ends()
    over = await place.until(
        connection, lambda it: it.state is LifecycleState.NEEDS_REAUTH
    )  # without a caller
    assert (over.generation, over.reason) == (2, ErrorCode.OUTCOME_UNKNOWN)
    assert not brief.families[-1].alive


async def test_a_later_refusal_counts_when_the_second_use_did_nothing(
    place: Installation, brief: ScriptedProvider, crossing: Crossing
):
    connection = await place.connect(brief, STRICT)
    await crossing.begins(connection, delay(crossing.answers, status(429)))
    await crossing.ends()
    assert (await place.row(connection)).generation == 2
    brief.families[-1].alive = False  # its subject has taken it back
    assert (await crossing.quick.refresh(connection, 2)).failure is ErrorCode.GRANT_REJECTED
    assert "rotate" not in await place.signals(connection)


async def test_a_token_is_not_sent_a_third_time_while_a_reply_waits(
    place: Installation, brief: ScriptedProvider, crossing: Crossing
):
    connection = await place.connect(brief, STRICT)
    await crossing.begins(connection, delay(crossing.answers, status(503)))
    await crossing.answered()
    again = await crossing.slow.worker.refresh(connection, 1, token_over=True)
    assert again.failure is ErrorCode.REFRESH_PENDING
    assert brief.count("token", grant_type="refresh_token") == 2
    assert await crossing.slow.worker.replayer.sweep() == 1
    assert (await crossing.slow.worker.refresh(connection, 1)).generation == 2
    assert brief.count("token", grant_type="refresh_token") == 2


async def test_a_revocation_waits_for_the_newest_token(
    place: Installation, brief: ScriptedProvider, crossing: Crossing
):
    """The revocation waits for the journalled reply, which then waits for no other use."""
    connection = await place.connect(brief, STRICT)
    await crossing.begins(connection, delay(crossing.answers, status(503)))
    await crossing.answered()
    await place.revoke(connection, tell=False)
    assert (await crossing.quick.revoke(connection)).failure is ErrorCode.REFRESH_PENDING
    assert await crossing.slow.worker.replayer.sweep() == 1
    row = await place.row(connection)
    assert (row.state, row.generation) == (LifecycleState.REVOKING, 2)
    assert (await crossing.quick.revoke(connection)).revocation is RevocationOutcome.CONFIRMED
    assert not brief.families[-1].alive


async def test_a_revocation_ends_the_wait_of_a_reply(
    place: Installation, brief: ScriptedProvider, crossing: Crossing
):
    connection = await place.connect(brief, STRICT)
    await crossing.begins(connection, delay(crossing.answers, status(503)))
    await place.revoke(connection, tell=False)
    assert await crossing.slow.worker.replayer.sweep() == 1
    row = await place.row(connection)
    assert (row.state, row.generation) == (LifecycleState.REVOKING, 2)
    await crossing.answered()


async def test_a_second_use_on_another_host_ends_as_outcome_unknown(
    place: Installation, brief: ScriptedProvider, tmp_path: Path
):
    """Across hosts the first reply is installed at once: how long to wait for the second is unknown."""
    connection = await place.connect(brief, STRICT)
    slow = Slow(place, brief, tmp_path)
    quick = Activities(place, (brief.allowance,), tmp_path / "a third host", SHORT)
    await slow.refreshes(connection)
    answers = asyncio.Event()
    brief.script(delay(answers))
    second = await left(brief, partial(quick.refresh, connection, 1, token_over=True))
    assert (await slow.answered()).generation == 2
    answers.set()
    await second
    over = await place.until(connection, lambda it: it.state is LifecycleState.NEEDS_REAUTH)
    assert (over.generation, over.reason) == (2, ErrorCode.OUTCOME_UNKNOWN)


async def test_a_refusal_of_the_first_use_has_the_successor_tried(
    place: Installation, brief: ScriptedProvider, tmp_path: Path
):
    """Its bytes left after the other's: its tokens may be revoked, and no other process learns of it."""
    connection = await place.connect(brief, STRICT)
    slow, quick = (Activities(place, (brief.allowance,), tmp_path / it, SHORT) for it in ("one", "another"))
    answers = asyncio.Event()
    brief.script(delay(answers, error("invalid_grant")))
    first = await left(brief, partial(slow.refresh, connection, 1))
    assert (await outcome(partial(quick.refresh, connection, 1, token_over=True))).generation == 2
    answers.set()
    assert (await first).generation == 2
    await place.until_signalled(connection, "rotate")
    failed = await place.records(AuditAction.REFRESH_FAILED)
    assert failed[0].detail["reason"] == ErrorCode.OUTCOME_UNKNOWN
