"""The table: which cases there are, from a run of each scenario without any fault."""

import asyncio
import random
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from zlib import crc32

from evergrant_server.core.integrations import Rotation
from tests.faults.harness.database import HarnessDatabase
from tests.faults.harness.instrumentation.passages import AFTER, BEFORE, Fault
from tests.faults.harness.instrumentation.points import Point, existing, labelled
from tests.faults.harness.provider import StrictProvider
from tests.faults.harness.table.case_run import Case, CaseRecord, CaseRun, Layout
from tests.faults.harness.table.scenarios import JOURNALLED, SCENARIOS, Scenario
from tests.faults.harness.workers.handles import ForkServer
from tests.faults.harness.workers.limits import TOKEN_S

Passage = tuple[str, str, int]  # point, side, the how-manieth time
_KEPT = (JOURNALLED, AFTER, 1)
_MOST_PASSAGES = 3  # of one point in one way: later ones, as in a loop, are in the same place
_BEATING = "activities.support.temporal:heartbeating.beat"  # how often is a matter of the machine's speed
# goes on beside everything; walked where it finds something
_SWEEPING = "activities.single_use.journal_replay:JournalReplayer."
WRITING = labelled("the first byte is written")  # after it


@dataclass(frozen=True)
class ScenarioPath:
    """The points that a scenario passes without a fault, in order."""

    scenario: Scenario
    rotation: Rotation
    layouts: tuple[Layout, ...]  # in which it is the same
    told: CaseRecord
    passed: tuple[Passage, ...]
    times: tuple[float, ...]

    def points(self) -> int:
        return len({name for name, _, _ in self.passed})

    @property
    def window_ms(self) -> float | None:
        """From the provider's commit to our journal's fsync, when nothing is in the way."""
        acted = [use.acted for use in self.told.idp.uses if use.acted and use.good]
        plain = self.scenario.name in (SCENARIOS[0].name, SCENARIOS[1].name)
        if not acted or not plain or _KEPT not in self.passed:
            return None
        return (self.times[self.passed.index(_KEPT)] - acted[0]) * 1000


class Table:
    """Everything that is walked."""

    def __init__(self, ways: list[ScenarioPath]) -> None:
        self.ways = ways
        self.points = {point.name: point for point in existing()}
        self.elsewhere = {
            name: why for name, point in self.points.items() if (why := point.elsewhere) is not None
        }
        self.cases = [case for rotation in Rotation for case in self._of(rotation)]

    @classmethod
    async def learn(
        cls,
        ground: HarnessDatabase,
        warm: ForkServer,
        folder: Path,
        scenarios: Sequence[Scenario] = SCENARIOS,
        *,
        short: bool = False,
    ) -> "Table":
        """Run each scenario once, some at a time. `short`: the two plain ones for every rotation, the
        others for the strictest of theirs; every point is passed all the same."""
        turns, plain = asyncio.Semaphore(6), SCENARIOS[:2]

        async def learnt(scenario: Scenario, rotation: Rotation, layouts: tuple[Layout, ...]) -> ScenarioPath:
            async with turns:
                return await _way(scenario, rotation, layouts, ground, warm, folder)

        wanted = [
            (scenario, rotation, layouts)
            for scenario in scenarios
            for rotation in (
                scenario.rotations[-1:] if short and scenario not in plain else scenario.rotations
            )
            for layouts in _same(scenario)
        ]
        ways = await asyncio.gather(*(learnt(*it) for it in wanted))
        if cls(ways).never and len(scenarios) == len(SCENARIOS):
            # a busy machine may let a short limit pass first: once more, and the longer way counts
            again = await asyncio.gather(*(learnt(*it) for it in wanted))
            ways = [max(pair, key=ScenarioPath.points) for pair in zip(ways, again, strict=True)]
        return cls(ways)

    @property
    def path(self) -> set[str]:
        """The points that are one of a refresh or a code exchange."""
        return self.points.keys() - self.elsewhere.keys()

    @property
    def never(self) -> list[str]:
        """Points on the path that no case is for: the table would not be complete."""
        return sorted(self.path - points_of(self.cases))

    def share(self, points: set[str]) -> int:
        """Of the points on the path, in whole percent: 100 only when there are all of them."""
        return 100 * len(self.path & points) // len(self.path)

    def sample(self, number: int, seed: int, among: Sequence[Case] | None = None) -> list[Case]:
        """Some of the cases, the same for the same seed."""
        cases = self.cases if among is None else among
        return random.Random(seed).sample(cases, min(number, len(cases)))

    def shard(self, number: int, of: int) -> list[Case]:
        """The cases of one piece of the table. A case is in the same piece in every run."""
        return [case for case in self.cases if crc32(str(case).encode()) % of == number - 1]

    def _of(self, rotation: Rotation) -> Iterable[Case]:
        seen: set[str] = set()
        for number, scenario in enumerate(SCENARIOS):
            ways = [it for it in self.ways if (it.scenario, it.rotation) == (scenario, rotation)]
            known = seen if number > 1 else set()  # the two plain ways are walked whole
            for way in ways:
                for passage in way.passed:
                    most = 1 if passage[0].startswith(_BEATING) else _MOST_PASSAGES
                    if passage[0] not in known and passage[2] <= most:
                        yield from _cases(way, passage, self.points[passage[0]])
            seen = seen | {name for way in ways for name, _, _ in way.passed}


