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
from sqlalchemy import text

from activities.single_use import protocol
from activities.single_use.attempt import SingleUseAttempt
from activities.single_use.intent import commit_intent
from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.connections.grant import Origin
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.single_use.attempt import Attempt, AttemptOutcome, TimeLimits
from evergrant_server.store import Store
from tests.conformance.store.samples import a_grant, granted, some_tokens
from tests.fakes.clock import SetClock
from tests.fakes.databases import NOW
from tests.fakes.patience import PATIENCE_S
from tests.unit.activities.single_use.protocol_worker import (
    LIMITS,
    STRICT,
    RecordedOutcome,
    Worker,
    fails,
    keep_reply,
)


class Instant:
    """A late reply whose wait is over, and a third use by another worker."""

    def __init__(self, store: Store, connection: Connection, slow: Worker, late: SingleUseAttempt) -> None:
        self._store, self.connection, self._slow, self._late = store, connection, slow, late

    @asynccontextmanager
    async def installing(self) -> AsyncIterator[None]:
        """What the answer brought is committed at the end."""
        async with self._store.write() as tx:
            await self._slow.single_use.tracker.record_late_install(
                tx, self._late.row, STRICT, journaled=True
            )
            yield
            after = self.connection.refreshed(NOW)
            tokens = some_tokens("at-2", "rt-2")
            await tx.grants.install(
                after, tokens, a_grant(2), origin=Origin.REFRESH, expected=self.connection.revision
            )

    async def installs(self) -> None:
        async with self.installing():
            pass


@pytest.fixture
def quick(store: Store, clock: SetClock, tmp_path: Path) -> Worker:
    """A worker by whose clock every earlier use has timed out."""
    return Worker(store, clock, tmp_path / "host", TimeLimits(send=LIMITS.send, answer=-LIMITS.send))


async def begun(store: Store, clock: SetClock, host: Path, quick: Worker) -> Instant:
    connection = await granted(store)
    slow = Worker(store, clock, host)
    late = await slow.begin(connection)
    second = await quick.begin(connection)
    await quick.spend(second, RecordedOutcome(quick.journal), Failure(ErrorCode.INTERNAL))
    async with store.write() as tx:
        await tx.attempts.close(second.row, AttemptOutcome.NOT_SENT, NOW)
    late = replace(late, entry=keep_reply(late))
    return Instant(store, connection, slow, late)


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
    store: Store, clock: SetClock, tmp_path: Path, quick: Worker, monkeypatch: pytest.MonkeyPatch
):
    instant = await begun(store, clock, tmp_path / "host", quick)
    monkeypatch.setattr(
        quick.single_use.tracker, "has_late_entry", lambda taken_over: False
    )  # it had looked before
    async with instant.installing():
        third = asyncio.create_task(quick.begin(instant.connection))
        await waits(store, third)
    with fails(ErrorCode.STORE_CONFLICT, "was changed meanwhile"):
        await third


async def test_a_late_install_waits_for_an_attempt_being_opened(
    store: Store, clock: SetClock, tmp_path: Path, quick: Worker, monkeypatch: pytest.MonkeyPatch
):
    instant = await begun(store, clock, tmp_path / "host", quick)
    monkeypatch.setattr(quick.single_use.tracker, "has_late_entry", lambda taken_over: False)
    opened, go_on = asyncio.Event(), asyncio.Event()

    async def slowly(*of: Any, **more: Any) -> Attempt:
        intended = await commit_intent(*of, **more)
        opened.set()
        await go_on.wait()
        return intended

    monkeypatch.setattr(protocol, "commit_intent", slowly)  # the last moment before its commit
    third = asyncio.create_task(quick.begin(instant.connection))
    await opened.wait()
    late = asyncio.create_task(instant.installs())
    await waits(store, late)
    go_on.set()
    assert (await third).row.sends == 2
    with fails(ErrorCode.REFRESH_PENDING, "waits for the answer"):
        await late
