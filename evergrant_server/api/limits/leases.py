"""Limits of leases in one process: how many in a minute, and how many requests of an app are open at once.

A response names the limits that were counted in `RateLimit-Policy` and `RateLimit`
(draft-ietf-httpapi-ratelimit-headers-11); a refusal is a problem of its type `quota-exceeded`.
"""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import NamedTuple

from starlette.datastructures import MutableHeaders
from starlette.types import Scope

from evergrant_server.core.access import App
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AppId, Tenant
from evergrant_server.settings import Settings

WINDOW_S = 60
OPEN_REQUESTS = "open-requests"
_COUNTED = "evergrant.limits"  # in the ASGI scope
_MOST_KEYS = 50_000
_OPEN_RETRY_S = 1.0


class Counted(NamedTuple):
    """A limit as a request met it: what is left, and the seconds until more is, or until all is again."""

    policy: str
    quota: int
    remaining: int
    seconds: int
    allowed: bool = True


class RateLimited(Failure):
    """The failure RATE_LIMITED of one policy."""

    def __init__(self, policy: str, why: str, seconds: float) -> None:
        super().__init__(ErrorCode.RATE_LIMITED, why, retry_after=seconds, policy=policy)


class Gcra:
    """The generic cell rate algorithm: `quota` at once, and then one in each `WINDOW_S / quota` seconds."""

    def __init__(self, now: Callable[[], float] = monotonic) -> None:
        self._now = now
        self._whole_at: dict[Hashable, float] = {}  # when the key's quota is whole again

    def take(self, policy: str, key: Hashable, quota: int) -> Counted:
        """Count a request of this key, unless it is refused."""
        now, step = self._now(), WINDOW_S / quota
        whole_at = max(now, self._whole_at.get(key, now)) + step
        late = whole_at - now - WINDOW_S
        if late > 1e-9:
            return Counted(policy, quota, 0, max(math.ceil(late), 1), allowed=False)
        if len(self._whole_at) >= _MOST_KEYS:
            self._whole_at.clear()  # bounded, however many addresses come
        self._whole_at[key] = whole_at
        remaining = int((WINDOW_S - (whole_at - now)) / step + 1e-6)
        seconds = whole_at - now if remaining else step
        return Counted(policy, quota, remaining, max(math.ceil(seconds), 1))


class LeaseLimits:
    """The limits of the settings, and the app's own in place of `lease_limit_per_app`.

    Each of a host's API processes enforces its part of a rate.
    """

    def __init__(self, settings: Settings) -> None:
        self._app = settings.lease_limit_per_app
        self._tenant = settings.lease_limit_per_tenant
        self._integration = settings.lease_limit_per_integration
        self._most_open = settings.open_leases_per_app
        self._processes = settings.api_workers
        self._gcra = Gcra()
        self._open: Counter[AppId] = Counter()

    @contextmanager
    def admit(self, scope: Scope, app: App) -> Iterator[None]:
        """Count a request of an app, which is open until the block ends. Raises RateLimited."""
        if self._open[app.id] >= self._most_open:
            scope[_COUNTED] = [Counted(OPEN_REQUESTS, self._most_open, 0, math.ceil(_OPEN_RETRY_S))]
            why = f"The app has {self._most_open} lease requests open already."
            raise RateLimited(OPEN_REQUESTS, why, _OPEN_RETRY_S)
        self._open[app.id] += 1
        try:
            if quota := app.lease_limit or self._app:
                self._take(scope, "app", app.id, quota)
            if self._tenant:
                self._take(scope, "tenant", app.tenant, self._tenant)
            yield
        finally:
            self._open[app.id] -= 1
            if not self._open[app.id]:
                del self._open[app.id]

    def count_integration(self, scope: Scope, tenant: Tenant, integration: str) -> None:
        """Count a lease of an integration, once for a request that is judged again. Raises RateLimited."""
        counted: list[Counted] = scope.get(_COUNTED, [])
        if self._integration and not any(it.policy == "integration" for it in counted):
            self._take(scope, "integration", (tenant, integration), self._integration)

    def _take(self, scope: Scope, policy: str, key: Hashable, quota: int) -> None:
        counted = self._gcra.take(policy, (policy, key), math.ceil(quota / self._processes))
        note_counted(scope, counted._replace(quota=quota))
        if not counted.allowed:
            why = f"The limit of {quota} leases in a minute for this {policy} is reached."
            raise RateLimited(policy, why, counted.seconds)


def note_counted(scope: Scope, counted: Counted) -> None:
    """Have the response name this limit."""
    scope.setdefault(_COUNTED, []).append(counted)


def add_limit_headers(scope: Scope, headers: MutableHeaders) -> None:
    """Name the limits that the request met."""
    counted: list[Counted] | None = scope.get(_COUNTED)
    if counted:
        headers["RateLimit-Policy"] = ", ".join(
            f'"{it.policy}";q={it.quota};'
            + ('qu="concurrent-requests"' if it.policy == OPEN_REQUESTS else f"w={WINDOW_S}")
            for it in counted
        )
        headers["RateLimit"] = ", ".join(f'"{it.policy}";r={it.remaining};t={it.seconds}' for it in counted)
