"""One proof: fail-overs one after another under load, and what became of leases, records and connections."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from tests.fakes.patience import eventually
from tests.fakes.postgresql.replicated import streaming
from tests.faults.failover.load import Notes
from tests.faults.failover.place import Place, Size, running_place

AGAIN_WITHIN_S = 10.0  # promised, from the promotion to the next lease
_UNDER_LOAD_S = 3.0  # before each failure, and after each promotion
_BEHIND_S = 0.5  # without replication before a kill, as when the network fails first
_SETTLED_S = 20.0
_TRACES = "SELECT body::json->>'trace' FROM audit WHERE action = 'lease.issued'"
_WRITES = "SELECT sum(n_tup_ins + n_tup_upd + n_tup_del)::bigint FROM pg_stat_user_tables"


class Trouble(StrEnum):
    """What becomes of the primary before its standby is promoted."""

    KILL = "kill -9"
    PAUSE = "pause"  # it comes back later and takes writes: the split
    CUT = "cut off"  # the same, and nothing was refused meanwhile
    BEHIND = "replication stops, kill -9"


@dataclass
class FailOver:
    """One fail-over. Moments are of the monotonic clock."""

    trouble: Trouble
    failed_at: float
    promoted_at: float = 0.0  # when the promotion was asked for
    replaced_writes: int = 0  # rows that the old primary has written since it came back
    first_lease_s: float | None = None
    first_refresh_s: float | None = None
    leases: int = 0  # acknowledged since the fail-over before
    missing: int = 0  # of them without a record at the new primary


@dataclass
class Result:
    """All fail-overs of one proof."""

    synchronous: bool
    fail_overs: list[FailOver] = field(default_factory=list)
    notes: Notes = field(default_factory=Notes)
    lost: list[str] = field(default_factory=list)
    uses: int = 0
    refreshes: int = 0
    double_sends: int = 0

    @property
    def wrong(self) -> list[str]:
        """The promises that weren't kept; with asynchronous replication what was lost is only told."""
        wrong = [f"a caller ended: {why}" for why in self.notes.failed]
        if not self.notes.refreshes:
            wrong.append("nothing was refreshed")
        for number, each in enumerate(self.fail_overs, 1):
            if each.first_lease_s is None or each.first_lease_s > AGAIN_WITHIN_S:
                wrong.append(f"fail-over {number}: no lease within {AGAIN_WITHIN_S:.0f} s of the promotion")
            if each.replaced_writes:
                wrong.append(
                    f"fail-over {number}: {each.replaced_writes} rows were written to the old primary"
                )
            if self.synchronous and each.missing:
                wrong.append(f"fail-over {number}: {each.missing} records are missing")
        if self.synchronous:
            wrong += [f"lost: {connection}" for connection in self.lost]
            if self.double_sends:
                wrong.append(f"{self.double_sends} refresh tokens were sent twice")
        return wrong


async def prove(
    folder: Path,
    size: Size,
    fail_overs: int,
    *,
    synchronous: bool,
    networks: bool,
    say: Callable[[str], None],
) -> Result:
    """Fail over so many times, each time back to the server that failed before."""
    result = Result(synchronous)
    chance = random.Random(f"{size.seed} {synchronous}")
    troubles = [Trouble.KILL, Trouble.PAUSE, *((Trouble.CUT, Trouble.BEHIND) if networks else ())]
    chance.shuffle(troubles)
    async with running_place(folder, size, synchronous=synchronous, networks=networks) as place:
        async with place.under_load() as load:
            for number in range(fail_overs):
                await asyncio.sleep(_UNDER_LOAD_S)
                trouble = troubles[number % len(troubles)]
                say(f"{trouble}: {place.primary.name}, and {place.standby.name} is promoted")
                result.fail_overs.append(await _fail_over(place, trouble, chance))
                await _rejoin(place, synchronous)
            await asyncio.sleep(_UNDER_LOAD_S)
            result.notes = Notes(**await load.end())
        await _judge(place, result)
    return result


async def _fail_over(place: Place, trouble: Trouble, chance: random.Random) -> FailOver:
    """Have the primary fail, promote the standby, and let the old primary come back beside it."""
    old, new = place.primary, place.standby
    if trouble is Trouble.BEHIND:
        place.segments[new.name].cut()
        await asyncio.sleep(_BEHIND_S)
    fail_over = FailOver(trouble, time.monotonic())
    match trouble:
        case Trouble.PAUSE:
            old.pause()
        case Trouble.CUT:
            place.segments[old.name].cut()
        case Trouble.KILL | Trouble.BEHIND:
            old.kill()
    if trouble is Trouble.BEHIND:
        place.segments[new.name].join()
    await asyncio.sleep(chance.uniform(0.2, 2.0))  # until somebody notices
    fail_over.promoted_at = time.monotonic()
    await new.promote()
    new.configure(synchronous_standby_names="")
    await new.reload()
    await asyncio.sleep(_UNDER_LOAD_S)
    if trouble in (Trouble.PAUSE, Trouble.CUT):
        old.resume()
        if place.segments:
            place.segments[old.name].join()
        await asyncio.sleep(1.0)  # what was under way there ends
        before = await old.value(_WRITES)
        await asyncio.sleep(_UNDER_LOAD_S)
        fail_over.replaced_writes = await old.value(_WRITES) - before
    place.primary, place.standby = new, old
    return fail_over


async def _rejoin(place: Place, synchronous: bool) -> None:
    """The old primary becomes the standby of the new one."""
    place.standby.kill()
    await place.standby.rewind_to(place.primary)
    await place.standby.start()
    if synchronous:
        place.primary.configure(synchronous_standby_names=place.standby.name)
        await place.primary.reload()
    await streaming(place.primary, "sync" if synchronous else "async")


async def _judge(place: Place, result: Result) -> None:
    """Compare what callers were told with what the primary has, and with what the provider has seen."""

    async def lost() -> list[str]:
        return await place.lost()

    connection = await place.primary.connect()
    try:
        recorded = {row[0] for row in await connection.fetch(_TRACES)}
    finally:
        await connection.close()
    before = 0.0
    for each in result.fail_overs:
        acknowledged = [trace for at, trace in result.notes.leases if before <= at < each.promoted_at]
        each.leases, before = len(acknowledged), each.promoted_at
        each.missing = len(set(acknowledged) - recorded)
        each.first_lease_s = _first([at for at, _ in result.notes.leases], each.promoted_at)
        each.first_refresh_s = _first(result.notes.refreshes, each.promoted_at)
    ends = time.monotonic() + _SETTLED_S
    result.lost = await eventually(lost, lambda lost: not lost or time.monotonic() > ends)
    uses = Counter(use.credential for use in place.idp.uses)
    result.uses, result.refreshes = sum(uses.values()), place.idp.refreshes
    result.double_sends = sum(number - 1 for number in uses.values())


def _first(moments: list[float], after: float) -> float | None:
    """Seconds until the first of these moments."""
    return min((at - after for at in moments if at >= after), default=None)
