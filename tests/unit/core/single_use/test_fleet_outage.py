"""Two hundred connections of one integration, an outage of twelve hours, and its end: counted."""

import heapq
from collections import Counter
from datetime import datetime, timedelta

from evergrant_server.core.clock import clock_correction
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.lifecycle.command import Command
from evergrant_server.core.lifecycle.schedule import jitter
from evergrant_server.core.messages.activities import GrantResult
from evergrant_server.core.messages.connection import EventKind
from evergrant_server.core.single_use.circuit_breaker import CircuitBreaker, admit, answered, failed
from evergrant_server.core.single_use.retry_budget import BreakerRules
from tests.unit.core.lifecycle import steps
from tests.unit.core.lifecycle.steps import ACTIVE, HOUR, NOW, timer_of

DOWN = ErrorCode.PROVIDER_UNREACHABLE


class Fleet:
    """One worker, one circuit, and lives that wake by themselves; some callers ask every ten minutes."""

    def __init__(self, size: int, away: tuple[datetime, datetime], asking: int) -> None:
        self.away, self.asking = away, asking
        self.lives = [ACTIVE.model_copy(update={"generation": 1, "policy": "warm"}) for _ in range(size)]
        self.circuit, self.circuit_rules = CircuitBreaker(), BreakerRules()
        self.sent: list[datetime] = []
        self.served: dict[int, datetime] = {}

    def share(self, number: int) -> float:
        return jitter(f"con_{number}", self.lives[number].generation)

    def step(self, number: int, event: EventKind, at: datetime, **brings: object):
        step = steps.step(self.lives[number], event, at, self.share(number), **brings)
        self.lives[number] = step.state
        if step.command in (Command.REFRESH, Command.REFRESH_IF_LEASED):
            self.step(number, EventKind.REFRESH_ENDED, at, result=self.refreshed(number, at))

    def refreshed(self, number: int, at: datetime) -> GrantResult:
        elapsed = (at - NOW).total_seconds()
        self.circuit, leave = admit(self.circuit, elapsed, self.circuit_rules, self.share(number))
        if leave.delay is None:
            return GrantResult(failure=DOWN, retry_after=leave.retry_after)
        self.sent.append(at + timedelta(seconds=leave.delay))
        if self.away[0] <= at < self.away[1]:
            self.circuit = failed(self.circuit, elapsed, self.circuit_rules, DOWN, None, probe=leave.probe)
            return GrantResult(failure=DOWN)
        self.circuit = answered(self.circuit, elapsed, self.circuit_rules)
        return self.granted(number, at)

    def granted(self, number: int, at: datetime) -> GrantResult:
        if at >= self.away[1]:
            self.served.setdefault(number, at)
        return steps.granted(self.lives[number].generation + 1, at)

    def live(self, until: datetime) -> None:
        asks = [(NOW + timedelta(seconds=600 * n / self.asking), n, True) for n in range(self.asking)]
        queue = [(self.next_of(n), n, False) for n in range(len(self.lives))] + asks
        heapq.heapify(queue)
        while queue[0][0] < until:
            at, number, asked = heapq.heappop(queue)
            if asked:
                over = self.lives[number].expires_at
                if over is not None and over <= at:
                    seen = self.lives[number].generation
                    self.step(number, EventKind.REFRESH_REQUESTED, at, seen_generation=seen)
                heapq.heappush(queue, (at + timedelta(minutes=10), number, True))
            else:
                self.step(number, EventKind.TIMER_FIRED, at)
                heapq.heappush(queue, (max(self.next_of(number), at + timedelta(seconds=1)), number, False))

    def next_of(self, number: int) -> datetime:
        return timer_of(self.lives[number], self.share(number)).at


def test_a_fleet_in_an_outage_sends_less_than_one_call_a_connection_and_comes_back_without_a_stampede():
    begin, end = NOW + 10 * HOUR, NOW + 22 * HOUR
    fleet = Fleet(200, (begin, end), asking=50)
    fleet.live(end + 3 * HOUR)
    during = [at for at in fleet.sent if begin <= at < end]
    after = Counter(int((at - end).total_seconds()) for at in fleet.sent if at >= end)
    asked = sorted(at - end for number, at in fleet.served.items() if number < fleet.asking)
    assert len(during) < 100, "half a call a connection"
    assert max(after.values()) <= 10
    assert len(fleet.served) == 200, "the others by themselves"
    assert asked[-1] <= timedelta(minutes=25)


def test_the_middle_of_three_clocks_counts():
    hour, second, day = timedelta(hours=1), timedelta(seconds=1), timedelta(days=1)
    assert clock_correction(-hour, -hour - second) == -hour, "ours is an hour ahead, and two say so"
    assert clock_correction(hour, hour + second) == hour
    assert clock_correction(second, -day) == timedelta(0), "the provider's is a day off"
    assert clock_correction(-hour, second) == timedelta(0), "Temporal's is"
    assert clock_correction(-hour, None) == timedelta(0), "there is no telling"
    assert clock_correction(-second, -second) == timedelta(0), "nobody minds"
