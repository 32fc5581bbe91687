"""What workflows import has no time, chance or I/O of its own: a production worker runs them without
Temporal's sandbox (ADR 0085), which stops such calls in tests."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[3]
OURS = ("evergrant_server", "workflows")
PURE = {
    *("asyncio", "base64", "collections", "contextlib", "dataclasses", "datetime", "enum", "functools"),
    *("hashlib", "hmac", "json", "math", "pydantic", "pydantic_core", "re", "temporalio", "types", "typing"),
}
# modules of core that read a clock or draw at random, for others; and their functions that do
IMPURE = {"time", "secrets"}
READERS = {
    "evergrant_server/core/clock.py": {"SystemClock.now", "seconds_since_boot"},
    "evergrant_server/core/connections/consent.py": {"Consent.without_subject"},
    "evergrant_server/core/ids.py": {"new_id"},
}
CLOCKS = {"now", "utcnow", "today", "fromtimestamp"}
BUILTINS = {"open", "print", "input", "id", "hash", "exec", "eval", "__import__"}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path: Path) -> Iterator[str]:
    """The modules, and the names in them that may be modules."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@cache
def reached() -> dict[str, Path]:
    """The workflows and every module of ours that they import, directly or through another."""
    waiting, modules = sorted((ROOT / "workflows").glob("*.py")), dict[str, Path]()
    while waiting:
        path = waiting.pop()
        name = path.relative_to(ROOT).as_posix()
        if name not in modules:
            modules[name] = path
            named = (ROOT / f"{module.replace('.', '/')}.py" for module in imported(path))
            waiting += [module for module in named if module.exists()]
    assert len(modules) > 40, "the walk finds hardly any module"
    return modules


def drawing(path: Path) -> set[str]:
    """The functions of a module that use one of IMPURE, or the clock of `datetime`."""
    names = set[str]()
    for scope in (tree(path), *(node for node in tree(path).body if isinstance(node, ast.ClassDef))):
        for function in (node for node in scope.body if isinstance(node, ast.FunctionDef)):
            used = [node for node in ast.walk(function) if isinstance(node, ast.Attribute)]
            if any(
                ast.unparse(node.value) in IMPURE
                or (ast.unparse(node.value), node.attr) == ("datetime", "now")
                for node in used
            ):
                names.add(
                    f"{scope.name}.{function.name}" if isinstance(scope, ast.ClassDef) else function.name
                )
    return names


def test_they_import_nothing_that_isnt_deterministic():
    wrong = [
        (name, module)
        for name, path in reached().items()
        for module in imported(path)
        if (top := module.partition(".")[0]) not in PURE
        and top not in OURS
        and not (top in IMPURE and name in READERS)
    ]
    assert wrong == []


def test_the_functions_of_core_that_read_a_clock_or_draw_are_known():
    assert {name: drawing(path) for name, path in reached().items() if drawing(path)} == READERS


def test_what_decides_calls_none_of_them_and_no_clock():
    """Workflows, the lifecycle and the messages. `workflow.now` is Temporal's, from the history."""
    readers = set.union(*READERS.values())
    forbidden = {name.removesuffix(".now").removeprefix("Consent.") for name in readers}
    deciding = ("workflows/", "evergrant_server/core/lifecycle/", "evergrant_server/core/messages/")
    for name, path in reached().items():
        for node in ast.walk(tree(path)):
            if name.startswith(deciding):
                used = getattr(node, "id", None) or getattr(node, "attr", None)
                assert used not in forbidden, f"{name}:{getattr(node, 'lineno', 0)} uses {used}"
            if not isinstance(node, ast.Call) or name in READERS:
                continue
            call = ast.unparse(node.func)
            reads = call.rpartition(".")[2] in CLOCKS and call != "workflow.now"
            assert not reads, f"{name}:{node.lineno} calls {call}"
            assert call not in BUILTINS, f"{name}:{node.lineno} calls {call}"
