"""Who puts a hold, and who erases, take turns: a hold that was acknowledged keeps everything."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text

from activities.pruning import Periods, Pruning
from evergrant_server.access.erasure import Order, erase, put_hold
from evergrant_server.core.connections.erasure import LegalHold, TargetKind
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.store import Store, Transaction
from tests.conformance.store.samples import ACME
from tests.fakes.clock import SetClock
from tests.fakes.databases import NOW
from tests.fakes.patience import PATIENCE_S

ORDER = Order(ACME, TargetKind.SUBJECT, "alice", "CASE-7", RequestContext(by="app:admin"), NOW)
_WAITING = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")


async def waits_or_ends(store: Store, task: asyncio.Task[Any]) -> None:
    """SQLite begins no second transaction; PostgreSQL lists who waits for its turn."""
    async with asyncio.timeout(PATIENCE_S):
        while not store.is_sqlite and not task.done():
            async with store.autocommit() as connection:
                if (await connection.execute(_WAITING)).scalar_one():
                    return
            await asyncio.sleep(0.02)


async def held(store: Store) -> LegalHold:
    async with store.write() as tx:
        return await put_hold(tx, ORDER, None)


async def against(tx: Transaction) -> LegalHold | None:
    return await tx.legal_holds.against(ACME, ORDER.kind, ORDER.target, NOW)


async def test_a_hold_is_put_once_a_transaction_that_found_none_has_ended(store: Store):
    async with store.write() as tx:
        assert await against(tx) is None
        hold = asyncio.create_task(held(store))
        await waits_or_ends(store, hold)
        assert not hold.done()
        assert await against(tx) is None
    await hold
    async with store.write() as tx:
        assert await against(tx) == await hold


@pytest.mark.parametrize("kind", ["messages", "attempts", "consents"])
async def test_a_hold_is_put_once_a_transaction_that_prunes_has_ended(
    store: Store, clock: SetClock, monkeypatch: pytest.MonkeyPatch, kind: str
):
    hold: asyncio.Task[LegalHold] | None = None
    done_before: list[bool] = []

    def put_after(prune: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def pruned(*of: Any, **named: Any) -> Any:
            nonlocal hold
            left = await prune(*of, **named)
            if hold is None:
                hold = asyncio.create_task(held(store))
                await waits_or_ends(store, hold)
                done_before.append(hold.done())
            return left

        return pruned

    async with store.read() as tx:
        pruner = type({"messages": tx.outbox, "attempts": tx.attempts, "consents": tx.consents}[kind])
    monkeypatch.setattr(pruner, "prune", put_after(pruner.prune))
    await Pruning(store, clock, Periods()).run()
    assert hold is not None
    await hold
    assert done_before == [False]


async def test_a_subject_whose_erasure_is_ordered_twice_at_once_has_one(store: Store):
    second: asyncio.Task[Any] | None = None

    async def nothing(_: Transaction) -> dict[str, str]:
        return {}

    async def ordered_again(_: Transaction) -> dict[str, str]:
        nonlocal second
        second = asyncio.create_task(erase(store, ORDER, timedelta(days=1), nothing))
        await waits_or_ends(store, second)
        return {}

    first = await erase(store, ORDER, timedelta(days=1), ordered_again)
    assert second is not None
    assert (await second).id == first.id
    async with store.read() as tx:
        assert [erasure.id for erasure in await tx.erasures.page(ACME, None, 10)] == [first.id]
