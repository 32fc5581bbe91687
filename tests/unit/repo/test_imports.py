"""Import rules beyond import-linter's contracts: closed lists, and a contract for every package."""

import ast
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[3]
SERVER = ("evergrant_server", "workflows", "activities", "providers")
TEMPORAL_PLACES = (
    "workflows/",
    "activities/",
    "worker.py",
    "evergrant_server/temporal_link/",
    "evergrant_server/wiring/",
    "clients/python/src/evergrant/temporal/",
    "examples/",
    "tests/",
)


def imported(path: Path) -> Iterator[str]:
    """The absolute names that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield node.module or ""


def sources() -> Iterator[Path]:
    for folder in (*SERVER, "clients", "examples", "tests", "migrations", "docs"):
        yield from (ROOT / folder).rglob("*.py")
    yield from ROOT.glob("*.py")


def test_core_imports_only_the_standard_library_and_pydantic() -> None:
    allowed = sys.stdlib_module_names | {"pydantic", "pydantic_core"}
    for path in (ROOT / "evergrant_server/core").rglob("*.py"):
        for name in imported(path):
            assert name.startswith("evergrant_server.core") or name.partition(".")[0] in allowed, (
                f"{path.relative_to(ROOT)} imports {name}"
            )


def test_temporalio_stays_in_its_places() -> None:
    users = {
        path.relative_to(ROOT).as_posix()
        for path in sources()
        if any(name.partition(".")[0] == "temporalio" for name in imported(path))
    }
    assert users, "nothing imports temporalio: this test looks in the wrong place"
    assert {user for user in users if not user.startswith(TEMPORAL_PLACES)} == set()


def test_httpx_is_not_used() -> None:
    users = [path for path in sources() if any(name.partition(".")[0] == "httpx" for name in imported(path))]
    assert users == [], "httpx2 is the HTTP library"


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
    for top in SERVER:
        for folder in {path.parent for path in (ROOT / top).rglob("*.py")}:
            assert (folder / "__init__.py").exists(), f"{folder.relative_to(ROOT)} has no __init__.py"
