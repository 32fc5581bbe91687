"""One run: another tenant's leases before each trouble and in it, and what is to be said of them."""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.faults.fairness.place import Place, Tenancy, asked, keep_apart, running_place
from tests.faults.fairness.troubles import Providers, Sizes, Troubles

MOST = 2.0  # times the latency without the trouble
LEAST_MS = 20.0  # a shorter one counts as this: in milliseconds the machine's own noise is a doubling
# times longer for want of a core: the tail is the machine's, and says nothing of the product. A trouble
# takes cores as well
BUSY_BEFORE, BUSY_DURING = 2.2, 3.0
_PER_SECOND, _REFRESHES_PER_SECOND = 40, 4
_SETTLES_S = 3.0  # until a trouble has its full size
_COMES_BACK_S = 3.0  # about: until Temporal's clients have found it again
_CALM = 0.7  # of the round before: a latency that falls no further
_MOST_ROUNDS = 8


@dataclass(frozen=True)
class Leases:
    """The leases of one tenant in one round: their seconds, and why some failed."""

    latencies: list[float] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    slowdown: float = 1.0
    """How many times longer the API took than with a core whenever it was ready: the machine's part."""

    @property
    def tail(self) -> int:
        """The percentile that is compared: of fewer than a hundred, the 99th is one lease's chance."""
        return 99 if len(self.latencies) >= 100 else 90

    @property
    def tail_ms(self) -> float:
        latencies = sorted(self.latencies)
        return latencies[len(latencies) * self.tail // 100] * 1000 / self.slowdown if latencies else 0.0

    def ratio_to(self, before: "Leases") -> float:
        return self.tail_ms / max(before.tail_ms, LEAST_MS)


@dataclass(frozen=True)
class Round:
    """Leases of fresh tokens, and leases that each need a refresh."""

    fresh: Leases
    refreshed: Leases

    def is_calm_after(self, before: "Round") -> bool:
        pairs = ((self.fresh, before.fresh), (self.refreshed, before.refreshed))
        return all(now.tail_ms >= _CALM * then.tail_ms for now, then in pairs)


@dataclass(frozen=True)
class Judged:
    """One trouble. `refreshes`: whether leases with a refresh are compared as well."""

    name: str
    before: Round
    during: Round
    seen: Counter[str]
    refreshes: bool

    @property
    def happened(self) -> bool:
        return sum(self.seen.values()) > 0

    @property
    def is_compared(self) -> bool:
        """Whether no other work had the cores in these rounds."""
        return self.before.fresh.slowdown < BUSY_BEFORE and self.during.fresh.slowdown < BUSY_DURING

    @property
    def wrongs(self) -> list[str]:
        """What may not be."""
        during, before = self.during, self.before
        failed = Counter((*during.fresh.refusals, *during.refreshed.refusals))
        wrongs = [f"{self.name}: {count} leases failed: {why}" for why, count in failed.items()]
        compared = [("", during.fresh, before.fresh)]
        if self.refreshes:
            compared.append((" with a refresh", during.refreshed, before.refreshed))
        wrongs += [
            f"{self.name}: another tenant's p{now.tail}{of} is {now.ratio_to(then):.1f} times"
            for of, now, then in compared
            if now.ratio_to(then) > MOST and self.is_compared
        ]
        return wrongs if self.happened else [*wrongs, f"{self.name}: DIDN'T HAPPEN"]

    def __str__(self) -> str:
        before, during = self.before, self.during
        happened = ", ".join(f"{count} {what}" for what, count in sorted(self.seen.items()))
        failed = len(during.fresh.refusals) + len(during.refreshed.refusals)
        fresh = _change(before.fresh, during.fresh)
        slowdown = f"without a core {before.fresh.slowdown:.1f} -> {during.fresh.slowdown:.1f} times longer"
        refreshed = f"with a refresh {_change(before.refreshed, during.refreshed)}"
        return f"  {self.name:<36} {fresh}, {refreshed}, {slowdown}, {failed} failed; {happened}"


def _change(before: Leases, during: Leases) -> str:
    return f"p{during.tail} {before.tail_ms:.1f} -> {during.tail_ms:.1f} ms"


@dataclass
class FairnessResult:
    troubles: list[Judged] = field(default_factory=list)
    took_s: float = 0.0

    @property
    def wrongs(self) -> list[str]:
        return [wrong for judged in self.troubles for wrong in judged.wrongs]


class Others:
    """The tenants without trouble, whose leases are measured, each by a probe of its own."""

    def __init__(self, place: Place, seconds: float) -> None:
        self._place, self._seconds = place, seconds
        self._probes: list[tuple[asyncio.subprocess.Process, Tenancy, float]] = []

    async def prepare(self, providers: Providers) -> None:
        fresh = await self._place.tenancy("other", providers.fast, 20, 3600)
        refreshing = await self._place.tenancy("refreshing", providers.brief, 20, 2)
        for tenancy, per_second in ((fresh, _PER_SECOND), (refreshing, _REFRESHES_PER_SECOND)):
            probe = await self._place.started("tests.faults.fairness.probe")
            self._probes.append((probe, tenancy, per_second))

    async def round(self, *, refreshes: bool = True) -> Round:
        """Both tenants' leases for a while."""
        probes = self._probes if refreshes else self._probes[:1]
        ran, waited = self._place.api_schedule()
        answers = await asyncio.gather(*(self._leases(*probe) for probe in probes))
        ran_then, waited_then = self._place.api_schedule()
        slowdown = 1 + max(waited_then - waited, 0) / max(ran_then - ran, 1)
        fresh, *refreshed = (replace(leases, slowdown=slowdown) for leases in answers)
        return Round(fresh, refreshed[0] if refreshed else Leases())

    async def refreshed(self) -> None:
        """Return once a lease that needs a refresh succeeds: Temporal's clients have found it again."""
        probe, tenancy, _ = self._probes[1]
        while (await self._leases(probe, tenancy, 1, seconds=1)).refusals:
            await asyncio.sleep(0.1)

    async def calm(self) -> Round:
        """The first round whose latencies fall no further: what came before is over."""
        before = await self.round()
        for _ in range(_MOST_ROUNDS):
            now = await self.round()
            if now.is_calm_after(before):
                break
            before = now
        return now

    async def _leases(
        self,
        probe: asyncio.subprocess.Process,
        tenancy: Tenancy,
        per_second: float,
        *,
        seconds: float | None = None,
    ) -> Leases:
        wanted: dict[str, Any] = {
            "port": self._place.port,
            "key": tenancy.key,
            "integration": tenancy.integration.name,
            "subjects": tenancy.size,
            "per_second": per_second,
            "seconds": self._seconds if seconds is None else seconds,
        }
        return Leases(**await asked(probe, wanted))


async def run(
    folder: Path,
    *,
    seconds: float,
    sizes: Sizes,
    say: Callable[[str], None],
    compares: bool = True,
    only: Sequence[str] = ("",),
) -> FairnessResult:
    """Measure each trouble, or those with one of the words `only`.

    `compares`: with the moments before each, and this process is kept apart from the API. Else no duration
    counts, and the processes are forks.
    """
    began, result, providers = time.monotonic(), FairnessResult(), Providers()
    async with AsyncExitStack() as opened:
        for server in providers.servers:
            await opened.enter_async_context(server)
        place = await opened.enter_async_context(
            running_place(folder, providers.allowances, forks=not compares)
        )
        others, troubles = Others(place, seconds), Troubles(place, providers, sizes)
        await others.prepare(providers)
        await troubles.prepare()
        await place.platform.command("reconcile")
        say(f"  prepared in {time.monotonic() - began:.0f} s")
        if compares:
            keep_apart(os.getpid())
        settles_s = _SETTLES_S if compares else 0.0
        before = await others.calm() if compares else await others.round()
        for name, begin, refreshes in (
            ("a greedy app", troubles.greedy_app, False),
            ("a hanging provider", troubles.hanging_provider, True),
            (f"{sizes.webhooks} slow webhooks", troubles.slow_webhooks, True),
            ("Temporal away", troubles.temporal_away, False),
            (f"Temporal back, {sizes.hot} hot connections", troubles.temporal_back, False),
        ):
            if not any(word in name for word in only):
                continue
            is_away, is_back = name == "Temporal away", name.startswith("Temporal back")
            async with begin(seconds + settles_s + _COMES_BACK_S * is_back) as seen:
                await asyncio.sleep(settles_s)
                if is_back:
                    await others.refreshed()
                during = await others.round(refreshes=not is_away)
            result.troubles.append(Judged(name, before, during, seen, refreshes))
            say(str(result.troubles[-1]))
            if not is_away and compares:
                before = await others.calm()
    result.took_s = time.monotonic() - began
    return result


def report(result: FairnessResult) -> str:
    """What a run prints at its end."""
    lines = [f"fairness: {len(result.troubles)} troubles in {result.took_s:.0f} s"]
    lines += [
        f"  NOT COMPARED: {it.name}: other work has the cores" for it in result.troubles if not it.is_compared
    ]
    return "\n".join([*lines, *(f"  VIOLATION: {wrong}" for wrong in result.wrongs)])
