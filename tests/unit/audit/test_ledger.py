"""The lease ledger: no lease that isn't committed, and none after a committed revocation."""

import asyncio
import hashlib
from datetime import timedelta

import pytest
from sqlalchemy import text

from evergrant_server import audit
from evergrant_server.audit import lease_ledger
from evergrant_server.audit.lease_ledger import LeaseLedger, RecordedLease, StaleClaim
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.crypto import KeyRing
from evergrant_server.store import Store
from evergrant_server.store.database.engine import Pool
from tests.conformance.store.samples import (
    ACME,
    a_key,
    a_permit,
    an_app_of,
    granted,
    refreshed,
    some_tokens,
)
from tests.fakes.clock import SetClock
from tests.fakes.databases import NOW
from tests.fakes.failures import fails
from tests.fakes.patience import PATIENCE_S, eventually
from tests.unit.audit.claims import a_claim, count_commits, leases_in_the_log


async def test_a_lease_is_in_the_log_when_record_returns(store: Store, ledger: LeaseLedger):
    connection, app = await granted(store), await an_app_of(store)
    recorded = await ledger.record(a_claim(connection, app))
    async with store.read() as tx:
        (record,) = await audit.page(tx, ACME, object=connection.id, limit=5)
        rows = await tx.context_rows.connection(ACME, connection.id)
        assert rows is not None
        assert rows.leased_generation == 1
        assert await tx.connections.get(ACME, connection.id) == connection  # its revision didn't move
    assert (record.shard, record.seq, recorded.place) == ("lease-1", 0, "lease-1/0")
    assert record.context == RequestContext(by="app:billing", trace_id="b" * 32)
    assert record.detail == {"app": app.id, "generation": 1, "scopes": ["repo"]}


async def test_a_lease_of_50_000_scopes_leaves_a_bounded_record(store: Store, ledger: LeaseLedger):
    connection, app = await granted(store), await an_app_of(store)
    scopes = tuple(f"scope{n:03}" for n in range(50_000))
    await ledger.record(a_claim(connection, app, scopes=scopes))
    async with store.read() as tx:
        (record,) = await audit.page(tx, ACME, object=connection.id, limit=5)
    assert len(record.model_dump_json()) < 16_384
    kept = record.detail["scopes"]
    assert kept == list(scopes[: len(kept)])
    assert record.detail["scope_count"] == 50_000
    assert record.detail["scopes_sha256"] == hashlib.sha256(" ".join(scopes).encode()).hexdigest()
    assert (await audit.verify_log(store, ACME)).ok


async def test_fifty_leases_at_once_make_one_gapless_tree_in_few_commits(
    store: Store, ledger: LeaseLedger, monkeypatch: pytest.MonkeyPatch
):
    connections = [await granted(store, subject=f"s{n}") for n in range(5)]
    app = await an_app_of(store)
    commits = count_commits(ledger, monkeypatch)
    await asyncio.gather(*(ledger.record(a_claim(connections[n % 5], app)) for n in range(50)))
    assert len(commits) <= 5
    assert [seq for _, seq in await leases_in_the_log(store)] == list(range(50))
    assert (await audit.verify_log(store, ACME)).ok


