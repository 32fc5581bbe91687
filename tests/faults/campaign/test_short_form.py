"""The short form of the proof: a worker that is killed halfway asks nobody twice, and loses nobody.

`make soak` runs it. Without processes and kills: tests/faults/incident/test_campaign.py.
"""

from pathlib import Path

import pytest

from tests.fakes.databases import lent
from tests.faults.campaign.drill import prove


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_subjects_consent_to_another_client_while_apps_lease_and_the_worker_is_killed(
    kind: str, tmp_path: Path
):
    words: list[str] = []
    async with lent(kind, tmp_path) as url:
        wrong = await prove(tmp_path, url, connections=12, say=words.append)
    assert wrong == [], words
