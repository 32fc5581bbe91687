"""The short form of `python -m tests.faults.token_file`."""

import logging
from pathlib import Path

import pytest

from evergrant_server.core.oauth.authorizations import LATE_REPLAYS
from tests.faults.token_file.sharing import sharing


async def test_processes_that_share_one_file_of_tokens_lose_no_session_and_a_thief_ends_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    async with sharing(tmp_path) as shared:
        for _ in range(3):
            await shared.expire()
        counts = shared.counts
        assert (counts.lost, counts.calls) == ([], 3 * 8)
        assert await shared.rotations() == 3, "one successor at each expiry"
        assert counts.refreshes >= 3 * 2, "the late process always has a used token"
        assert shared.idp.refreshes == shared.idp.count("token", grant_type="refresh_token") == 3
        assert shared.idp.families[0].alive
        assert await shared.alarms() == 0
        with caplog.at_level(logging.ERROR):
            assert await shared.robbed() == (400, 401, 400)
        assert "token replayed" in caplog.text
        assert await shared.alarms() == 1
        assert await shared.repeated() == LATE_REPLAYS
        assert shared.idp.families[0].alive, "what a client does with our tokens costs the grant nothing"
