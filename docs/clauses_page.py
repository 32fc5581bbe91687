"""The page `security/clauses.md`: clauses of standards and attacks, with the tests that prove each.

A clause's tests are those whose names hold it, and those that `security/clauses.yaml` names.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests"
LIST = ROOT / "docs/security/clauses.yaml"
_TEST = re.compile(r"^ *(?:async )?def (test_\w+)\(", re.MULTILINE)
Table = Callable[[tuple[str, ...], Iterable[tuple[str, ...]]], list[str]]


@dataclass(frozen=True)
class Clause:
    """`tests` are below `tests/`, as `file::name`. `open` says why it isn't met, or which part."""

    group: str
    id: str
    asserts: str
    tests: tuple[str, ...] = ()
    open: str = ""

    @property
    def in_names(self) -> str:
        """How a test's name writes it: `rfc9700_4_5`."""
        return re.sub(r"[ .-]", "_", re.sub(r"^RFC ", "rfc", self.id)).lower()


@cache
def clauses() -> tuple[Clause, ...]:
    groups = yaml.safe_load(LIST.read_text(encoding="utf-8"))
    return tuple(
        Clause(it["group"], **{**clause, "tests": tuple(clause.get("tests", ()))})
        for it in groups
        for clause in it["clauses"]
    )


@cache
def known_tests() -> tuple[str, ...]:
    """Each test as `file::name`."""
    return tuple(
        f"{path.relative_to(TESTS).as_posix()}::{name}"
        for path in sorted(TESTS.rglob("test_*.py"))
        for name in _TEST.findall(path.read_text(encoding="utf-8"))
    )


@cache
def proofs() -> dict[str, list[str]]:
    """The tests of each clause, by its id."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for test in known_tests():
        for clause in _in_name(test.rpartition("::")[2]):
            found[clause].append(test)
    for clause in clauses():
        found[clause.id] += [test for test in clause.tests if test not in found[clause.id]]
    return dict(found)


@cache
def _marks() -> list[tuple[str, re.Pattern[str]]]:
    """What a test's name has of each clause, by the clause's id: the longest first."""
    longest_first = sorted(clauses(), key=lambda it: len(it.in_names), reverse=True)
    return [(clause.id, re.compile(rf"_{clause.in_names}(?=_)")) for clause in longest_first]


def _in_name(name: str) -> Iterator[str]:
    """The clauses in a test's name; of RFC 8705 2 and 2.2 the longer."""
    for clause, mark in _marks():
        name, times = mark.subn("", name)
        if times:
            yield clause


def page(note: str, table: Table) -> str:
    met = [it for it in clauses() if not it.open]
    lines = [
        note,
        "# Clauses",
        "",
        "What Evergrant is held to, and the tests that prove it. A test whose name has a clause proves it",
        "(`test_rfc9700_4_5_…`); `docs/security/clauses.yaml` names the others. A test fails for a clause",
        f"without a test. {len(met)} of {len(clauses())} clauses are met; [the others](#open) say why not.",
    ]
    for group in dict.fromkeys(it.group for it in clauses()):
        rows = [
            (it.id, it.asserts, "<br>".join(f"`{test}`" for test in proofs()[it.id]) or "[open](#open)")
            for it in clauses()
            if it.group == group
        ]
        lines += ["", f"## {group}", "", *table(("clause", "what is asserted", "tests"), rows)]
    rows = [(it.id, it.open) for it in clauses() if it.open]
    lines += ["", "## Open", "", *table(("clause", "why"), rows), ""]
    return "\n".join(lines)
