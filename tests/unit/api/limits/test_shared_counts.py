"""API processes count together in a real Redis, and each for itself while it is away."""

from pathlib import Path

import pytest

from evergrant_server.access import redis_limits
from evergrant_server.access.limits import RateLimited, RequestLimits
from evergrant_server.core.access import App
from evergrant_server.settings import Settings
from tests.conformance.store.samples import an_app
from tests.fakes.platform.redis_server import redis_server


async def allowed(limits: RequestLimits, app: App, times: int) -> list[bool]:
    outcomes = []
    for _ in range(times):
        try:
            await limits.count_request({}, app)
            outcomes.append(True)
        except RateLimited as refused:
            outcomes.append(not 0 < (refused.retry_after or 0) <= 60)
    return outcomes


async def test_two_processes_count_together_and_alone_without_redis(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    unshared: list[int] = []
    monkeypatch.setattr(redis_limits.LIMITS_UNSHARED, "add", unshared.append)
    password = tmp_path / "password"
    password.write_text("hush\n")
    app, other = an_app(), an_app()
    async with redis_server(tmp_path, "hush") as url:
        settings = Settings(
            data_dir=tmp_path, request_limit_per_app=4, redis_url=url, redis_password_file=password
        )
        first, second = RequestLimits(settings), RequestLimits(settings)
        assert await allowed(first, app, 2) == [True, True]
        assert await allowed(second, app, 3) == [True, True, False]
        assert await allowed(first, app, 1) == [False]
        assert await allowed(first, other, 1) == [True]
        assert unshared == []
    assert await allowed(first, app, 5) == [True] * 4 + [False]
    assert await allowed(second, app, 1) == [True]
    assert len(unshared) == 6
    monkeypatch.setattr(redis_limits, "_AWAY_S", 0.0)
    first._shared._away_until = second._shared._away_until = 0.0
    async with redis_server(tmp_path, "hush"):
        assert await allowed(second, other, 1) == [True]
        assert len(unshared) == 6
    await first.close()
    await second.close()


async def test_a_redis_that_refuses_the_password_refuses_no_request(tmp_path: Path):
    async with redis_server(tmp_path, "hush") as url:
        limits = RequestLimits(Settings(data_dir=tmp_path, request_limit_per_app=1, redis_url=url))
        assert await allowed(limits, an_app(), 2) == [True, False]
        await limits.close()
