"""Leases and what stops them: a change is never overtaken, a greedy app waits for itself."""

import asyncio

import pytest
from sqlalchemy import text

from evergrant_server.audit.lease_ledger import LeaseClaim, LeaseLedger, RecordedLease, StaleClaim
from evergrant_server.audit.lease_queue import APP_SHARE, LARGEST_BATCH, LeaseQueue, WaitingLease
from evergrant_server.audit.lease_record import LeaseFacts
from evergrant_server.store import Store
from tests.conformance.store.samples import a_connection, an_app, an_app_of, granted
from tests.fakes.databases import NOW
from tests.fakes.patience import PATIENCE_S
from tests.fakes.rows import disable_tenant
from tests.unit.audit.claims import a_claim, count_commits, leases_in_the_log


async def test_a_committed_revocation_stops_the_next_lease(store: Store, ledger: LeaseLedger):
    connection, app = await granted(store), await an_app_of(store)
    claim = a_claim(connection, app)
    async with store.write() as tx:
        await tx.connections.replace(connection.revocation_requested("x", NOW), expected=connection.revision)
    for late in (claim, a_claim(connection, app, connection_revision=connection.revision + 1)):
        with pytest.raises(StaleClaim):
            await ledger.record(late)
    assert await leases_in_the_log(store) == []


async def test_a_lease_waits_for_a_revocation_that_is_being_committed_and_others_do_not(
    store: Store, ledger: LeaseLedger, monkeypatch: pytest.MonkeyPatch
):
    connection, other, app = await granted(store), await granted(store, subject="s2"), await an_app_of(store)
    async with store.write() as tx:
        await tx.connections.replace(connection.revocation_requested("x", NOW), expected=connection.revision)
        commits = count_commits(ledger, monkeypatch)
        lease = asyncio.create_task(ledger.record(a_claim(connection, app)))
        beside = asyncio.create_task(ledger.record(a_claim(other, app)))
        async with asyncio.timeout(PATIENCE_S):
            if store.is_sqlite:
                await asyncio.sleep(0.05)  # long enough for both to have finished, if nothing stopped them
            while not store.is_sqlite and len(commits) < 3:
                await asyncio.sleep(0)
        assert [lease.done(), beside.done()] == [False, not store.is_sqlite]
    with pytest.raises(StaleClaim):
        await lease
    await beside


@pytest.mark.parametrize("stopped", ["app", "connection", "tenant"])
async def test_leases_do_not_overtake_a_change_that_waits_for_one(
    store: Store, ledger: LeaseLedger, monkeypatch: pytest.MonkeyPatch, stopped: str
):
    """Shared row locks let every later lease pass, so that leases without a pause starved the change."""
    if store.is_sqlite:
        pytest.skip("on SQLite one transaction writes at a time")
    connection, app = await granted(store), await an_app_of(store)
    await ledger.record(a_claim(connection, app))
    held = text("SELECT FROM audit_tree WHERE shard = 'lease-1' FOR UPDATE")

    async def stop() -> None:
        async with store.write() as tx:
            if stopped == "app":
                await tx.access.put_app(app.model_copy(update={"disabled": True}), expected=app.revision)
            elif stopped == "tenant":
                await disable_tenant(tx, app.tenant)
            else:
                revoked = connection.revocation_requested("x", NOW)
                await tx.connections.replace(revoked, expected=connection.revision)

    second = LeaseLedger(store, "lease-2", ledger._clock)
    await second.start()
    async with store.write() as tx, asyncio.timeout(PATIENCE_S):
        await tx.connection.execute(held)  # so that a batch waits that has its locks
        first = asyncio.create_task(ledger.record(a_claim(connection, app)))
        await sessions_wait(store, 1)
        change = asyncio.create_task(stop())
        await sessions_wait(store, 2)
        commits = count_commits(second, monkeypatch)
        late = asyncio.create_task(second.record(a_claim(connection, app)))
        while not commits:
            await asyncio.sleep(0)
        assert not late.done()
    await asyncio.gather(first, change)
    with pytest.raises(StaleClaim):
        await late
    await second.stop()


async def test_a_disabled_tenant_stops_the_next_lease_and_no_other_tenants(store: Store, ledger: LeaseLedger):
    connection, app = await granted(store), await an_app_of(store)
    beside = await granted(store, tenant="other")
    other = await an_app_of(store, tenant="other")
    async with store.write() as tx:
        await disable_tenant(tx, app.tenant)
    late, alive = a_claim(connection, app), a_claim(beside, other)
    ended = await asyncio.gather(*(ledger.record(it) for it in (late, alive)), return_exceptions=True)
    assert [type(it) for it in ended] == [StaleClaim, RecordedLease]
    async with store.write() as tx:
        await tx.connection.execute(text("DELETE FROM tenant_standing WHERE tenant = 'other'"))
    with pytest.raises(StaleClaim):
        await ledger.record(alive)


async def sessions_wait(store: Store, number: int) -> None:
    waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
    while True:
        async with store.autocommit() as connection:
            if (await connection.execute(waiting)).scalar_one() == number:
                return


async def test_a_greedy_app_waits_for_itself(store: Store, ledger: LeaseLedger):
    connection = await granted(store)
    greedy, other = await an_app_of(store), await an_app_of(store, name="other")
    many = [asyncio.create_task(ledger.record(a_claim(connection, greedy))) for _ in range(100)]
    await asyncio.sleep(0)
    for _ in range(3):
        await ledger.record(a_claim(connection, other))
    assert sum(it.done() for it in many) <= 5 * APP_SHARE
    await asyncio.gather(*many)
    assert len(await leases_in_the_log(store)) == 103


def queue_of(*claims: LeaseClaim) -> LeaseQueue:
    queue = LeaseQueue()
    for claim in claims:
        record = LeaseFacts(claim).record(claim.at, claim.context.trace_id)
        queue.add(WaitingLease(record, asyncio.get_running_loop().create_future()))
    return queue


async def test_a_batch_is_filled_tenant_by_tenant_and_app_by_app():
    def claim(tenant: str, app: str) -> LeaseClaim:
        return a_claim(a_connection(tenant=tenant), an_app(tenant=tenant, id=app))

    queue = queue_of(
        *(claim("crowd", f"app_{n % 100}") for n in range(300)),
        claim("small", "app_s"),
        claim("crowd", "app_new"),
    )
    taken = [queue.take() for _ in range(3)]
    assert [len(it) for it in taken] == [LARGEST_BATCH] * 3
    assert taken[0][1].record.facts.tenant == "small"
    assert sum(it.record.facts.app_id == "app_new" for it in taken[1]) == 1  # behind a hundred others once
    alone = queue_of(*(claim("one", "app_a") for _ in range(100)))
    assert [len(alone.take()) for _ in range(3)] == [LARGEST_BATCH, 36, 0]


async def test_a_claim_whose_caller_has_gone_is_not_committed(store: Store, ledger: LeaseLedger):
    connection, app = await granted(store), await an_app_of(store)
    leaving = asyncio.create_task(ledger.record(a_claim(connection, app)))
    staying = asyncio.create_task(ledger.record(a_claim(connection, app)))
    await asyncio.sleep(0)
    leaving.cancel()
    await staying
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert len(await leases_in_the_log(store)) == 1  # and no lease that had no one to go to
