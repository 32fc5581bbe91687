"""Every row of docs/protocol.md's table of whose turn it is names its test, and the test exists."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
_TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def rows() -> list[str]:
    text = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
    table = text.partition("| cause, and what the store says |")[2].partition("\n\n")[0]
    return table.splitlines()[2:]


def test_each_row_names_a_test_that_there_is():
    assert len(rows()) > 10
    for row in rows():
        named = _TEST.findall(row)
        assert named, row
        for file, name in named:
            source = (ROOT / file).read_text(encoding="utf-8")
            assert f"def {name}(" in source, f"{file} has no {name}"