async def test_who_got_a_token_and_asks_again_shares_a_commit_with_the_others(
    store: Store, ledger: LeaseLedger, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(lease_ledger, "_RETURN_S", PATIENCE_S)
    connection, app = await granted(store), await an_app_of(store)
    claim, commits = a_claim(connection, app), count_commits(ledger, monkeypatch)

    async def ask_again(turns: int) -> None:
        for _ in range(turns):  # its next request is on its way
            await asyncio.sleep(0)
        await ledger.record(claim)

    await asyncio.gather(*(ledger.record(claim) for _ in range(8)))
    before = len(commits)
    await asyncio.gather(*(ask_again(turns) for turns in range(8)))
    assert len(commits) == before + 1


async def test_a_ledger_that_was_cancelled_leaves_nobody_waiting(store: Store, clock: SetClock):
    connection, app = await granted(store), await an_app_of(store)
    ledger = LeaseLedger(store, "lease-1", clock)
    await ledger.start()
    waiting = [asyncio.create_task(ledger.record(a_claim(connection, app))) for _ in range(3)]
    await asyncio.sleep(0)
    assert ledger._task is not None
    ledger._task.cancel()
    ended = await asyncio.gather(*waiting, return_exceptions=True)
    assert [it.code for it in ended if isinstance(it, Failure)] == [ErrorCode.AUDIT_UNAVAILABLE] * 3
    with pytest.raises(Failure):
        await ledger.record(a_claim(connection, app))


async def test_a_change_of_app_key_permit_or_generation_makes_a_claim_stale(
    store: Store, ledger: LeaseLedger
):
    connection, app = await granted(store), await an_app_of(store)
    await ledger.record(a_claim(connection, app))
    async with store.write() as tx:
        await tx.access.put_permit(a_permit(app), expected=None)
    with pytest.raises(StaleClaim):
        await ledger.record(a_claim(connection, app))
    async with store.write() as tx:
        await tx.access.add_key(a_key(app))
        now = await tx.access.app(ACME, app.id)
    assert now is not None
    await ledger.record(a_claim(connection, now))
    async with store.write() as tx:
        disabled = await tx.access.put_app(now.model_copy(update={"disabled": True}), expected=now.revision)
    with pytest.raises(StaleClaim):
        await ledger.record(a_claim(connection, disabled))
    newer = await refreshed(store, connection, some_tokens("at-2", "rt-2"))
    with pytest.raises(StaleClaim):
        await ledger.record(a_claim(newer, disabled, generation=1))


async def test_a_claim_outlives_its_key_in_no_batch(store: Store, ledger: LeaseLedger):
    """Expiry moves no revision."""
    connection, app = await granted(store), await an_app_of(store)
    ends = [a_claim(connection, app, valid_until=NOW + timedelta(microseconds=more)) for more in (0, 1)]
    ended = await asyncio.gather(*(ledger.record(it) for it in ends), return_exceptions=True)
    assert [type(it) for it in ended] == [StaleClaim, RecordedLease]


async def test_the_last_use_of_a_key_is_written_once_a_minute(
    store: Store, ledger: LeaseLedger, clock: SetClock, monkeypatch: pytest.MonkeyPatch
):
    connection, app = await granted(store), await an_app_of(store)
    key = a_key(app)
    async with store.write() as tx:
        await tx.access.add_key(key)
    app = app.model_copy(update={"revision": app.revision + 1})
    commits = count_commits(ledger, monkeypatch)
    for later, seen in ((0, 0), (59, 0), (1, 60)):
        clock.advance(later)
        await ledger.record(a_claim(connection, app, key_id=key.id))
        async with store.read() as tx:
            assert await tx.access.last_uses(ACME, app.id) == {key.id: NOW + timedelta(seconds=seen)}
            assert await tx.access.app(ACME, app.id) == app  # cached callers stay valid
    assert len(commits) == 3
    clock.advance(60)
    ledger.note_use(ACME, key.id)  # a request that isn't a lease
    await ledger.stop()
    async with store.read() as tx:
        assert await tx.access.last_uses(ACME, app.id) == {key.id: NOW + timedelta(seconds=120)}
    async with store.write() as tx:
        await tx.access.delete_app(ACME, app.id)
        left = await tx.connection.execute(text("SELECT count(*) FROM app_key_use"))
        assert left.scalar_one() == 0


async def test_the_last_use_of_a_permit_is_written_once_a_minute_and_goes_with_it(
    store: Store, ledger: LeaseLedger, clock: SetClock
):
    connection, app = await granted(store), await an_app_of(store)
    permits = [a_permit(app, name=name) for name in ("read", "write", "never")]
    async with store.write() as tx:
        for permit in permits:
            await tx.access.put_permit(permit, expected=None)
        changed = await tx.access.app(ACME, app.id)
    assert changed is not None

    async def uses() -> list[tuple[str, float]]:
        async with store.read() as tx:
            found = await tx.access.permit_uses(ACME, [it.id for it in permits])
        names = {it.id: it.name for it in permits}
        return sorted((names[id], (at - NOW).total_seconds()) for id, at in found.items())

    await ledger.record(a_claim(connection, changed, permit=permits[0], observed=("new",)))
    async with store.read() as tx:
        (record,) = await audit.page(tx, ACME, object=connection.id, limit=5)
    assert (record.detail["permit"], record.detail["would_be_denied_by"]) == ("read", ["new"])
    assert await uses() == [("read", 0)]
    clock.advance(59)
    await ledger.record(a_claim(connection, changed, permit=permits[0]))
    await ledger.record(a_claim(connection, changed, permit=permits[1]))
    assert await uses() == [("read", 0), ("write", 59)]
    clock.advance(1)
    await ledger.record(a_claim(connection, changed, permit=permits[0]))
    assert await uses() == [("read", 60), ("write", 59)]
    async with store.write() as tx:
        assert await tx.access.app(ACME, app.id) == changed  # cached callers stay valid
        await tx.access.delete_permit(permits[0])
    assert await uses() == [("write", 59)]
    async with store.write() as tx:
        await tx.access.delete_app(ACME, app.id)
    assert await uses() == []


async def test_a_foreign_tenant_or_an_unknown_id_is_stale(store: Store, ledger: LeaseLedger):
    connection, app = await granted(store), await an_app_of(store)
    stranger = await an_app_of(store, tenant="other")
    for claim in (
        a_claim(connection, app, tenant="other"),
        a_claim(connection, stranger),
        a_claim(connection, app, connection_id="con_none"),
        a_claim(connection, app, app_id="app_none"),
    ):
        with pytest.raises(StaleClaim):
            await ledger.record(claim)


async def test_the_stale_do_not_hold_up_the_good(store: Store, ledger: LeaseLedger):
    connection, app = await granted(store), await an_app_of(store)
    good, stale = a_claim(connection, app), a_claim(connection, app, connection_revision=99)
    ended = await asyncio.gather(*(ledger.record(it) for it in [good, stale] * 5), return_exceptions=True)
    assert [type(it) for it in ended] == [RecordedLease, StaleClaim] * 5
    assert [seq for _, seq in await leases_in_the_log(store)] == [0, 1, 2, 3, 4]


async def test_a_broken_log_of_one_tenant_stops_no_lease_of_another(store: Store, ledger: LeaseLedger):
    good, broken = [
        a_claim(await granted(store, tenant=tenant), await an_app_of(store, tenant=tenant))
        for tenant in (ACME, "other")
    ]
    await ledger.record(broken)
    async with store.write() as tx:
        await tx.connection.execute(text("UPDATE audit_tree SET mac = NULL WHERE tenant = 'other'"))
    batch = [good, broken] * 5
    ended = await asyncio.gather(*(ledger.record(it) for it in batch), return_exceptions=True)
    codes = [it.code if isinstance(it, Failure) else None for it in ended]
    assert codes == [None, ErrorCode.AUTHORITY_BROKEN] * 5
    assert len(await leases_in_the_log(store)) == 5
    assert (await audit.verify_log(store, ACME)).ok


async def test_when_the_log_cannot_be_written_nothing_is_leased(store: Store, ledger: LeaseLedger):
    connection, app = await granted(store), await an_app_of(store)
    async with store.write() as tx:
        await tx.connection.execute(text("ALTER TABLE audit RENAME TO audit_gone"))
    ended = await asyncio.gather(
        *(ledger.record(a_claim(connection, app)) for _ in range(3)), return_exceptions=True
    )
    assert [it.code for it in ended if isinstance(it, Failure)] == [ErrorCode.AUDIT_UNAVAILABLE] * 3
    async with store.write() as tx:
        await tx.connection.execute(text("ALTER TABLE audit_gone RENAME TO audit"))
        rows = await tx.context_rows.connection(ACME, connection.id)
        assert rows is not None
        assert rows.leased_generation == 0
    await ledger.record(a_claim(connection, app))
    assert len(await leases_in_the_log(store)) == 1


async def test_stopping_commits_what_waits_and_refuses_the_rest(store: Store, clock: SetClock):
    connection, app = await granted(store), await an_app_of(store)
    ledger = LeaseLedger(store, "lease-1", clock)
    with fails(ErrorCode.AUDIT_UNAVAILABLE):
        await ledger.record(a_claim(connection, app))
    await ledger.start()
    with pytest.raises(RuntimeError, match="already"):
        await ledger.start()
    waiting = [asyncio.create_task(ledger.record(a_claim(connection, app))) for _ in range(4)]
    await asyncio.sleep(0)
    await ledger.stop()
    await asyncio.gather(*waiting)
    with pytest.raises(Failure):
        await ledger.record(a_claim(connection, app))
    assert len(await leases_in_the_log(store)) == 4


async def test_two_processes_lease_beside_each_other(
    store: Store, database_url: str, ring: KeyRing, clock: SetClock
):
    connections = [await granted(store, subject=f"s{n}") for n in range(4)]
    app = await an_app_of(store)
    second = await Store.open(database_url, ring, clock)
    ledgers = [LeaseLedger(store, "lease-1", clock), LeaseLedger(second, "lease-2", clock)]
    for ledger in ledgers:
        await ledger.start()

    async def lease(n: int) -> None:
        await ledgers[n % 2].record(a_claim(connections[n % 4], app))

    await asyncio.gather(*(lease(n) for n in range(40)))
    for ledger in ledgers:
        await ledger.stop()
    await second.close()
    verdict = await audit.verify_log(store, ACME)
    assert verdict.ok
    assert {shard: head.size for shard, head in verdict.heads.items()} == {"lease-1": 20, "lease-2": 20}


async def test_a_session_that_the_database_ended_is_replaced(store: Store, clock: SetClock):
    """The driver's own connection tells the pool nothing of its end."""
    if store.is_sqlite:
        pytest.skip("SQLite has no sessions")
    connection, app = await granted(store), await an_app_of(store)
    ledger = LeaseLedger(store.in_pool(Pool.LEDGER), "api-1", clock)
    await ledger.start()
    await ledger.record(a_claim(connection, app))

    async def recorded() -> bool:
        try:
            await ledger.record(a_claim(connection, app))
        except Failure as failure:
            if failure.code is not ErrorCode.AUDIT_UNAVAILABLE:
                raise
            return False
        return True

    ended = "SELECT pg_terminate_backend(pid, 20000) FROM pg_stat_activity"
    others = "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    async with store.write() as tx:
        assert all((await tx.connection.execute(text(f"{ended} {others}"))).scalars())
    await eventually(recorded)  # whether the driver hears of the end before its next statement is open
    await ledger.stop()
