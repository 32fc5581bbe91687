"""One drill: load, the end of a region, the promotion of the other, and what is left of everything."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from sqlalchemy import func, select

from bench.load import HOST
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.store.audit_tables import AuditRow
from evergrant_server.store.database.columns import table_of
from tests.fakes.patience import PATIENCE_S, eventually
from tests.faults.region.place import Case, Place, promoted, two_regions

_AUDIT = table_of(AuditRow)
_AFTER_S = 2.0  # of leases at the old region, once it has come back
_AT_ONCE = 8  # refreshes of the last look
_REFUSED_S = 0.25  # until a caller that was refused asks again


@dataclass
class Outcome:
    """A row of the table. Seconds count from the moment at which the region ended; `at_stake` is what the
    old region says of itself while it is cut off: the connections that it refreshed alone, at most."""

    leases: int = 0
    refreshes: int = 0
    leased_after_s: float = -1.0
    promote_s: float = 0.0
    open_attempts: int = 0
    fates: dict[str, int] = field(default_factory=dict)
    at_stake: int = 0
    lost: int = 0
    waiting: int = 0
    double_sends: int = 0
    records_missing: int = 0
    leased_by_old: int = 0
    wrong: list[str] = field(default_factory=list)


@dataclass
class _Load:
    """Callers of one API. What is counted was answered."""

    place: Place
    port: int
    case: Case
    leased_at: list[float] = field(default_factory=list[float])
    refreshes: int = 0

    @property
    def leases(self) -> int:
        return len(self.leased_at)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self._lease(number)) for number in range(self.case.leasing)]
        tasks += [asyncio.create_task(self._refresh(number)) for number in range(self.case.refreshing)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def client(self, key: str) -> httpx2.AsyncClient:
        headers = {"Authorization": f"Bearer {key}"}
        url = f"http://{HOST}:{self.port}"
        return httpx2.AsyncClient(base_url=url, headers=headers, trust_env=False, timeout=PATIENCE_S)

    async def _lease(self, number: int) -> None:
        chance = random.Random(f"{self.case.seed} lease {number}")
        async with self.client(self.place.ready.key) as http:
            while True:
                subject = chance.choice(self.place.ready.connections).subject
                with suppress(httpx2.HTTPError):
                    reply = await http.post("/v1/lease", json={"integration": "crm", "subject": subject})
                    if reply.status_code == 200:
                        self.leased_at.append(time.monotonic())
                    else:
                        await asyncio.sleep(_REFUSED_S)
                await asyncio.sleep(chance.uniform(0.01, 0.05))

    async def _refresh(self, number: int) -> None:
        chance = random.Random(f"{self.case.seed} refresh {number}")
        mine = self.place.ready.connections[number :: self.case.refreshing]
        async with self.client(self.place.ready.admin_key) as http:
            while True:
                with suppress(httpx2.HTTPError):
                    path = f"/v1/connections/{chance.choice(mine).id}/refresh"
                    reply = await http.post(path, json={})
                    self.refreshes += reply.status_code == 200
                    if reply.status_code != 200:
                        await asyncio.sleep(_REFUSED_S)
                await asyncio.sleep(chance.uniform(0, 0.05))


async def drill(folder: Path, case: Case) -> Outcome:
    """Run one case. `Outcome.wrong` names what mustn't be."""
    outcome, is_cut = Outcome(), case.end == "cut"
    regions = two_regions(folder, case, networks=is_cut)
    async with regions as place:
        before = _Load(place, place.old.settings.port, case)
        after = _Load(place, place.new.settings.port, case)
        async with before.running():
            await asyncio.sleep(case.load_s * random.Random(case.seed).uniform(0.8, 1.2))
            ended_at = time.monotonic()
            _end_old(place, case)
            if is_cut:
                report = await _taken_over(place, case, after, outcome)
                outcome.at_stake = await _at_stake(place)
                place.join()
                await asyncio.sleep(_AFTER_S)
        if not is_cut:
            report = await _taken_over(place, case, after, outcome)
        outcome.leases, outcome.refreshes = before.leases, before.refreshes
        first = min(after.leased_at, default=ended_at)
        outcome.leased_after_s = first - ended_at
        outcome.open_attempts, outcome.fates = report["open_attempts"], report["fates"]
        outcome.waiting = len(report["waiting"])
        if is_cut:
            outcome.leased_by_old = sum(at > first for at in before.leased_at)
        if case.end == "pause":
            outcome.leased_by_old = await _leased_by_old(place, case)
        outcome.records_missing = await _records_missing(place, before.leases, after.leases)
        lost = await _lost(place, after, set(report["waiting"]))
        told = set(report["lost"])
        outcome.lost, most = len(lost), outcome.at_stake if case.away == "continue" else 0
        if len(lost.keys() - told) > most or told - lost.keys():
            outcome.wrong.append(f"{sorted(told)} are told as lost, {outcome.at_stake} at stake, of {lost}")
        outcome.double_sends = place.provider.in_flight_together()
    _judge(case, outcome)
    return outcome


