"""How soon a disabled app or tenant is refused everywhere while it leases from five processes, flat out.

As a program (`python -m bench.disabling FOLDER URL`): one of the processes. It reads its claims from standard
input, leases until the ledger refuses one, and prints one line of JSON.
"""

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from time import perf_counter
from typing import Any

from sqlalchemy import text

from bench import installation
from bench.bounds import Bounds
from bench.installation import TENANT, Installation
from bench.ledger import lease_claim
from evergrant_server.audit.lease_ledger import LeaseLedger, StaleClaim, new_lease_shard
from evergrant_server.checkout import ROOT
from evergrant_server.core.clock import SystemClock
from evergrant_server.crypto.keyring import KeyRing, Role
from evergrant_server.store import Store, Transaction
from tests.fakes.ports import free_port

PROCESSES = 5
_CONNECTIONS = 20
_CALLERS = 16  # in each process
_LOAD_S = 2.0  # before the app is disabled


@dataclass(frozen=True)
class Disabling:
    """Seconds. `took` is the transaction that disables, `effect` from its start to the last lease that left.

    `late` is the number of leases that were committed after it; another one than 0 breaks an invariant.
    """

    what: str
    leases: int
    took: float
    effect: float
    late: int


async def measure(folder: Path, url: str, bounds: Bounds, what: str = "app") -> Disabling:
    """Disable the app or its tenant under load, on an empty database."""
    replies = [installation.token_reply() for _ in range(_CONNECTIONS)]
    ready = await installation.prepare(folder, url, free_port(), replies)
    settings = ready.settings
    store = await Store.open(settings.database_url, KeyRing.open(settings.key_path, Role.API), SystemClock())
    children = [await _child(ready) for _ in range(PROCESSES)]
    try:
        for child in children:
            assert child.stdout is not None
            await child.stdout.readline()  # it leases
        await asyncio.sleep(min(_LOAD_S, bounds.seconds))
        began = perf_counter()
        async with store.write() as tx:
            await (_disable_app(tx, ready) if what == "app" else _disable_tenant(tx))
            recorded = await _recorded(tx)
        committed = perf_counter()
        results = [json.loads((await child.communicate())[0]) for child in children]
        async with store.read() as tx:
            late = await _recorded(tx) - recorded
    finally:
        for child in children:
            if child.returncode is None:
                child.kill()
        await store.close()
    last = max(it["last"] for it in results)
    leases = sum(it["leases"] for it in results)
    return Disabling(what, leases, committed - began, last - began, late)


async def _disable_app(tx: Transaction, ready: Installation) -> None:
    app = await tx.access.app(TENANT, ready.app.id)
    assert app is not None
    await tx.access.put_app(app.model_copy(update={"disabled": True}), expected=app.revision)


async def _disable_tenant(tx: Transaction) -> None:
    standing = await tx.tenants.get(TENANT, TENANT)
    assert standing is not None
    await tx.tenants.put(standing.model_copy(update={"disabled": True}), expected=standing.revision)


async def _recorded(tx: Transaction) -> int:
    """Leases in the log. Inside the transaction that disables: all that are committed before it is."""
    query = text("SELECT sum(count) FROM audit_shard WHERE tenant = :tenant AND shard <> 'main'")
    return int((await tx.connection.execute(query, {"tenant": TENANT})).scalar_one() or 0)


async def _child(ready: Installation) -> asyncio.subprocess.Process:
    settings = ready.settings
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "bench.disabling", str(settings.data_dir), settings.database_url),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    assert child.stdin is not None
    facts = [
        (it.id, it.revision, it.generation, ready.app.id, ready.app.revision) for it in ready.connections
    ]
    child.stdin.write(json.dumps(facts).encode() + b"\n")
    await child.stdin.drain()
    return child


async def lease_flat_out(folder: Path, url: str, facts: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """Lease until a claim is refused; the number of leases, and when the last one could leave."""
    clock = SystemClock()
    store = await Store.open(url, KeyRing.open(folder / "keys.json", Role.API), clock)
    ledger = LeaseLedger(store, new_lease_shard(), clock)
    claims = cycle([lease_claim(TENANT, *it, at=clock.now()) for it in facts])
    leases, last = 0, 0.0

    async def call() -> None:
        nonlocal leases, last
        while True:
            try:
                await ledger.record(replace(next(claims), at=clock.now()))
            except StaleClaim:
                return
            leases, last = leases + 1, perf_counter()

    await ledger.start()
    print("leasing", flush=True)
    await asyncio.gather(*(call() for _ in range(_CALLERS)))
    await ledger.stop()
    await store.close()
    return {"leases": leases, "last": last}


if __name__ == "__main__":
    given = json.loads(sys.stdin.readline())
    print(json.dumps(asyncio.run(lease_flat_out(Path(sys.argv[1]), sys.argv[2], given))), flush=True)
