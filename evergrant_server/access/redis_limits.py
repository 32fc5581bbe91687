"""Counts that all API processes share, in Redis. While it is away, each process counts for itself."""

import logging
import math
import time
from contextlib import suppress

from limits import RateLimitItemPerMinute
from limits.aio.storage import RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from limits.errors import StorageError
from redis.asyncio import BlockingConnectionPool
from redis.exceptions import RedisError

from evergrant_server.access.limits import Counted
from evergrant_server.settings import Settings
from evergrant_server.telemetry.logs import LogEvent, log_event
from evergrant_server.telemetry.saturation import LIMITS_UNSHARED

log = logging.getLogger("evergrant.api")

_CONNECTIONS = 8
_WAIT_S = 0.25  # for one answer of Redis
_AWAY_S = 5.0  # until it is asked again after it didn't answer


class SharedCounts:
    """A sliding window of a minute for each key."""

    def __init__(self, settings: Settings) -> None:
        password = settings.redis_password_file
        options = {} if password is None else {"password": password.read_text(encoding="utf-8").strip()}
        self._pool: BlockingConnectionPool = BlockingConnectionPool.from_url(
            settings.redis_url,
            max_connections=_CONNECTIONS,
            timeout=_WAIT_S,
            socket_timeout=_WAIT_S,
            socket_connect_timeout=_WAIT_S,
            **options,
        )
        self._storage = RedisStorage(
            "async+redis://",
            wrap_exceptions=True,
            implementation="redispy",
            key_prefix="evergrant",
            connection_pool=self._pool,  # pyright: ignore[reportArgumentType]  # typed as a plain option
        )
        self._limiter = SlidingWindowCounterRateLimiter(self._storage)
        self._away_until = 0.0

    async def count(self, policy: str, key: str, quota: int) -> Counted | None:
        """Count a request; None while Redis is away."""
        if time.monotonic() < self._away_until:
            LIMITS_UNSHARED.add(1)
            return None
        item = RateLimitItemPerMinute(quota)
        try:
            allowed = await self._limiter.hit(item, policy, key)
            stats = await self._limiter.get_window_stats(item, policy, key)
        except (StorageError, OSError) as error:
            self._away_until = time.monotonic() + _AWAY_S
            LIMITS_UNSHARED.add(1)
            log_event(log, logging.WARNING, LogEvent.REDIS_AWAY, type(error.__cause__ or error).__name__)
            return None
        seconds = max(math.ceil(stats.reset_time - time.time()), 1)
        return Counted(policy, quota, stats.remaining if allowed else 0, seconds, allowed)

    async def close(self) -> None:
        with suppress(RedisError, OSError):
            await self._pool.aclose()
