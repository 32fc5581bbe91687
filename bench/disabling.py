"""How soon a disabled app or tenant is refused everywhere while it leases from five processes, flat out.

As a program (`python -m bench.disabling FOLDER URL`): one of the processes. For each line of claims on
standard input it leases until the ledger refuses one, and prints one line of JSON.
"""

import asyncio
import json
import sys
from asyncio.subprocess import Process
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
from evergrant_server.core.access import App
from evergrant_server.core.clock import SystemClock
from evergrant_server.crypto.keyring import KeyRing, Role
from evergrant_server.store import Store, Transaction
from tests.fakes.ports import free_port

PROCESSES = 5
_CONNECTIONS = 20
_CALLERS = 16  # in each process
_LEASED = b"leased\n"  # what a process says of its first lease
_LOAD_S = 2.0  # before the app is disabled


@dataclass(frozen=True)
class Disabling:
    """Seconds. `took` is the transaction that disables, `effect` from its start to the last lease that left.

    `late` is the number of leases that were committed after it; another one than 0 breaks an invariant.
    """

    disabled: str
    leases: int
    took: float
    effect: float
    late: int


async def measure(folder: Path, url: str, bounds: Bounds) -> list[Disabling]:
    """Disable an app under load, on an empty database, then the tenant while another of its apps leases."""
    replies = [installation.token_reply() for _ in range(_CONNECTIONS)]
    ready = await installation.prepare(folder, url, free_port(), replies)
    settings = ready.settings
    store = await Store.open(settings.database_url, KeyRing.open(settings.key_path, Role.API), SystemClock())
    crowd = _Crowd(ready, store, [await _child(ready) for _ in range(PROCESSES)])
    try:
        return [
            await crowd.disabled("app", ready.app, bounds),
            await crowd.disabled("tenant", ready.other_app, bounds),
        ]
    finally:
        await crowd.end()
        await store.close()


@dataclass(frozen=True)
class _Crowd:
    """The processes that lease."""

    ready: Installation
    store: Store
    children: list[Process]

    async def disabled(self, kind: str, app: App, bounds: Bounds) -> Disabling:
        """Lease as this app, disable what is said, and wait until all are refused."""
        for child in self.children:
            assert child.stdin is not None
            child.stdin.write(_claims(self.ready, app))
        for child in self.children:
            if (told := await _told(child)) != _LEASED:
                raise RuntimeError(f"a process leases nothing: {told.decode()}")
        await asyncio.sleep(min(_LOAD_S, bounds.seconds))
        began = perf_counter()
        async with self.store.write() as tx:
            await (_disable_app(tx, app) if kind == "app" else _disable_tenant(tx))
            recorded = await _recorded(tx)
        committed = perf_counter()
        results = [json.loads(await _told(child)) for child in self.children]
        async with self.store.read() as tx:
            late = await _recorded(tx) - recorded
        last = max(result["last"] for result in results)
        leases = sum(result["leases"] for result in results)
        return Disabling(kind, leases, committed - began, last - began, late)

    async def end(self) -> None:
        for child in self.children:
            child.kill()
            await child.communicate()


async def _told(child: Process) -> bytes:
    assert child.stdout is not None
    return await child.stdout.readline()


async def _disable_app(tx: Transaction, leasing: App) -> None:
    app = await tx.access.app(TENANT, leasing.id)
    assert app is not None
    await tx.access.put_app(app.model_copy(update={"disabled": True}), expected=app.revision)


async def _disable_tenant(tx: Transaction) -> None:
    standing = await tx.tenants.get(TENANT, TENANT)
    assert standing is not None
    await tx.tenants.put(standing.model_copy(update={"disabled": True}), expected=standing.revision)


async def _recorded(tx: Transaction) -> int:
    """Leases in the log. Inside the transaction that disables: all that are committed before it is."""
    query = text("SELECT sum(size) FROM audit_tree WHERE tenant = :tenant AND shard NOT LIKE 'main-%'")
    return int((await tx.connection.execute(query, {"tenant": TENANT})).scalar_one() or 0)


async def _child(ready: Installation) -> Process:
    settings = ready.settings
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "bench.disabling", str(settings.data_dir), settings.database_url),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )


def _claims(ready: Installation, app: App) -> bytes:
    facts = [(row.id, row.revision, row.generation, app.id, app.revision) for row in ready.connections]
    return json.dumps(facts).encode() + b"\n"


async def work(folder: Path, url: str) -> None:
    clock = SystemClock()
    store = await Store.open(url, KeyRing.open(folder / "keys.json", Role.API), clock)
    while line := await asyncio.to_thread(sys.stdin.readline):
        print(json.dumps(await lease_flat_out(store, clock, json.loads(line))), flush=True)
    await store.close()


async def lease_flat_out(store: Store, clock: SystemClock, facts: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """Lease until a claim is refused; the number of leases, and when the last one could leave."""
    ledger = LeaseLedger(store, new_lease_shard(), clock)
    claims = cycle([lease_claim(TENANT, *fact, at=clock.now()) for fact in facts])
    leases, last = 0, 0.0

    async def call() -> None:
        nonlocal leases, last
        while True:
            try:
                await ledger.record(replace(next(claims), at=clock.now()))
            except StaleClaim:
                return
            if not leases:
                print(_LEASED.decode(), end="", flush=True)
            leases, last = leases + 1, perf_counter()

    await ledger.start()
    await asyncio.gather(*(call() for _ in range(_CALLERS)))
    await ledger.stop()
    return {"leases": leases, "last": last}


if __name__ == "__main__":
    asyncio.run(work(Path(sys.argv[1]), sys.argv[2]))
