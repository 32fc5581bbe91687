"""The short form of the proof: real processes, no SIGKILL (`python -m tests.faults.rotation --kills`)."""

from pathlib import Path

from bench.processes import sqlite
from tests.faults.rotation.run import prove


async def test_keys_are_rotated_under_load_and_no_lease_fails(tmp_path: Path):
    said: list[str] = []
    sizes = {"connections": 40, "readers": 4, "refreshing": 2}
    result = await prove(tmp_path, sqlite(tmp_path), **sizes, kills=False, say=said.append)
    assert result.wrong == [], said
