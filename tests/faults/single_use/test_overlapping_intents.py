"""An answer that waited is installed in the instant in which a third use is about to commit its intent.

Neither changes a row of the other's, so a database that lets both go on would send a token that was
just replaced: they wait for one another at the connection's row.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import text

from activities.single_use import protocol
from activities.single_use.attempt import SingleUseAttempt
from activities.single_use.intent import commit_intent
from evergrant_server.core.connections.grant import Origin
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.single_use.attempt import Attempt, AttemptOutcome, TimeLimits
from evergrant_server.store import Store
from tests.conformance.store.samples import a_grant, granted, some_tokens
from tests.fakes.clock import SetClock
from tests.fakes.databases import NOW
from tests.fakes.failures import fails
from tests.fakes.patience import PATIENCE_S
from tests.unit.activities.single_use.protocol_worker import (
    LIMITS,
    STRICT,
    RecordedOutcome,
    Worker,
    keep_reply,
)


class Instant:
    """A late reply whose wait is over, and a third use by another worker."""

    def __init__(self, slow: Worker, late: SingleUseAttempt) -> None:
        self._slow, self._late = slow, late

    @asynccontextmanager
    async def installing(self) -> AsyncIterator[None]:
        """What the answer brought is committed at the end."""
        connection = self._slow.connection
        async with self._slow.store.write() as tx:
            await self._slow.tracker.record_late_install(tx, self._late.row, STRICT, journaled=True)
            yield
            after = connection.refreshed(NOW)
            tokens = some_tokens("at-2", "rt-2")
            await tx.grants.install(
                after, tokens, a_grant(2), origin=Origin.REFRESH, expected=connection.revision
            )

    async def installs(self) -> None:
        async with self.installing():
            pass


@pytest_asyncio.fixture
async def quick(store: Store, clock: SetClock, tmp_path: Path) -> Worker:
    """A worker by whose clock every earlier use has timed out."""
    limits = TimeLimits(send=LIMITS.send, answer=-LIMITS.send)
    return Worker(store, clock, await granted(store), tmp_path / "host", limits)


async def begun(quick: Worker) -> Instant:
    slow = quick.beside()
    late = await slow.begin()
    second = await quick.begin()
    await quick.spend(second, RecordedOutcome(quick.journal), Failure(ErrorCode.INTERNAL))
    async with quick.store.write() as tx:
        await tx.attempts.close(second.row, AttemptOutcome.NOT_SENT, NOW)
    late = replace(late, entry=keep_reply(late))
    return Instant(slow, late)


async def waits(store: Store, task: asyncio.Task[Any]) -> None:
    """Wait until the task is blocked: SQLite begins no second transaction, PostgreSQL lists row locks."""
    waiting = text("SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE NOT granted")
    async with asyncio.timeout(PATIENCE_S):
        while not store.is_sqlite and not task.done():
            async with store.autocommit() as connection:
                if (await connection.execute(waiting)).scalar_one():
                    return
            await asyncio.sleep(0.02)
    assert not task.done()


async def test_an_attempt_opened_during_a_late_install_sends_nothing(
    store: Store, quick: Worker, monkeypatch: pytest.MonkeyPatch
):
    instant = await begun(quick)
    monkeypatch.setattr(quick.tracker, "has_late_entry", lambda taken_over: False)  # it had looked before
    async with instant.installing():
        third = asyncio.create_task(quick.begin())
        await waits(store, third)
    with fails(ErrorCode.STORE_CONFLICT, "was changed meanwhile"):
        await third


async def test_a_late_install_waits_for_an_attempt_being_opened(
    store: Store, quick: Worker, monkeypatch: pytest.MonkeyPatch
):
    instant = await begun(quick)
    monkeypatch.setattr(quick.tracker, "has_late_entry", lambda taken_over: False)
    opened, go_on = asyncio.Event(), asyncio.Event()

    async def slowly(*of: Any, **more: Any) -> Attempt:
        intended = await commit_intent(*of, **more)
        opened.set()
        await go_on.wait()
        return intended

    monkeypatch.setattr(protocol, "commit_intent", slowly)  # the last moment before its commit
    third = asyncio.create_task(quick.begin())
    await opened.wait()
    late = asyncio.create_task(instant.installs())
    await waits(store, late)
    go_on.set()
    assert (await third).row.sends == 2
    with fails(ErrorCode.REFRESH_PENDING, "waits for the answer"):
        await late
