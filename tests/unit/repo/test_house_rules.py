"""Rules for every file of the repository: hosts, paths, names, docstrings, lengths, silenced checks."""

import ast
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
TOO_LONG = 400  # lines of Python
PACKAGES = ("evergrant_server", "workflows", "activities", "providers", "clients/python/src")

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
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef):
                assert not node.name.endswith(("Manager", "Helper", "Utils")), f"{name}: {node.name}"


def test_every_package_says_what_it_owns() -> None:
    inits = [
        (name, text) for name, text in python() if name.endswith("__init__.py") and name.startswith(PACKAGES)
    ]
    assert inits
    assert [name for name, text in inits if not ast.get_docstring(ast.parse(text))] == []


def test_every_module_has_a_docstring() -> None:
    missing = [
        name
        for name, text in python()
        if name.startswith((*PACKAGES, "worker.py")) and text and not ast.get_docstring(ast.parse(text))
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
