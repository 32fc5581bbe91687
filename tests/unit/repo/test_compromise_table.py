"""The threat model's table of stolen parts: no cell is empty, and each names tests that are there."""

import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[3]
_PAGE = (ROOT / "docs/security/threat-model.md").read_text(encoding="utf-8")
_KEY = re.compile(r"\b([A-Z][0-9])\b")
STOLEN = (
    "API process",
    "gateway process",
    "worker's host",
    "database",
    "namespace",
    "session",
    "refresh token",
)


def table_under(heading: str) -> list[list[str]]:
    section = _PAGE.split(f"{heading}\n", 1)[1].split("\n#", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines if not set(line) <= set("| -")
    ]


@cache
def text_of(file: str) -> str:
    return (ROOT / file).read_text(encoding="utf-8")


def test_each_cell_says_no_or_what_and_names_its_tests():
    head, *rows = table_under("## What a stolen part is worth")
    assert len(head) == 8
    for part in STOLEN:
        assert any(part in row[0] for row in rows), part
    for action in ("token", "proxy", "connect", "admin", "export"):
        assert any(row[0] == f"an app's key with `{action}`" for row in rows), action
    keys = {row[0] for row in table_under("### Tests of the table")[1:]}
    used: set[str] = set()
    for row in rows:
        assert len(row) == len(head), row[0]
        for title, cell in zip(head[1:], row[1:], strict=True):
            named = set(_KEY.findall(cell))
            assert named, f"{row[0]}: {title} names no test"
            assert named <= keys, f"{row[0]}: {title} names {named - keys}"
            used |= named
    assert used == keys, "a test that no cell names"


def test_the_tests_that_the_table_names_are_there():
    _, *rows = table_under("### Tests of the table")
    for key, tests in rows:
        for file, name in re.findall(r"`([^`:]+)::([^`]+)`", tests):
            assert re.search(rf"def {re.escape(name)}\(", text_of(file)), f"{key}: {file}::{name}"
        assert tests.count("::") == len(re.findall(r"`([^`:]+)::([^`]+)`", tests)) > 0, key
