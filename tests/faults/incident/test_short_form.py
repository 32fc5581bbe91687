"""The short form of the drill, on both databases: SIGKILLs of API and worker halfway (`make soak`).

Without processes and kills: tests/faults/incident/test_incident.py.
"""

from pathlib import Path

import pytest

from tests.fakes.databases import lent
from tests.faults.incident.drill import prove


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_a_drill_that_is_killed_and_paused_halfway_revokes_each_grant_at_a_real_server(
    kind: str, tmp_path: Path
):
    words: list[str] = []
    async with lent(kind, tmp_path) as url:
        wrong = await prove(tmp_path, url, connections=24, kills=True, say=words.append)
    assert wrong == [], words
