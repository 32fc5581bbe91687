"""The short form of the proof: real processes, no SIGKILL (`python -m tests.faults.rotation --kills`).

And that its checks can fail.
"""

from pathlib import Path

from sqlalchemy import update

from bench import installation
from bench.processes import sqlite
from evergrant_server.core.clock import SystemClock
from evergrant_server.core.key_rotation import RotationKind
from evergrant_server.crypto import KeyRing, Role, Sealed
from evergrant_server.store import Store
from evergrant_server.store.connections.tables import ConnectionGrantRow
from evergrant_server.store.database.columns import table_of
from evergrant_server.store.keys import NO_CONNECTION, KeyRow
from tests.faults.rotation.load import Tally
from tests.faults.rotation.place import Size
from tests.faults.rotation.run import judged, prove
from tests.faults.rotation.walk import Seen, walked

_GRANTS, _KEYS = table_of(ConnectionGrantRow), table_of(KeyRow)


async def test_a_tenants_keys_are_rotated_under_load_and_no_lease_fails(tmp_path: Path):
    lines: list[str] = []
    size = Size(rows=60, readers=2, refreshing=2, pause_s=0.3, seed=1)
    kinds = (RotationKind.TENANT,)
    wrong = await prove(tmp_path, sqlite(tmp_path), size, service="file", kinds=kinds, say=lines.append)
    assert wrong == [], lines


async def test_the_walk_opens_everything_and_names_what_no_key_opens(tmp_path: Path):
    replies = [installation.token_reply() for _ in range(3)]
    ready = await installation.prepare(tmp_path, sqlite(tmp_path), 8480, replies)
    ring = KeyRing.open(ready.settings.key_path, Role.OPERATOR)
    store = await Store.open(ready.settings.database_url, ring, SystemClock())
    try:
        seen = await walked(store, pause_s=0)
        assert (seen.keys, seen.values, seen.unreadable) == (9, 7, [])
        first, second, third = (connection.id for connection in ready.connections)
        async with store.write() as tx:
            of_first = update(_GRANTS).where(_GRANTS.c.connection_id == first)
            await tx.connection.execute(of_first.values(sealed_access=Sealed(b"nothing")))
            of_second = _KEYS.c.connection_id.in_((second, NO_CONNECTION)) & (_KEYS.c.purpose == "refresh")
            await tx.connection.execute(update(_KEYS).where(of_second).values(sealed_key=Sealed(b"nothing")))
        seen = await walked(store, pause_s=0)
    finally:
        await store.close()
    values = [name for name in seen.unreadable if name.startswith("connection_grant")]
    assert sorted(name.split(" of ")[0] for name in values) == [
        "connection_grant.sealed_access", *["connection_grant.sealed_refresh"] * 3
    ]  # fmt: skip
    assert third in "".join(values)
    assert len(seen.unreadable) - len(values) == 4, "the tenant's key, and those that it wraps"


def test_what_readers_and_walks_have_seen_is_judged():
    good = Tally(leases=1, refreshes=1), Seen(walks=1, values=1)
    assert judged("then", *good, say=len) == []
    assert judged("then", Tally(leases=1, refreshes=1, failed=["a lease"]), good[1], say=len) == [
        "then: a lease"
    ]
    assert judged("then", good[0], Seen(values=1, unreadable=["a row"]), say=len) == ["then: a row"]
    assert judged("then", Tally(), Seen(), say=len) == ["then: there was no load"]
