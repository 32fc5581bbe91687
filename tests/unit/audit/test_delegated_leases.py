"""A lease by delegation is committed only while its whole chain is what it was judged by."""

import asyncio

import pytest

from evergrant_server.audit.lease_ledger import LeaseLedger, StaleClaim
from evergrant_server.audit.lease_record import DelegatedUse
from evergrant_server.core.agents.delegations import Delegation
from evergrant_server.core.ids import AppId, DelegationId
from evergrant_server.store import Store
from tests.conformance.store.samples import an_app_of, granted
from tests.fakes.databases import NOW
from tests.fakes.rows import a_delegation
from tests.unit.audit.claims import KEY, a_claim, leases_in_the_log


async def a_chain(store: Store) -> tuple[Delegation, Delegation]:
    """The root of the app `front`, and what `back` has of it."""
    front, back = await an_app_of(store, name="front"), await an_app_of(store, name="back")
    root = a_delegation(front, KEY, "s", NOW)
    own = a_delegation(back, KEY, "s", NOW)
    own = own.model_copy(update={"path": (root.id, own.id)})
    async with store.write() as tx:
        for one in (root, own):
            await tx.delegations.add(one)
    return root, own


def used(root: Delegation, own: Delegation, **apps: int) -> DelegatedUse:
    rows = ((root.id, root.revision), (own.id, own.revision))
    return DelegatedUse(rows, tuple((AppId(id), it) for id, it in apps.items()), {"subject": "s"})


@pytest.mark.parametrize("what", ["stopped", "deleted", "app disabled"])
async def test_attack_25_no_lease_is_committed_after_the_parents_end(
    store: Store, ledger: LeaseLedger, what: str
):
    connection, (root, own) = await granted(store), await a_chain(store)
    async with store.read() as tx:
        front, back = [await tx.access.app(it.tenant, it.app_id) for it in (root, own)]
    assert front is not None
    assert back is not None
    claim = a_claim(connection, back, delegated=used(root, own, **{front.id: front.revision}))
    await ledger.record(claim)
    async with store.write() as tx:
        if what == "stopped":
            await tx.delegations.replace(root.stopped("app:x", "a test", NOW), expected=root.revision)
        elif what == "deleted":
            await tx.delegations._delete("it", tenant=root.tenant, id=root.id)
        else:
            disabled = front.model_copy(update={"disabled": True})
            await tx.access.put_app(disabled, expected=front.revision)
    with pytest.raises(StaleClaim):
        await ledger.record(claim)
    await ledger.record(a_claim(connection, back))  # its own lease is none by delegation
    assert len(await leases_in_the_log(store)) == 2


async def test_a_lease_waits_for_a_stop_that_is_being_committed(store: Store, ledger: LeaseLedger):
    """On SQLite one transaction writes at a time; on PostgreSQL the claim is busy meanwhile."""
    connection, (root, own) = await granted(store), await a_chain(store)
    async with store.read() as tx:
        back = await tx.access.app(own.tenant, own.app_id)
    assert back is not None
    claim = a_claim(connection, back, delegated=used(root, own))
    async with store.write() as tx:
        await tx.delegations.replace(root.stopped("app:x", "a test", NOW), expected=root.revision)
        lease = asyncio.create_task(ledger.record(claim))
        for _ in range(20):
            await asyncio.sleep(0.005)
            assert not lease.done()
    with pytest.raises(StaleClaim):
        await lease


async def test_the_counts_of_a_stop_are_of_what_it_ends(store: Store):
    root, own = await a_chain(store)
    async with store.read() as tx:
        back = await tx.access.app(own.tenant, own.app_id)
    assert back is not None
    below = []
    for path in ((root.id, own.id), (root.id, own.id), (root.id,)):
        one = a_delegation(back, KEY, "s", NOW)
        below.append(one.model_copy(update={"path": (*path, one.id)}))
    async with store.write() as tx:
        for one in below:
            await tx.delegations.add(one)
        assert await tx.delegations.count_live_under(own, NOW) == 3
        await tx.delegations.replace(own.stopped("app:x", "a test", NOW), expected=1)
        assert await tx.delegations.count_live_under(below[0], NOW) == 0
        assert await tx.delegations.count_live_under(root, NOW) == 2
        assert await tx.delegations.count_live_under(root, root.expires_at) == 0
        assert [it.id for it in await tx.delegations.chain(below[0])] == list(below[0].path)
        assert await tx.delegations.prune(root.expires_at) == 0
        later = root.expires_at.replace(year=root.expires_at.year + 1)
        assert await tx.delegations.prune(later) == 5
        assert await tx.delegations.find(DelegationId(root.id)) is None
