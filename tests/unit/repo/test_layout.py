"""The layout's limits (modules in a folder, names of classes, private names of other distributions), and
import rules beyond import-linter's contracts."""

import ast
import subprocess
import sys
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[3]
SERVER = ("evergrant_server/", "workflows/", "activities/", "providers/", "worker.py")
PACKAGES = ("evergrant_server", "workflows", "activities", "providers")
PRODUCT = (*SERVER, "clients/python/src/", "bench/", "examples/")
MOST_MODULES = 16
# names of the standard library: documented ones of named tuples, enums and os, and two without a public name
STANDARD_LIBRARY = {"_asdict", "_exit", "_fields", "_replace", "_run_exitfuncs", "_typeshed", "_value_"}


def names(*folders: str) -> list[str]:
    """The repository's Python files below these folders."""
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    found = [name for name in listed.stdout.split() if name.startswith(folders) and (ROOT / name).exists()]
    assert len(found) > 20, "git lists hardly any file: the rules below would hold for nothing"
    return found


@cache
def nodes() -> dict[str, tuple[ast.AST, ...]]:
    """Every node of every module of the product."""
    return {
        name: tuple(ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8"))))
        for name in names(*PRODUCT)
    }


def test_a_folder_has_few_modules() -> None:
    modules = [name for name in names(*PRODUCT, "tests/") if not name.endswith("__init__.py")]
    counts = Counter(str(Path(name).parent) for name in modules)
    assert {folder: count for folder, count in counts.items() if count > MOST_MODULES} == {}


def test_a_class_name_stands_once_in_the_server() -> None:
    places: defaultdict[str, list[str]] = defaultdict(list)
    for name, found in nodes().items():
        if name.startswith(SERVER):
            for node in found:
                if isinstance(node, ast.ClassDef):
                    places[node.name].append(name)
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def test_no_private_name_of_another_distribution_is_used() -> None:
    """A private name that no module of ours defines belongs to another distribution."""
    used: list[tuple[str, str]] = []
    ours = set(STANDARD_LIBRARY)
    for name, found in nodes().items():
        for node in found:
            ours.update(filter(is_private, defined_by(node)))
            used += [(f"{name}:{node.lineno}", private) for private in used_by(node) if is_private(private)]
    assert [(place, private) for place, private in used if private not in ours] == []


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def defined_by(node: ast.AST) -> list[str]:
    """The names of functions, classes, variables and attributes that a node defines."""
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return [name]
        case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
            return [name]
        case ast.alias(asname=str(name)):
            return [name]
    return []


def used_by(node: ast.AST) -> list[str]:
    """The attribute that a node reads, or the modules and names that it imports."""
    match node:
        case ast.Attribute(attr=name):
            return [name]
        case ast.ImportFrom(module=module, names=aliases):
            return [*(module or "").split("."), *(alias.name for alias in aliases)]
        case ast.Import(names=aliases):
            return [part for alias in aliases for part in alias.name.split(".")]
    return []


def imported(path: Path) -> Iterator[str]:
    """The absolute names that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield node.module or ""


def test_core_imports_only_the_standard_library_and_pydantic() -> None:
    allowed = sys.stdlib_module_names | {"pydantic", "pydantic_core"}
    for path in (ROOT / "evergrant_server/core").rglob("*.py"):
        for name in imported(path):
            assert name.startswith("evergrant_server.core") or name.partition(".")[0] in allowed, (
                f"{path.relative_to(ROOT)} imports {name}"
            )


def test_every_package_is_under_a_contract() -> None:
    document = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = document["tool"]["importlinter"]["contracts"]
    under = {name for contract in contracts for name in contract.get("source_modules", [])}
    packages = {
        f"evergrant_server.{path.parent.name}" for path in (ROOT / "evergrant_server").glob("*/__init__.py")
    }
    packages |= {"workflows", "activities", "providers", "evergrant"}
    above_all = {"evergrant_server.cli", "evergrant_server.wiring"}
    assert packages - above_all <= under


def test_every_folder_is_a_package() -> None:
    """import-linter reads packages only: it misses a folder without `__init__.py`."""
    for top in PACKAGES:
        for folder in {path.parent for path in (ROOT / top).rglob("*.py")}:
            assert (folder / "__init__.py").exists(), f"{folder.relative_to(ROOT)} has no __init__.py"
