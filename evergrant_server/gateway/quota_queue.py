"""Keeps a gateway's callers to the limits of providers' APIs: a short wait, or a 429 that says when.

`core.api_limits` decides. A process knows its own calls and what replies say. Of an app's calls that wait for
one API the first is served first, and apps don't wait for one another.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

from evergrant_server.access.limits import RateLimited
from evergrant_server.core.access import Permit, Priority
from evergrant_server.core.api_limits.limits import (
    ApiLimits,
    CountedCall,
    DocumentedQuota,
    LimitedCall,
    path_shape,
)
from evergrant_server.core.api_limits.reply import read_limits
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AppId
from evergrant_server.settings import Settings
from evergrant_server.store import LeaseRow
from evergrant_server.telemetry import metrics

_SHORTEST_S = 0.005  # between two looks at a quota
_Line = tuple[str, str]  # of an app's calls to one connection's API


class ApiLimitReached(RateLimited):
    """The failure API_LIMIT_REACHED: an API takes no more calls, or no more of this app's, for so long."""

    def __init__(self, row: LeaseRow, seconds: float) -> None:
        why = f"{row.provider}'s API takes no more of this app's calls for {seconds:.1f} seconds."
        repair = (
            "Try again later. An admin may give the app's calls a larger part: "
            "evergrant permits put --priority high."
        )
        about = {"connection_id": row.connection_id, "integration": row.integration, "repair": repair}
        Failure.__init__(self, ErrorCode.API_LIMIT_REACHED, why, retry_after=seconds, **about)


class ApiTurn:
    """One call's place within its API's limits, from before it is recorded until its reply's head."""

    def __init__(self, limits: "CallLimits") -> None:
        self._limits = limits
        self._counted: CountedCall | None = None
        self._was_sent = False

    async def take(
        self,
        row: LeaseRow,
        app: AppId,
        permit: Permit | None,
        quotas: Sequence[DocumentedQuota],
        method: str,
        target: bytes,
    ) -> None:
        """Count the call, or wait until it may be sent; once, however often the decision is repeated.

        Raises ApiLimitReached.
        """
        if self._counted is None:
            priority = Priority.NORMAL if permit is None else permit.priority
            path = path_shape(method, target.partition(b"?")[0].decode("latin-1"))
            facts = (priority.weight, row.connection_id, row.integration_id, path, tuple(quotas))
            self._counted = await self._limits.admit(LimitedCall(app, *facts), row)

    def sent(self) -> None:
        """The call leaves now."""
        self._was_sent = True

    def answered(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """The head of the reply has come."""
        if self._counted is not None:
            reply = read_limits(status, headers, datetime.now(UTC))
            self._limits.known.answered(self._counted, reply, time.monotonic())

    def end(self) -> None:
        """A call that wasn't sent is given back."""
        if self._counted is not None and self._was_sent:
            self._limits.known.ended(self._counted)
        elif self._counted is not None:
            self._limits.known.give_back(self._counted)


class CallLimits:
    """The limits of one gateway process. Belongs to one event loop."""

    def __init__(self, settings: Settings) -> None:
        self.known = ApiLimits(settings.gateway_processes)
        self._longest_s = settings.gateway_limit_wait.total_seconds()
        self._waiting: Counter[_Line] = Counter()
        self._lines: dict[_Line, asyncio.Lock] = {}

    @contextmanager
    def turn(self) -> Iterator[ApiTurn]:
        """The turn of one call, which ends with the block."""
        turn = ApiTurn(self)
        try:
            yield turn
        finally:
            turn.end()

    async def admit(self, call: LimitedCall, row: LeaseRow) -> CountedCall:
        """Count the call now, or when its turn comes within the setting's time. Raises ApiLimitReached."""
        began, line = time.monotonic(), (call.app, call.connection)
        counted = self.known.take(call, began, self._waiting[line])
        if counted is not None:
            return counted
        deadline = began + self._longest_s
        self._require_by(deadline, call, row, began, self._waiting[line])
        self._waiting[line] += 1
        try:
            async with self._lines.setdefault(line, asyncio.Lock()):
                counted = await self._turn_of(call, row, deadline)
        finally:
            self._waiting[line] -= 1
            if not self._waiting[line]:
                del self._waiting[line], self._lines[line]
        metrics.record_limit_wait(time.monotonic() - began, row.provider)
        return counted

    async def _turn_of(self, call: LimitedCall, row: LeaseRow, deadline: float) -> CountedCall:
        """Wait at the head of the app's line. Other apps may have called when the time has come."""
        while True:
            now = time.monotonic()
            counted = self.known.take(call, now)
            if counted is not None:
                return counted
            ready_at = self._require_by(deadline, call, row, now)
            await asyncio.sleep(max(ready_at - now, _SHORTEST_S))

    def _require_by(
        self, deadline: float, call: LimitedCall, row: LeaseRow, now: float, ahead: int = 0
    ) -> float:
        """When the call's turn will come. Raises ApiLimitReached for a later one than the deadline."""
        ready_at = self.known.ready_at(call, now, ahead)
        if ready_at > deadline:
            metrics.count(metrics.API_LIMITS, "refused", row.provider)
            raise ApiLimitReached(row, ready_at - now)
        return ready_at