def _end_old(place: Place, case: Case) -> None:
    match case.end:
        case "kill":
            place.old.end()
        case "pause":
            place.old.pause()
        case _:
            place.part()


async def _taken_over(place: Place, case: Case, load: _Load, outcome: Outcome) -> dict[str, Any]:
    """Promote the new region while it is asked for leases and refreshes; the command's report."""

    async def served() -> bool:
        return bool(load.leases and load.refreshes)

    async with load.running():
        report, outcome.promote_s = await promoted(place.new, case.wait_s)
        await eventually(served)
    return report


async def _at_stake(place: Place) -> int:
    """As `region status` counts them in the old region."""
    async with place.store(place.old) as store, store.read() as tx:
        authority = await tx.regions.authority()
        return await tx.regions.connections_at_stake(authority and authority.confirmed_at)


async def _leased_by_old(place: Place, case: Case) -> int:
    """What the old region leases once it has come back: nothing, if its fence holds."""
    place.old.resume()
    load = _Load(place, place.old.settings.port, case)
    async with load.running():
        await asyncio.sleep(_AFTER_S)
    place.old.end()
    return load.leases


async def _records_missing(place: Place, *answered: int) -> int:
    """How many leases that apps got have no record in the region that serves."""
    async with place.store(place.new) as store, store.read() as tx:
        query = select(func.count()).select_from(_AUDIT).where(_AUDIT.c.action == AuditAction.LEASE_ISSUED)
        recorded = (await tx.connection.execute(query)).scalar_one()
    return max(sum(answered) - recorded, 0)


async def _lost(place: Place, load: _Load, waiting: set[str]) -> dict[str, str]:
    """The connections that one more refresh in the new region ends, and how; not those that still wait."""
    turns = asyncio.Semaphore(_AT_ONCE)

    async def refreshed(http: httpx2.AsyncClient, id: str) -> str:
        async with turns:
            reply = await http.post(f"/v1/connections/{id}/refresh", json={})
            row = (await http.get(f"/v1/connections/{id}")).json()
        if reply.status_code == 200 and row["state"] == LifecycleState.ACTIVE:
            return ""
        return f"{reply.status_code} {reply.json().get('code')}, {row['state']} {row['reason']}"

    async with load.client(place.ready.admin_key) as http:
        ids = [connection.id for connection in place.ready.connections if connection.id not in waiting]
        answers = zip(ids, await asyncio.gather(*(refreshed(http, id) for id in ids)), strict=True)
        return {id: answer for id, answer in answers if answer}


def _judge(case: Case, outcome: Outcome) -> None:
    if not (outcome.leases and outcome.refreshes):
        outcome.wrong.append("there was no load")
    is_safe = case.rotation == "grace" and (case.end != "cut" or case.away == "stop")
    if is_safe and (outcome.lost or outcome.waiting):
        outcome.wrong.append(
            f"{outcome.lost} lost, {outcome.waiting} waiting, though the provider has a grace"
        )
    if case.durability == "region" and outcome.records_missing:
        outcome.wrong.append(f"{outcome.records_missing} records are missing that were waited for")
    if outcome.leased_by_old:
        outcome.wrong.append(f"the old region leased {outcome.leased_by_old} times after the new one had")


def row(case: Case, outcome: Outcome) -> str:
    """As `HEAD` names them."""
    fates = ", ".join(f"{number} {fate}" for fate, number in outcome.fates.items()) or "none"
    counted = [
        outcome.at_stake,
        outcome.lost,
        outcome.double_sends,
        outcome.records_missing,
        outcome.leased_by_old,
    ]
    return (
        f"{case.seed:4} {case.end:5} {case.rotation:6} {case.away:8} {case.durability:7} {case.connections:5}"
        f" {outcome.leases:6} {outcome.refreshes:5} {outcome.leased_after_s:8.1f} {outcome.promote_s:7.1f}"
        f" {outcome.open_attempts:4} {fates:22}" + "".join(f" {number:7}" for number in counted)
    )


HEAD = (
    "seed end   rotat. away     records conns leases  refr leased_s command open what became of them  "
    "  stake    lost  double missing  by_old"
)
