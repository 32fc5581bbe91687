"""The numbers of circuit breakers and retry budgets."""

from dataclasses import dataclass


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
