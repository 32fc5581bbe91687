"""The walk of one refresh in docs/architecture.md: its functions exist and call each other in that order."""

import ast
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
MOST_FILES = 30
LINE = re.compile(r"^ *(\d+) ( *)(\S+\.py): (\S+?)(?: by (\S+))?$", re.MULTILINE)


@dataclass(frozen=True)
class Step:
    number: int
    depth: int
    file: str
    function: str
    handover: str | None  # named by both functions, where it is not a call

    @property
    def name(self) -> str:
        return self.function.rpartition(".")[2]


def walk() -> list[Step]:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    return [
        Step(int(number), len(indent) // 2, file, function, handover)
        for number, indent, file, function, handover in LINE.findall(text)
    ]


def parents() -> list[tuple[Step | None, Step]]:
    """Every step with the one that calls it."""
    found: list[tuple[Step | None, Step]] = []
    open_steps: list[Step] = []
    for step in walk():
        del open_steps[step.depth :]
        found.append((open_steps[-1] if open_steps else None, step))
        open_steps.append(step)
    return found


@cache
def names_in(file: str, function: str) -> tuple[str, ...]:
    """The names that a function uses, decorators included, in the order of its source."""
    node: ast.AST = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    for part in function.split("."):
        inside = [it for it in ast.walk(node) if getattr(it, "name", None) == part]
        assert inside, f"{file} has no {function}"
        node = inside[0]
    used = [it for it in ast.walk(node) if isinstance(it, ast.Name | ast.Attribute | ast.arg)]
    used.sort(key=lambda it: (it.end_lineno or 0, it.end_col_offset or 0))
    return tuple(
        it.id if isinstance(it, ast.Name) else it.attr if isinstance(it, ast.Attribute) else it.arg
        for it in used
    )


def test_the_steps_are_numbered_and_exist() -> None:
    assert [step.number for step in walk()] == list(range(1, len(walk()) + 1))
    assert len(walk()) > 40
    for step in walk():
        names_in(step.file, step.function)


@pytest.mark.parametrize(
    ("caller", "step"), [(caller, step) for caller, step in parents() if caller], ids=str
)
def test_each_step_is_called_by_the_one_above_it(caller: Step, step: Step) -> None:
    if step.handover is None:
        assert step.name in names_in(caller.file, caller.function)
    else:
        text = (ROOT / step.file).read_text(encoding="utf-8")
        assert step.handover in (ROOT / caller.file).read_text(encoding="utf-8")
        assert step.handover in text


def test_a_function_calls_its_steps_in_the_order_of_the_list() -> None:
    calls: dict[Step, list[Step]] = {}
    for caller, step in parents():
        if caller is not None and step.handover is None:
            calls.setdefault(caller, []).append(step)
    for caller, steps in calls.items():
        used = names_in(caller.file, caller.function)
        firsts = [used.index(step.name) for step in steps]
        assert firsts == sorted(firsts), f"{caller.function}: {[step.name for step in steps]}"


def test_few_files_are_entered_and_each_once_on_the_way_there_and_once_on_the_way_back() -> None:
    files = {step.file for step in walk() if "/core/" not in step.file}
    assert len(files) <= MOST_FILES
    entered = Counter(step.file for caller, step in parents() if caller is None or caller.file != step.file)
    assert {file: times for file, times in entered.items() if times > 2} == {}
