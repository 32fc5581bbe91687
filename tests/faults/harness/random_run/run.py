"""The random run: a whole installation, readers, and faults by a plan that a seed has drawn."""

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.integrations import Rotation
from tests.fakes.providers.scripted_provider import delay, drip, drop, drop_after_commit, status
from tests.faults.harness.provider import StrictProvider
from tests.faults.harness.random_run.aftermath import Aftermath, judged
from tests.faults.harness.random_run.plan import Injection, plan, told
from tests.faults.harness.random_run.processes import Installation, installed
from tests.faults.harness.random_run.readers import DEADLINE_S, READERS, ReaderRecord, read
from tests.faults.harness.random_run.real_server import READERS as REAL_READERS
from tests.faults.harness.random_run.real_server import real_server

CONNECTIONS = 200
TOKEN_S = 40
_SETTLING_S = 120.0  # after the last fault: every attempt has an outcome by then
_HOUR_S = 3600.0
_SLOW_S = 35.0  # longer than a provider is listened to
_DRIPS_S = 6.0  # not as long as that


@dataclass
class RunResult:
    injected: list[Injection]
    seen: ReaderRecord
    aftermath: Aftermath
    took_s: float
    not_injected: list[str] = field(default_factory=list)
    unmet: int = 0  # scripted failures that no request met

    @property
    def violations(self) -> list[str]:
        return self.seen.violations + self.aftermath.violations

    @property
    def missing(self) -> list[str]:
        """What a run is for, and what didn't happen in it: without that it says nothing."""
        failed = Counter(it.partition(":")[0] for it in self.not_injected)
        happened = {
            "no lease was given": self.seen.leases,
            "nothing was refreshed": self.aftermath.refreshes,
            "no connection at the real server is active": self.aftermath.real_states[LifecycleState.ACTIVE],
        }
        never = [kind for kind, planned in sorted(told(self.injected).items()) if failed[kind] == planned]
        return [
            *(what for what, times in happened.items() if not times),
            *(f"{kind}: planned, and never injected" for kind in never),
        ]

    @property
    def bad(self) -> bool:
        return bool(self.violations or self.aftermath.lost or self.missing)


async def run(
    folder: Path,
    seconds: float,
    seed: int,
    *,
    readers: int = READERS,
    connections: int = CONNECTIONS,
    without: Sequence[str] = (),
) -> RunResult:
    """Start everything, hurt it, let it settle, and judge."""
    began = time.monotonic()
    injections = plan(seed, seconds, without=without)
    chance = random.Random(seed)
    async with (
        StrictProvider(Rotation.STRICT, TOKEN_S) as idp,
        real_server(folder / "real") as real,
        installed(folder, idp, real) as here,
    ):
        made = []
        async with here.ground.store.write() as tx:
            integration = await here.ground.integration(tx, idp, Rotation.STRICT, "generic", "right")
            for number in range(connections):
                connection = await here.ground.connection(tx, integration, f"user-{number}")
                made.append(await here.ground.granted(tx, connection, idp, refreshable=True))
        await here.ground.forget_changes()
        await here.platform.command("reconcile")
        consented = await real.consented(here.platform)
        key = await here.platform.app("reader", "*", "token")
        seen = ReaderRecord()
        headers = {"Authorization": f"Bearer {key}"}
        clients = [
            httpx2.AsyncClient(
                base_url=url, headers=headers, trust_env=False, timeout=DEADLINE_S, limits=_LIMITS
            )
            for url in here.urls
        ]
        until = time.monotonic() + seconds
        supervising = asyncio.create_task(here.supervise())
        hurting = asyncio.create_task(_hurt(here, injections, made, seen))

        async def taken(token: str) -> bool:
            return idp.active(token)

        groups = (([it.id for it in made], taken, readers), (consented, real.works, REAL_READERS))
        lives = [
            read(clients, ids, works, seen, random.Random(chance.random()), until)
            for ids, works, number in groups
            for _ in range(number)
        ]
        try:
            await asyncio.gather(*lives)
            failed = await hurting
            unmet = idp.unscript()  # from here on no fault is injected
            await real.withhold_no_more()
            here.clock_is_right_again()
            aftermath = await judged(here, made, consented, clients[0], seen, injections, _SETTLING_S)
        finally:
            supervising.cancel()
            await asyncio.gather(*(it.aclose() for it in clients))
    return RunResult(injections, seen, aftermath, time.monotonic() - began, failed, unmet)


_LIMITS = httpx2.Limits(max_connections=READERS, max_keepalive_connections=READERS)


async def _hurt(
    here: Installation, injections: list[Injection], connections: list[Connection], seen: ReaderRecord
) -> list[str]:
    """Each injection at its time; those that last go on beside the others. Says what didn't work."""
    began = time.monotonic()
    under_way: list[asyncio.Task[None]] = []
    for number, injection in enumerate(injections):
        await asyncio.sleep(max(0.0, began + injection.at - time.monotonic()))
        victim = connections[number % len(connections)]
        under_way.append(asyncio.create_task(_inject(here, injection, victim, seen)))
    ended = await asyncio.gather(*under_way, return_exceptions=True)
    return [
        f"{injection.kind}: {type(it).__name__} {it}"
        for injection, it in zip(injections, ended, strict=True)
        if isinstance(it, BaseException)
    ]


async def _inject(here: Installation, it: Injection, victim: Connection, seen: ReaderRecord) -> None:
    worker = here.workers[it.worker]
    match it.kind:
        case "worker killed":
            here.signal(worker, signal.SIGKILL)
        case "worker stopped":
            here.signal(worker, signal.SIGSTOP)
            await asyncio.sleep(it.lasts)
            here.signal(worker, signal.SIGCONT)
        case "answer lost":
            here.idp.script(drop_after_commit())
        case "provider answers 500":
            here.idp.script(status(500))
        case "provider answers 429":
            here.idp.script(status(429, {"Retry-After": "2"}))
        case "provider is slow":
            here.idp.script(delay(_SLOW_S, drop()))
        case "answer drips past the limit":
            here.idp.script(drip(_SLOW_S))
        case "answer drips and ends":
            here.idp.script(drip(_DRIPS_S))
        case "provider closes the connection":
            here.idp.script(drop())
        case "real server's answer withheld":
            await here.real.withhold_an_answer()
        case "database sessions ended":
            await here.database_drops_everybody()
        case "database restarted":
            await here.database_restarts()
        case "database away":
            await here.database_drops_everybody(it.lasts)
        case "Temporal restarted":
            await here.temporal_restarts()
        case "clock jumps an hour ahead":
            here.clock_jumps(_HOUR_S)
        case "clock jumps an hour back":
            seen.clock_went_back = True
            here.clock_jumps(-_HOUR_S)
        case "key service away":
            await here.key_service_away(min(it.lasts, 20.0), worker)
        case "revocation":
            await _revoke(here, victim, seen)


async def _revoke(here: Installation, victim: Connection, seen: ReaderRecord) -> None:
    async with here.platform.client() as admin:
        for _ in range(200):  # longer than the longest outage
            answer = await admin.post(f"/v1/connections/{victim.id}/revoke", json={"reason": "left"})
            if answer.is_success:
                seen.revoked[victim.id] = time.monotonic()
                return
            await asyncio.sleep(1)
    raise RuntimeError(f"not revoked: {answer.text[:200]}")
