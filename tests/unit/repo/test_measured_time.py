"""No test expects a machine to be quick: what it measures has no upper bound, and what it waits for has time.

Rates, ranks and durations are figures for `make bench`.
"""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[2]
# `process_time` isn't among them: what else runs on the machine costs a process no time of its own.
CLOCKS = {"monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "time"}
LEAST_S = 60  # a wait for an event
WORDS = re.compile(
    r"monotonic|perf_counter|\.time\(|statistics|asyncio\.(timeout|wait_for)|httpx2?\.(Async)?Client"
)


def measured(node: ast.AST, durations: set[str]) -> bool:
    """Is a difference of clock readings, or a name of one, part of this expression?"""
    for part in ast.walk(node):
        if isinstance(part, ast.Name) and part.id in durations:
            return True
        if isinstance(part, ast.BinOp) and isinstance(part.op, ast.Sub):
            calls = [it for it in ast.walk(part) if isinstance(it, ast.Call)]
            if any(isinstance(it.func, ast.Attribute) and it.func.attr in CLOCKS for it in calls):
                return True
    return False


def problems(tree: ast.Module) -> list[tuple[int, str]]:
    """The line and what is wrong there."""
    durations = {
        target.id
        for it in ast.walk(tree)
        if isinstance(it, ast.Assign) and measured(it.value, set())
        for target in it.targets
        if isinstance(target, ast.Name)
    }
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "statistics":
            found.append((node.lineno, "a figure of several measurements"))
        if isinstance(node, ast.Assert):
            for it in (part for part in ast.walk(node.test) if isinstance(part, ast.Compare)):
                sides = [it.left, *it.comparators]
                for smaller, op, larger in zip(sides, it.ops, sides[1:], strict=False):
                    upper = smaller if isinstance(op, ast.Lt | ast.LtE) else larger
                    if isinstance(op, ast.Lt | ast.LtE | ast.Gt | ast.GtE) and measured(upper, durations):
                        found.append((node.lineno, "an upper bound of a measured time"))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if isinstance(node.func.value, ast.Name) and node.func.value.id.startswith("httpx"):
                patient = {it.arg for it in node.keywords} & {"timeout", "transport", None}
                if node.func.attr in ("AsyncClient", "Client") and not patient:
                    found.append((node.lineno, "a client that waits five seconds, which is httpx's default"))
            limit = {"timeout": 0, "wait_for": 1}.get(node.func.attr)
            of_asyncio = isinstance(node.func.value, ast.Name) and node.func.value.id == "asyncio"
            if limit is not None and of_asyncio and len(node.args) > limit:
                given = node.args[limit]
                if isinstance(given, ast.Constant) and given.value is not None and given.value < LEAST_S:
                    found.append((node.lineno, f"a wait of less than {LEAST_S} s"))
    return found


def test_no_test_expects_a_quick_machine() -> None:
    """Only a module that names a clock or a wait is parsed."""
    files = sorted(TESTS.rglob("test_*.py"))
    assert len(files) > 300
    found = {
        f"{file.relative_to(TESTS)}:{line}": what
        for file in files
        if WORDS.search(text := file.read_text(encoding="utf-8"))
        for line, what in problems(ast.parse(text))
    }
    assert found == {}


@pytest.mark.parametrize(
    ("line", "bad"),
    [
        ("assert time.monotonic() - began < 2", True),
        ("took = loop.time() - began\nassert took / 3 <= LIMIT", True),
        ("took = time.perf_counter() - began\nassert 0 < took", False),
        ("took = time.perf_counter() - began\nassert 2 > took", True),
        ("assert time.process_time() - began < 20", False),
        ("assert now - began < 2", False),
        ("from statistics import median", True),
        ("await asyncio.wait_for(reading, 5)", True),
        ("asyncio.timeout(0.5)", True),
        ("asyncio.timeout(PATIENCE_S)", False),
        ("await asyncio.wait({reading}, timeout=0.5)", False),
        ("httpx2.AsyncClient(trust_env=False)", True),
        ("httpx2.Client(timeout=PATIENCE_S)", False),
        ("httpx2.AsyncClient(transport=of_the_app)", False),
    ],
)
def test_a_line_is_judged(line: str, bad: bool) -> None:
    assert bool(problems(ast.parse(line))) == bad
    assert WORDS.search(line) or not bad
