"""`make mutations`: mutmut changes the protocol's code, and the fast tests have to fail each time.

Which files and which tests is in pyproject.toml. Ends with a score for each file, and with status 1 when
one of them is below the aim. `mutmut show NAME` shows what a survivor had changed.
"""

import argparse
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
AIM = 0.9
_NOTICED = ("killed", "timeout")


def scores(results: str) -> dict[str, Counter[str]]:
    """What became of each module's mutants, from the lines of `mutmut results --all true`."""
    found: dict[str, Counter[str]] = {}
    for line in results.splitlines():
        name, _, status = line.strip().partition(": ")
        module = name.rpartition(".")[0]
        if module and status:
            found.setdefault(module, Counter())[status] += 1
    return dict(sorted(found.items()))


def table(found: dict[str, Counter[str]]) -> list[str]:
    rows = ["| file | mutants | noticed | survivors |", "| --- | ---: | ---: | ---: |"]
    for module, counted in found.items():
        left = counted.total() - _noticed(counted)
        rows.append(f"| {module} | {counted.total()} | {_share(counted):.0%} | {left} |")
    return rows


def below(found: dict[str, Counter[str]]) -> list[str]:
    return [module for module, counted in found.items() if _share(counted) < AIM]


def _noticed(counted: Counter[str]) -> int:
    return sum(counted[status] for status in _NOTICED)


def _share(counted: Counter[str]) -> float:
    return _noticed(counted) / counted.total()


def _mutmut(*arguments: str) -> str:
    command = [str(Path(sys.executable).parent / "mutmut"), *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE).stdout


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__)
    parser.add_argument("--jobs", type=int, default=1, help="mutants at a time")
    jobs = parser.parse_args().jobs
    _mutmut("run", "--max-children", str(jobs))
    found = scores(_mutmut("results", "--all", "true"))
    print(*table(found), "", _mutmut("results").rstrip(), sep="\n")
    return 1 if below(found) or not found else 0


if __name__ == "__main__":
    sys.exit(main())
