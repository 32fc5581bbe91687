"""Does the tasks, one after another, and prints the table."""

import argparse
import asyncio
import sys
from pathlib import Path

import pytest

from tests.e2e.week import beginnings, rights, troubles, trust  # noqa: F401  # which register tasks
from tests.e2e.week.office import TASKS, Outcome, done, opened


async def week(out: Path, only: int | None, *, scripts: bool) -> list[Outcome]:
    """Every task, or those up to the one that was chosen, which alone is photographed."""
    outcomes: list[Outcome] = []
    async with opened(scripts=scripts) as office:
        for number in range(1, (only or len(TASKS)) + 1):
            office.out = out if only in (None, number) else None
            outcome = await done(office, number)
            outcomes.append(outcome)
            print(line_of(outcome), flush=True)
        for problem in office.problems:
            print(f"a script was refused, or failed: {problem}")
            outcomes[-1].violations.append(problem)
    return outcomes


def line_of(outcome: Outcome) -> str:
    """A row of the table, and under it what went wrong."""
    mark = "✗" if outcome.failure or outcome.violations else "✓"
    row = f"{mark} {outcome.number:2}  {outcome.title:58} {outcome.seconds:6.1f} s {outcome.clicks:4} clicks"
    row += f" {len(outcome.violations):3} violations"
    return "\n".join([row, *(f"      {problem}" for problem in outcome.violations), outcome.failure]).rstrip()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.week")
    parser.add_argument("--out", type=Path, default=Path("build/week"))
    parser.add_argument("--only", type=int, help="the number of a task")
    parser.add_argument("--without-scripts", action="store_true", help="in a browser that runs none")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        outcomes = asyncio.run(week(options.out, options.only, scripts=not options.without_scripts))
    except pytest.skip.Exception as missing:  # a browser
        raise SystemExit(str(missing)) from None
    good = [outcome for outcome in outcomes if not outcome.failure and not outcome.violations]
    seconds, clicks = (sum(getattr(outcome, name) for outcome in outcomes) for name in ("seconds", "clicks"))
    print(f"{len(good)} of {len(outcomes)} done, in {seconds:.0f} s with {clicks} clicks: {options.out}/")
    return 0 if len(good) == len(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
