"""Two regions on two PostgreSQL servers: what waits for the standby, and which region leases."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

from evergrant_server.audit.lease_ledger import LeaseClaim, LeaseLedger
from evergrant_server.core.clock import SystemClock
from evergrant_server.core.errors import ErrorCode
from evergrant_server.crypto import KeyRing, Role
from evergrant_server.regions.barrier import Barrier, NotConfirmed
from evergrant_server.regions.serving_region import Region, RegionRules
from evergrant_server.store import Store
from evergrant_server.store.database import schema
from tests.conformance.store.samples import ACME, an_app_of, granted
from tests.fakes.failures import fails
from tests.fakes.patience import PATIENCE_S, eventually
from tests.fakes.postgresql.replicated import PostgresServer, replayed, replicated
from tests.unit.audit.claims import a_claim

TTL = timedelta(seconds=3)
_PATIENCE = timedelta(seconds=PATIENCE_S)
_WAITERS = "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
_LEASES = "SELECT count(*) FROM audit WHERE action = 'lease.issued'"


@asynccontextmanager
async def region_of(
    server: PostgresServer,
    name: str,
    ring: KeyRing,
    *,
    stops_when_away: bool = False,
    wait: timedelta = TTL / 8,
    authority: timedelta = TTL,
) -> AsyncIterator[tuple[Store, Region, LeaseLedger]]:
    store = await Store.open(server.url(), ring, SystemClock())
    rules = RegionRules(name, wait=wait, authority=authority, stops_when_away=stops_when_away)
    region = Region(store, rules)
    ledger = LeaseLedger(store, f"lease-{name}-{wait.total_seconds():g}", SystemClock(), region)
    await ledger.start()
    try:
        yield store, region, ledger
    finally:
        await ledger.stop()
        await store.close()


async def fenced(ledger: LeaseLedger, claim: LeaseClaim) -> bool:
    """Whether the region may no longer lease."""
    ended = await asyncio.gather(ledger.record(claim), return_exceptions=True)
    return getattr(ended[0], "code", None) is ErrorCode.REGION_FENCED


async def refreshes_no_more(region: Region) -> bool:
    ended = await asyncio.gather(region.confirmed(), return_exceptions=True)
    return getattr(ended[0], "code", None) is ErrorCode.REGION_FENCED


async def leases_again(region: Region, ledger: LeaseLedger, claim: LeaseClaim) -> bool:
    await region.renew()
    ended = await asyncio.gather(ledger.record(claim), return_exceptions=True)
    return not isinstance(ended[0], BaseException)


async def test_a_region_serves_as_long_as_the_other_one_confirms_and_never_after_it_took_over(
    tmp_path: Path,
):
    KeyRing.create(tmp_path / "keys.json")
    ring = KeyRing.open(tmp_path / "keys.json", Role.WORKER)
    async with replicated(synchronous=True) as (first, second):
        await schema.upgrade(first.url())
        async with (
            region_of(first, "a", ring, wait=_PATIENCE, authority=3 * _PATIENCE) as (store, patient, book),
            region_of(first, "a", ring) as (_, region, ledger),
            region_of(first, "a", ring, stops_when_away=True) as (_, stopping, _ledger),
        ):
            connection, app = await granted(store), await an_app_of(store)
            claim = a_claim(connection, app, valid_until=SystemClock().now() + timedelta(days=1))
            assert await fenced(book, claim), "nobody has the authority yet"
            async with store.write() as tx:
                await tx.regions.put("a", standalone=False)
                await tx.regions.put_durability(ACME, "region")
            assert await patient.renew()
            assert not await patient.renew(), "it was renewed a moment ago"
            await book.record(claim)  # its record is waited for
            await replayed(second)
            assert await second.value(_LEASES) == 1
            await patient.confirmed()
            assert (await patient.has_all(), patient.sent_alone) == (True, 0)

            await eventually(region.renew, bool)
            second.pause()
            ended = asyncio.create_task(stopping.confirmed())
            await region.confirmed()  # alone, after the wait
            assert region.sent_alone == 1
            with fails(ErrorCode.REGION_AWAY):
                await ended
            assert (await region.has_all(), await stopping.has_all()) == (True, False)
            await eventually(lambda: refreshes_no_more(region), bool)
            assert await fenced(ledger, claim)
            assert not await region.renew()

            second.resume()
            await eventually(lambda: leases_again(region, ledger, claim), bool)
            first.pause()
            await second.promote()
            async with region_of(second, "b", ring) as (elsewhere, new, new_ledger):
                assert await fenced(new_ledger, claim), "the old region still has the authority"
                assert not await new.is_here()
                await asyncio.sleep(TTL.total_seconds())
                async with elsewhere.write() as tx:
                    old = await tx.regions.authority()
                    assert old is not None
                    assert await tx.regions.take("b", old)
                await new.confirmed()
                await new_ledger.record(claim)
            first.resume()
            assert await fenced(ledger, claim)
            with fails(ErrorCode.REGION_FENCED):
                await region.confirmed()
            assert await second.value(_LEASES) == await first.value(_LEASES) + 1


async def _a_lease_that_waits_is_refused(server: PostgresServer, ring: KeyRing) -> None:
    async with region_of(server, "a", ring, authority=timedelta(0)) as (store, region, ledger):
        async with store.write() as tx:
            await tx.regions.put("a", standalone=False)
            await tx.regions.put_durability(ACME, "region")
        await region.look()
        valid_until = SystemClock().now() + timedelta(days=1)
        claim = a_claim(await granted(store), await an_app_of(store), valid_until=valid_until)
        with fails(ErrorCode.AUDIT_UNAVAILABLE, "the other region doesn't have the record"):
            await ledger.record(claim)
        assert await server.value(_LEASES) == 1


def twenty_of(barrier: Barrier) -> asyncio.Future[list[BaseException | None]]:
    return asyncio.gather(*(barrier.passed() for _ in range(20)), return_exceptions=True)


async def test_neither_a_barrier_nor_a_lease_passes_without_a_standby_or_once_its_wait_was_cancelled(
    tmp_path: Path,
):
    KeyRing.create(tmp_path / "keys.json")
    ring = KeyRing.open(tmp_path / "keys.json", Role.WORKER)
    async with replicated() as (first, _):
        await schema.upgrade(first.url())
        await _a_lease_that_waits_is_refused(first, ring)
        store = await Store.open(first.url(), ring, SystemClock())
        try:
            barrier = Barrier(store, PATIENCE_S)
            ended = await asyncio.gather(barrier.passed(), return_exceptions=True)
            assert isinstance(ended[0], NotConfirmed)
            assert "waits for no standby" in str(ended[0])
            first.configure(synchronous_standby_names="nobody", synchronous_commit="local")
            await first.reload()
            waiting = twenty_of(barrier)

            async def cancelled() -> int:
                nonlocal waiting
                if waiting.done():  # its session hadn't read the settings yet
                    waiting = twenty_of(barrier)
                return await first.value(_WAITERS)

            await eventually(cancelled)
            ended = await waiting
            assert {type(problem) for problem in ended} == {NotConfirmed}
            assert "01000" in str(ended[0])
        finally:
            await store.close()
