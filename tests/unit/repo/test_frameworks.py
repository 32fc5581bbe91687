"""The examples with agent frameworks: short, of the frameworks that are locked, and of names that exist.

`make frameworks` runs them; here are only those packages that the tests have.
"""

import ast
import importlib
import importlib.util
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
EXAMPLES = sorted((ROOT / "examples/frameworks").glob("with_*.py"))
MOST_LINES = 14
# modules whose distribution has another name
DISTRIBUTIONS = {"agents": "openai-agents", "pydantic_ai": "pydantic-ai-slim"}


def pinned(name: str) -> set[str]:
    lock = (ROOT / f"requirements/frameworks/{name}.txt").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z0-9-]+)(?:\[[a-z0-9,-]+\])?==", lock, re.MULTILINE))


def test_each_has_a_lock_and_each_lock_an_example() -> None:
    locks = {path.stem for path in (ROOT / "requirements/frameworks").glob("*.txt")}
    assert {path.stem.removeprefix("with_") for path in EXAMPLES} == locks
    assert len(locks) == 6


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_what_a_user_writes_is_under_15_lines(path: Path) -> None:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno + 1 <= MOST_LINES, node.name


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_it_imports_what_is_locked_and_names_that_exist(path: Path) -> None:
    """Names of packages that the tests have; `make frameworks` finds out about the others."""
    packages = pinned(path.stem.removeprefix("with_"))
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or node.module is None:
            continue
        top = node.module.partition(".")[0]
        if top in sys.stdlib_module_names:
            continue
        assert top == "evergrant" or DISTRIBUTIONS.get(top, top.replace("_", "-")) in packages, node.module
        for name in (it.name for it in node.names) if is_here(node.module) else ():
            found = importlib.import_module(node.module)
            assert hasattr(found, name) or is_here(f"{node.module}.{name}"), f"{node.module}.{name}"


def is_here(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def test_the_guide_has_every_example() -> None:
    guide = (ROOT / "docs/guide/frameworks.md").read_text(encoding="utf-8")
    marks = re.findall(r"^<!-- (\S+): [\w, ]+ -->\n```python\n\S", guide, re.MULTILINE)
    assert set(marks) == {path.relative_to(ROOT).as_posix() for path in EXAMPLES}
