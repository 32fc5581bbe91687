"""Walks many cases side by side, and adds up what they ended with."""

import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from evergrant_server.core.integrations import Rotation
from tests.fakes.databases import postgres
from tests.faults.harness.database import HarnessDatabase
from tests.faults.harness.provider import StrictProvider
from tests.faults.harness.table.case_run import Case, CaseRun, Layout
from tests.faults.harness.table.cases import Table, points_of
from tests.faults.harness.table.judge import BAD, Judgement, Verdict, judge
from tests.faults.harness.table.scenarios import SCENARIOS, Scenario
from tests.faults.harness.workers.handles import ForkServer
from tests.faults.harness.workers.limits import TOKEN_S

AT_ONCE = 12
_SEATS = 400  # of the database: a worker that has left its case keeps its sessions
_TRIES = 3  # a busy machine may let a short limit pass before the point is reached


@dataclass
class TableResult:
    """What a walk of the table came to."""

    table: Table
    cases: int
    took_s: float
    walking_s: float = 0.0  # without learning the ways
    judged: list[Judgement] = field(default_factory=list)
    unreached: list[Case] = field(default_factory=list)

    @property
    def verdicts(self) -> Counter[Verdict]:
        return Counter(it.verdict for it in self.judged)

    @property
    def faults(self) -> Counter[str]:
        return Counter(it.told.case.fault.kind for it in self.judged if it.told.case.fault)

    @property
    def bad(self) -> list[Judgement]:
        return [it for it in self.judged if it.verdict in BAD]

    @property
    def reached(self) -> set[str]:
        """Points at which a fault came, and not those of the cases alone."""
        return points_of(it.told.case for it in self.judged if it.told.reached)

    @property
    def never(self) -> list[str]:
        """Points on the path that no case of the walk reached, in whole or in part."""
        return sorted(self.table.path - self.reached)

    @property
    def whole(self) -> bool:
        return self.cases == len(self.table.cases)

    @property
    def failed(self) -> bool:
        """Also when nothing was walked, and when a whole walk came to a point in none of its cases."""
        left_out = self.never if self.whole else self.table.never
        return bool(self.bad or left_out or not self.reached)

    @property
    def double_sends(self) -> int:
        return sum(it.double_sends for it in self.judged)

    @property
    def windows_ms(self) -> list[float]:
        return sorted(ms for way in self.table.ways if (ms := way.window_ms) is not None)


Choose = Callable[[Table], Sequence[Case]]
Say = Callable[[str], None]


async def walk_table(
    folder: Path,
    choose: Choose,
    *,
    broken: tuple[str, ...] = (),
    scenarios: Sequence[Scenario] = SCENARIOS,
    jobs: int = 1,
    short: bool = False,
    say: Say = lambda line: None,
) -> TableResult:
    """Learn the ways, choose cases, carry them out: each job has a fork server of its own."""
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(dir=folder))
    await postgres().seats(_SEATS)
    async with AsyncExitStack() as stack:
        ground = await HarnessDatabase.open(folder)
        stack.push_async_callback(ground.close)
        servers: list[ForkServer] = []
        for _ in range(jobs):
            servers.append(await ForkServer.start(folder, *broken))
            stack.push_async_callback(servers[-1].stop)
            await _rehearse(ground, servers[-1], folder)
        table = await Table.learn(ground, servers[0], folder, scenarios, short=short)
        cases = choose(table)
        share = table.share(points_of(cases))
        say(f"{len(table.cases)} cases, {len(cases)} of them now; {share} % of the points")
        walked = TableResult(table, len(cases), 0)
        learnt = time.monotonic()
        queue = list(enumerate(cases))[::-1]

        async def one_after_another(warm: ForkServer) -> None:
            while queue:
                number, case = queue.pop()
                judged = await _one(walked, case, ground, warm, folder / f"case-{number}")
                if judged.verdict in BAD:
                    say("\n".join([f"  {judged}", *(f"    {it}" for it in judged.story)]))
                if number and number % 500 == 0:
                    say(f"  {number} cases, {len(walked.bad)} bad, {time.monotonic() - began:.0f} s")

        await asyncio.gather(*(one_after_another(it) for it in servers for _ in range(AT_ONCE)))
        walked.walking_s = time.monotonic() - learnt
    walked.took_s = time.monotonic() - began
    return walked


async def _rehearse(ground: HarnessDatabase, warm: ForkServer, folder: Path) -> None:
    """A refresh and a code exchange in the fork server itself: imports, statements and keys are warm then."""
    async with StrictProvider(Rotation.STRICT, TOKEN_S) as idp:
        walks = [
            CaseRun(Case(it, None, Layout.ONE, Rotation.STRICT), ground, warm, folder / "rehearsal", idp)
            for it in SCENARIOS[:2]
        ]
        hand = None
        for walk in walks:
            hand = await walk.rehearse(hand)
        assert hand is not None
        await warm.rehearsed(hand)


async def _one(
    walked: TableResult, case: Case, ground: HarnessDatabase, warm: ForkServer, folder: Path
) -> Judgement:
    for number in range(_TRIES):
        async with StrictProvider(case.rotation, TOKEN_S) as idp:
            told = await CaseRun(case, ground, warm, folder / str(number), idp).run()
        if told.reached:
            break
    else:
        walked.unreached.append(case)
    judged = judge(told)
    walked.judged.append(judged)
    return judged
