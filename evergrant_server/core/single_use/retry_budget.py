"""The numbers of circuit breakers, and the budget for retries at one integration's token endpoint. Pure.

Answers and time fill the budget; a retry spends from it, a first try never does.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import ConnectionId


@dataclass(frozen=True)
class BreakerRules:
    """Numbers; times are seconds. A `threshold` of 0 turns the breaker off."""

    threshold: int = 5  # failures in a row, over all connections of the integration
    limited: int = 3  # connections that are rate limited in a row; fewer may have limits of their own
    first_gap: float = 5.0
    gap_growth: float = 1.5  # a gap is then about a third of the outage so far
    longest_gap: float = 600.0  # also the longest Retry-After that is believed with a 5xx
    longest_limit: float = 3600.0  # the longest that is believed with a 429, as in a connection's schedule
    first_rate: float = 2.0  # requests a second after the first probe with an answer
    recovery: float = 60.0  # without a failure, after which it is closed
    patience: float = 2.0  # the longest wait for a turn; a longer one is refused
    retries: float = 30.0  # a full budget, and so the most retries at once
    retry_share: float = 0.2  # of a retry, which each answer adds to the budget
    retry_rate: float = 10 / 60  # retries a second that time adds, so that few connections never starve
    well: int = 20  # answers in a row after which the budget is full

    @property
    def probe_timeout(self) -> float:
        """A probe without an outcome counts as lost after this."""
        return 2 * self.recovery

    @property
    def doubling(self) -> float:
        """The rate of a recovering provider doubles in this time."""
        return self.recovery / 6

    @property
    def retry_window(self) -> float:
        """A request later than this after a failure is a first try again: any Retry-After has passed."""
        return self.longest_limit


MAX_REMEMBERED = 10_000  # connections that failed; the oldest is dropped for the next


@dataclass(frozen=True)
class LastFailure:
    """The last request of a connection failed, so its next one is a retry."""

    at: float
    code: ErrorCode


@dataclass(frozen=True)
class RetryBudget:
    """What retries have cost, and which connections' next request is one. A new one is full."""

    # oldest first
    missed: Mapping[ConnectionId, LastFailure] = field(default_factory=dict[ConnectionId, LastFailure])
    spent: float = 0.0  # as of `spent_at`; time and answers bring it back to 0
    spent_at: float = 0.0
    served: int = 0  # answers in a row, while there is something to remember


def normalised(
    missed: Mapping[ConnectionId, LastFailure], spent: float, at: float, served: int
) -> RetryBudget:
    """A full budget without failures is as good as new."""
    if spent > 0:
        return RetryBudget(missed, spent, at, served)
    return RetryBudget(missed, served=served) if missed else RetryBudget()


def spent_now(budget: RetryBudget, now: float, rules: BreakerRules) -> float:
    return max(budget.spent - (now - budget.spent_at) * rules.retry_rate, 0.0)


def after_answer(
    budget: RetryBudget, now: float, rules: BreakerRules, connection: ConnectionId | None
) -> RetryBudget:
    """After an answer to `connection`."""
    if not budget.missed and not budget.spent:
        return budget
    served = budget.served + 1
    spent = 0.0 if served >= rules.well else spent_now(budget, now, rules) - rules.retry_share
    return normalised(_others(budget, now, rules, connection), spent, now, served)


def after_failure(
    budget: RetryBudget, now: float, rules: BreakerRules, code: ErrorCode, connection: ConnectionId
) -> RetryBudget:
    missed = _others(budget, now, rules, connection)
    missed[connection] = LastFailure(now, code)
    if len(missed) > MAX_REMEMBERED:
        del missed[next(iter(missed))]
    return RetryBudget(missed, budget.spent, budget.spent_at)


def _others(
    budget: RetryBudget, now: float, rules: BreakerRules, connection: ConnectionId | None
) -> dict[ConnectionId, LastFailure]:
    """The remembered failures without this connection's and without old ones."""
    missed = dict(budget.missed)
    if connection is not None:
        missed.pop(connection, None)
    while missed and now - missed[oldest := next(iter(missed))].at >= rules.retry_window:
        del missed[oldest]
    return missed
