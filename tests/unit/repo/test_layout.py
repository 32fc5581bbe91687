"""The layout's limits: modules in a folder, names of classes, and private names of other distributions."""

import ast
import subprocess
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[3]
SERVER = ("evergrant_server/", "workflows/", "activities/", "providers/", "worker.py")
PRODUCT = (*SERVER, "clients/python/src/", "bench/", "examples/")
MOST_MODULES = 16
EXCEPTIONS = {"clients/python/src/evergrant": 20}  # flat, so that `from evergrant import …` has one level
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
    crowded = {
        folder: count for folder, count in counts.items() if count > EXCEPTIONS.get(folder, MOST_MODULES)
    }
    assert crowded == {}


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
