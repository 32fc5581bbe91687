"""The one option of the converters, `--integration THEIRS=OURS`, and files of JSON lines."""

import argparse
import json
from collections.abc import Iterator, Sequence
from typing import Any


def mapping(arguments: Sequence[str]) -> tuple[str, dict[str, str]]:
    """The file, and our name for each of their integrations."""
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("--integration", action="append", default=[], metavar="THEIRS=OURS")
    given = parser.parse_args(arguments)
    return given.file, dict(pair.split("=", 1) for pair in given.integration)


def read_jsonl(path: str) -> Iterator[dict[str, Any]]:
    with open(path, encoding="utf-8") as file:
        yield from (json.loads(line) for line in file if line.strip())
