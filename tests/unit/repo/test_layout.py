"""Rules for every file of the repository (hosts, paths, names, docstrings, lengths, silenced checks), the
layout's limits, and import rules beyond import-linter's contracts."""

import ast
import re
import subprocess
import sys
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
TOO_LONG = 400  # lines of Python
PACKAGES = ("evergrant_server", "workflows", "activities", "providers", "clients/python/src")
SERVER = ("evergrant_server/", "workflows/", "activities/", "providers/", "worker.py")
PRODUCT = (*SERVER, "clients/python/src/", "bench/", "examples/")
MOST_MODULES = 20
# names of the standard library: documented ones of named tuples, enums and os, and two without a public name
STANDARD_LIBRARY = {"_asdict", "_exit", "_fields", "_replace", "_run_exitfuncs", "_typeshed", "_value_"}

# pieces, so that this file doesn't hold what it looks for
REGISTRY_HOSTS = tuple(
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("npmjs", "org"),
        ("npmjs", "com"),
        ("deb", "debian", "org"),
        ("crates", "io"),
        ("proxy", "golang", "org"),
    )
)
HOME_PATHS = re.compile(r"(?<![\w.])/(?:work|root|home/\w+)/")


@cache
def files() -> tuple[Path, ...]:
    """Files that git tracks or would add."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout.decode()
    return tuple(path for name in listed.split("\0") if name and (path := ROOT / name).is_file())


@cache
def texts() -> list[tuple[str, str]]:
    found = []
    for path in files():
        try:
            found.append((path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")))
        except UnicodeDecodeError:
            continue  # a picture
    assert len(found) > 50, "git lists hardly any file: the rules below would hold for nothing"
    return found


def python() -> list[tuple[str, str]]:
    return [(name, text) for name, text in texts() if name.endswith(".py")]


def test_no_file_names_a_package_registry() -> None:
    assert [(name, host) for name, text in texts() for host in REGISTRY_HOSTS if host in text] == []


def test_no_file_names_a_home_folder() -> None:
    hits = [(name, found.group()) for name, text in texts() if (found := HOME_PATHS.search(text))]
    assert hits == []


def test_no_lock_file_that_records_download_addresses() -> None:
    names = {path.name for path in files()}
    assert names.isdisjoint({"uv.lock", "poetry.lock", "Pipfile.lock", "pdm.lock"})


def test_no_vague_names() -> None:
    for name, text in python():
        assert Path(name).stem not in {"utils", "util", "helpers", "common", "misc"}, name
        found = re.search(r"^\s*class \w*(Manager|Helper|Utils)\b", text, re.MULTILINE)
        assert not found, f"{name}: {found and found.group()}"


def has_docstring(name: str) -> bool:
    (module, *_) = nodes()[name]
    assert isinstance(module, ast.Module)
    return bool(ast.get_docstring(module))


def test_every_package_says_what_it_owns() -> None:
    inits = [
        (name, text) for name, text in python() if name.endswith("__init__.py") and name.startswith(PACKAGES)
    ]
    assert inits
    assert [name for name, _ in inits if not has_docstring(name)] == []


def test_every_module_has_a_docstring() -> None:
    missing = [
        name
        for name, text in python()
        if name.startswith((*PACKAGES, "worker.py")) and text and not has_docstring(name)
    ]
    assert missing == []


def test_files_stay_readable() -> None:
    lengths = {
        name: text.count("\n") for name, text in python() if not name.startswith("migrations/versions/")
    }
    assert {name: length for name, length in lengths.items() if length > TOO_LONG} == {}


@pytest.mark.parametrize("mark", ["type: ignore", "noqa", "pyright: ignore", "pragma: no cover"])
def test_a_silenced_check_gives_its_reason(mark: str) -> None:
    """After the mark (and its codes) come words: `# noqa: N802 the framework calls it so`."""
    pattern = re.compile(rf"#\s*{mark}(?:\[[\w, -]+\])?(?::\s*[A-Z]+[0-9]+(?:,\s*[A-Z]+[0-9]+)*)?(.*)$")
    for name, text in python():
        for number, line in enumerate(text.splitlines(), 1):
            found = pattern.search(line)
            if found and not re.search(r"[a-z]{3}", found.group(1)):
                raise AssertionError(f"{name}:{number} silences a check and gives no reason")


@cache
def nodes() -> dict[str, tuple[ast.AST, ...]]:
    """Every node of every module of the product."""
    return {name: tuple(ast.walk(ast.parse(text))) for name, text in python() if name.startswith(PRODUCT)}


def test_a_folder_has_few_modules() -> None:
    modules = [
        name for name, _ in python() if name.startswith((*PRODUCT, "tests/")) and "__init__" not in name
    ]
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
    for top in SERVER[:-1]:
        for folder in {path.parent for path in (ROOT / top).rglob("*.py")}:
            assert (folder / "__init__.py").exists(), f"{folder.relative_to(ROOT)} has no __init__.py"
