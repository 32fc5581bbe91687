"""The circuit breaker of one integration's token endpoint, and its budget for retries. Pure.

Closed, every request is sent. Failures in a row open it: then one probe at a time is sent, and the
gaps between probes grow with the outage. After a probe with an answer the others follow at a rate
that doubles, so that the end of an outage is no stampede.

A provider that fails every other request never opens it. There the retries do the harm, so they
have a budget: answers and time fill it, and a retry without budget is refused. A first try never
is. Only a closed breaker looks at the budget: while it is open or recovering, requests are few.

Moments are seconds of a monotonic clock: no clock jump opens or closes a breaker.
"""

from dataclasses import dataclass, field, replace

from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import ConnectionId
from evergrant_server.core.single_use.retry_budget import (
    BreakerRules,
    RetryBudget,
    after_answer,
    after_failure,
    normalised,
    spent_now,
)


@dataclass(frozen=True)
class CircuitBreaker:
    """The state of one endpoint's breaker. A new one is closed."""

    failures: int = 0  # in a row
    reason: ErrorCode | None = None  # what the last failure was
    opened: bool = False
    probes: int = 0  # probes that failed since it opened
    next_probe: float = 0.0
    probing_since: float | None = None
    recovering_since: float | None = None
    next_turn: float = 0.0
    limited: tuple[ConnectionId | None, ...] = ()  # connections that were rate limited since the last answer
    budget: RetryBudget = field(default_factory=RetryBudget)


@dataclass(frozen=True)
class Admission:
    """The request may be sent after `delay` seconds; None: refused, ask again after `retry_after`."""

    delay: float | None
    retry_after: float = 0.0
    probe: bool = False
    retry: bool = False  # it has spent budget
    last_failure: ErrorCode | None = None  # a retry without budget: what its last send met


_GO = Admission(0.0)


def admit(
    breaker: CircuitBreaker,
    now: float,
    rules: BreakerRules,
    share: float,
    connection: ConnectionId | None = None,
) -> tuple[CircuitBreaker, Admission]:
    """May a request of `connection` be sent? `share` in [0, 1) spreads the refused ones."""
    if breaker.opened:
        return _probe(breaker, now, rules, share)
    if breaker.recovering_since is None:
        return _rationed(breaker, now, rules, share, connection)
    since = now - breaker.recovering_since
    if since >= rules.recovery:
        return _rationed(CircuitBreaker(budget=breaker.budget), now, rules, share, connection)
    turn = max(breaker.next_turn, now)
    if turn - now > rules.patience:
        return breaker, Admission(None, turn - now + share * (rules.recovery - since) / 2)
    rate = rules.first_rate * 2 ** (since / rules.doubling)
    return replace(breaker, next_turn=turn + 1 / rate), Admission(turn - now)


def _probe(
    breaker: CircuitBreaker, now: float, rules: BreakerRules, share: float
) -> tuple[CircuitBreaker, Admission]:
    out = breaker.probing_since is not None and now - breaker.probing_since < rules.probe_timeout
    if out or now < breaker.next_probe:
        wait = max(breaker.next_probe - now, rules.first_gap)
        return breaker, Admission(None, wait * (1 + share / 4))
    return replace(breaker, probing_since=now), Admission(0.0, probe=True)


def _rationed(
    breaker: CircuitBreaker, now: float, rules: BreakerRules, share: float, connection: ConnectionId | None
) -> tuple[CircuitBreaker, Admission]:
    """Admission while closed: a retry needs budget, a first try doesn't."""
    missed = breaker.budget.missed.get(connection) if connection is not None else None
    if missed is None or now - missed.at >= rules.retry_window:
        return breaker, _GO
    spent = spent_now(breaker.budget, now, rules) + 1
    if spent > rules.retries:
        wait = (spent - rules.retries) / rules.retry_rate
        # all of them may wait for the same retry; the next time their own schedules spread them
        spread = min(len(breaker.budget.missed) / rules.retry_rate, rules.recovery)
        return breaker, Admission(None, wait + share * spread, last_failure=missed.code)
    return replace(breaker, budget=replace(breaker.budget, spent=spent, spent_at=now)), Admission(
        0.0, retry=True
    )


def answered(
    breaker: CircuitBreaker, now: float, rules: BreakerRules, connection: ConnectionId | None = None
) -> CircuitBreaker:
    """The provider answered a request, even with a refusal: it is available."""
    budget = after_answer(breaker.budget, now, rules, connection)
    if breaker.opened:
        return CircuitBreaker(recovering_since=now, next_turn=now + 1 / rules.first_rate, budget=budget)
    if breaker.recovering_since is not None and now - breaker.recovering_since < rules.recovery:
        return replace(breaker, failures=0, limited=(), budget=budget)
    return CircuitBreaker(budget=budget)


def failed(
    breaker: CircuitBreaker,
    now: float,
    rules: BreakerRules,
    code: ErrorCode,
    retry_after: float | None,
    *,
    probe: bool,
    connection: ConnectionId | None = None,
) -> CircuitBreaker:
    """No answer came, or one that says that requests aren't served.

    A rate limit may be a connection's own, and its schedule keeps to it: only several in a row
    count as a limit of the integration. A request after a rate limit is no retry.
    """
    if not rules.threshold:
        return breaker
    one = code is ErrorCode.PROVIDER_RATE_LIMITED
    if connection is not None and not one:
        breaker = replace(breaker, budget=after_failure(breaker.budget, now, rules, code, connection))
    if breaker.opened and not probe:  # sent before the breaker opened
        return breaker
    breaker = replace(breaker, limited=_limited(breaker, rules, connection)) if one else breaker
    shared = not one or len(breaker.limited) >= rules.limited
    believed = rules.longest_limit if one else rules.longest_gap
    requested_wait = min(retry_after or 0.0, believed) if shared else 0.0
    if breaker.opened:
        gap = min(rules.first_gap * rules.gap_growth ** min(breaker.probes + 1, 50), rules.longest_gap)
        probes = breaker.probes + 1
        return replace(
            breaker, reason=code, probes=probes, next_probe=now + max(gap, requested_wait), probing_since=None
        )
    if not shared:
        return breaker
    failures = breaker.failures if one else breaker.failures + 1
    if failures >= rules.threshold or one or breaker.recovering_since is not None:
        next_probe = now + (requested_wait or rules.first_gap)
        opened = CircuitBreaker(failures, code, opened=True, next_probe=next_probe, limited=breaker.limited)
        return replace(opened, budget=breaker.budget)
    return replace(breaker, failures=failures, reason=code)


def _limited(
    breaker: CircuitBreaker, rules: BreakerRules, connection: ConnectionId | None
) -> tuple[ConnectionId | None, ...]:
    """Each counts once, up to the number that opens the breaker."""
    return tuple(dict.fromkeys((*breaker.limited, connection)))[: rules.limited]


def released(breaker: CircuitBreaker, *, probe: bool, retry: bool = False) -> CircuitBreaker:
    """An admitted request ended without an outcome: the next one may probe, and the budget gets the
    retry back."""
    if retry:
        budget = breaker.budget
        breaker = replace(
            breaker, budget=normalised(budget.missed, budget.spent - 1, budget.spent_at, budget.served)
        )
    return replace(breaker, probing_since=None) if probe and breaker.opened else breaker