def points_of(cases: Iterable[Case]) -> set[str]:
    """The points at which these cases inject a fault."""
    return {case.fault.point for case in cases if case.fault}


def _same(scenario: Scenario) -> list[tuple[Layout, ...]]:
    """The layouts in which its way is the same: a stopped worker is overtaken by the other worker."""
    layouts = tuple(Layout(it) for it in scenario.layouts)
    return [(it,) for it in layouts] if any(it.kind == "stop" for it in scenario.faults) else [layouts]


def _cases(way: ScenarioPath, passage: Passage, point: Point) -> Iterable[Case]:
    name, side, count = passage
    fault = Fault(point=name, side=side, passage=count, kind="die")
    lost_reply = {"kind": "lost" if point.kind != "task" else "cut", "answered_by": point.kind}
    for layout in way.layouts:
        case = Case(way.scenario, fault, layout, way.rotation)
        yield case
        if side == AFTER:
            yield replace(case, fault=fault.model_copy(update=lost_reply))
        if side == BEFORE and layout is Layout.ONE and way.scenario in SCENARIOS[:2]:
            yield replace(case, fault=fault.model_copy(update={"kind": "keys"}))
        if side == BEFORE or name == WRITING:
            stopped = replace(case, fault=fault.model_copy(update={"kind": "stop"}))
            yield stopped
            if way.scenario.name == "refresh" and layout is not Layout.ONE:
                yield replace(stopped, revoked=True)


async def _way(
    scenario: Scenario,
    rotation: Rotation,
    layouts: tuple[Layout, ...],
    ground: HarnessDatabase,
    warm: ForkServer,
    folder: Path,
) -> ScenarioPath:
    async with StrictProvider(rotation, TOKEN_S) as idp:
        case = Case(scenario, None, layouts[0], rotation)
        walk = CaseRun(case, ground, warm, Path(tempfile.mkdtemp(prefix="way-", dir=folder)), idp)
        told = await walk.run()
    counted: Counter[tuple[str, str]] = Counter()
    passed: list[Passage] = []
    times = []
    for name, side, at in walk.first:
        counted[name, side] += 1
        if scenario.replayed or scenario.unread or not name.startswith(_SWEEPING):
            passed.append((name, side, counted[name, side]))
            times.append(at)
    return ScenarioPath(scenario, rotation, layouts, told, tuple(passed), tuple(times))
