"""When a provider that fails is left alone: the circuit of one integration's token endpoint. Pure.

Closed, everybody may send. After failures in a row it opens: nobody may, but for one probe at
a time, and the gaps between probes grow with the outage. A probe that is answered lets the
others follow at a rate that doubles, so that the end of an outage is no stampede.

A provider that fails every other request never opens it. There the retries are what makes things
worse, so the integration has a budget for them: answers and time fill it, and a retry without
budget is sent away. A first try never is. Only a closed circuit looks at the budget: while it is
open, or on its way back, probes and turns are few enough.

Moments are seconds of a clock that only goes forward: no clock jump opens or closes anything.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import ConnectionId


@dataclass(frozen=True)
class BreakerRules:
    """The numbers. Seconds; a `threshold` of 0 turns the circuit off."""

    threshold: int = 5  # failures in a row, over all connections of the integration
    limited: int = 3  # connections that are rate limited in a row; fewer may each have a limit of their own
    first_gap: float = 5.0
    gap_growth: float = 1.5  # so a gap is about a third of the outage so far
    longest_gap: float = 600.0  # and how much of a Retry-After with a 5xx is believed
    longest_limit: float = 3600.0  # how much is with a 429; as much as a connection's own schedule believes
    probe_limit: float = 120.0  # a probe that isn't heard of after this is taken for lost
    first_rate: float = 2.0  # sends a second, once a probe was answered
    doubling: float = 10.0
    recovery: float = 60.0  # after this many seconds without a failure it is closed
    patience: float = 2.0  # waits this long for a turn; who would wait longer is sent away
    retries: float = 30.0  # a whole budget, and so the most retries at once
    retry_share: float = 0.2  # of a retry: what each answer earns
    retry_rate: float = 10 / 60  # retries a second that time earns, so that a few connections never starve
    well: int = 20  # answers in a row after which the budget is whole: nobody waits for what is over
    remembered: float = 3600.0  # a try that comes so long after the failed one is a first one again
    most_remembered: int = 10_000  # connections; the one that failed first is forgotten for the next


@dataclass(frozen=True)
class LastFailure:
    """A connection's last send, which failed: its next one is a retry."""

    at: float
    code: ErrorCode


@dataclass(frozen=True)
class RetryBudget:
    """What retries have cost, and whose next send is one. A new one is whole, and remembers nobody."""

    missed: Mapping[ConnectionId, LastFailure] = field(
        default_factory=dict[ConnectionId, LastFailure]
    )  # oldest first
    spent: float = 0.0  # as of `spent_at`; time and answers bring it back to 0
    spent_at: float = 0.0
    served: int = 0  # answers in a row, while there is something to remember


@dataclass(frozen=True)
class CircuitBreaker:
    """What is known of one endpoint. A new one is closed."""

    failures: int = 0  # in a row
    reason: ErrorCode | None = None  # what the last failure was
    opened: bool = False
    probes: int = 0  # probes that failed since it opened
    next_probe: float = 0.0
    probing_since: float | None = None
    recovering_since: float | None = None
    next_turn: float = 0.0
    limited: tuple[ConnectionId | None, ...] = ()  # who was rate limited since the last answer
    budget: RetryBudget = RetryBudget()


@dataclass(frozen=True)
class Admission:
    """`go_in` seconds from now the request may be sent; None: not at all, ask after `retry_after`."""

    delay: float | None
    retry_after: float = 0.0
    probe: bool = False
    retry: bool = False  # it has spent budget
    last_failure: ErrorCode | None = None  # a retry without budget: what its last send met


_GO = Admission(0.0)


def admit(
    it: CircuitBreaker, now: float, rules: BreakerRules, share: float, connection: ConnectionId | None = None
) -> tuple[CircuitBreaker, Admission]:
    """May one more be sent, by `connection`? `share` in [0, 1) spreads those who are sent away."""
    if it.opened:
        return _probe(it, now, rules, share)
    if it.recovering_since is None:
        return _rationed(it, now, rules, share, connection)
    since = now - it.recovering_since
    if since >= rules.recovery:
        return _rationed(CircuitBreaker(budget=it.budget), now, rules, share, connection)
    turn = max(it.next_turn, now)
    if turn - now > rules.patience:
        return it, Admission(None, turn - now + share * (rules.recovery - since) / 2)
    rate = rules.first_rate * 2 ** (since / rules.doubling)
    return replace(it, next_turn=turn + 1 / rate), Admission(turn - now)


def _probe(
    it: CircuitBreaker, now: float, rules: BreakerRules, share: float
) -> tuple[CircuitBreaker, Admission]:
    out = it.probing_since is not None and now - it.probing_since < rules.probe_limit
    if out or now < it.next_probe:
        wait = max(it.next_probe - now, rules.first_gap)
        return it, Admission(None, wait * (1 + share / 4))
    return replace(it, probing_since=now), Admission(0.0, probe=True)


def _rationed(
    it: CircuitBreaker, now: float, rules: BreakerRules, share: float, connection: ConnectionId | None
) -> tuple[CircuitBreaker, Admission]:
    """It is closed: everybody may send, a retry if there is budget for it."""
    missed = it.budget.missed.get(connection) if connection is not None else None
    if missed is None or now - missed.at >= rules.remembered:
        return it, _GO
    spent = _spent(it.budget, now, rules) + 1
    if spent > rules.retries:
        wait = (spent - rules.retries) / rules.retry_rate
        # all who are remembered may wait for the same one; a second time their own schedules spread them
        spread = min(len(it.budget.missed) / rules.retry_rate, rules.recovery)
        return it, Admission(None, wait + share * spread, last_failure=missed.code)
    return replace(it, budget=replace(it.budget, spent=spent, spent_at=now)), Admission(0.0, retry=True)


def answered(
    it: CircuitBreaker, now: float, rules: BreakerRules, connection: ConnectionId | None = None
) -> CircuitBreaker:
    """The provider served a request, be it with a refusal: it is there."""
    budget = _earned(it.budget, now, rules, connection)
    if it.opened:
        return CircuitBreaker(recovering_since=now, next_turn=now + 1 / rules.first_rate, budget=budget)
    if it.recovering_since is not None and now - it.recovering_since < rules.recovery:
        return replace(it, failures=0, limited=(), budget=budget)
    return CircuitBreaker(budget=budget)


def failed(
    it: CircuitBreaker,
    now: float,
    rules: BreakerRules,
    code: ErrorCode,
    retry_after: float | None,
    *,
    probe: bool,
    connection: ConnectionId | None = None,
) -> CircuitBreaker:
    """No answer came, or one that says that nobody is served.

    A rate limit may be one connection's own, and its schedule keeps to it: only when several
    are limited in a row is it the provider's word to everybody. Who is limited comes back when it
    was told to, and that is no retry.
    """
    if not rules.threshold:
        return it
    one = code is ErrorCode.PROVIDER_RATE_LIMITED
    if connection is not None and not one:
        it = replace(it, budget=_failed(it.budget, now, rules, code, connection))
    if it.opened and not probe:  # sent before it opened: it tells nothing new
        return it
    it = replace(it, limited=_limited(it, rules, connection)) if one else it
    everybody = not one or len(it.limited) >= rules.limited
    believed = rules.longest_limit if one else rules.longest_gap
    told = min(retry_after or 0.0, believed) if everybody else 0.0
    if it.opened:
        gap = min(rules.first_gap * rules.gap_growth ** min(it.probes + 1, 50), rules.longest_gap)
        probes = it.probes + 1
        return replace(it, reason=code, probes=probes, next_probe=now + max(gap, told), probing_since=None)
    if not everybody:
        return it
    failures = it.failures if one else it.failures + 1
    if failures >= rules.threshold or one or it.recovering_since is not None:
        next_probe = now + (told or rules.first_gap)
        opened = CircuitBreaker(failures, code, opened=True, next_probe=next_probe, limited=it.limited)
        return replace(opened, budget=it.budget)
    return replace(it, failures=failures, reason=code)


def _limited(
    it: CircuitBreaker, rules: BreakerRules, connection: ConnectionId | None
) -> tuple[ConnectionId | None, ...]:
    """Each counts once, and no more are remembered than matter."""
    return tuple(dict.fromkeys((*it.limited, connection)))[: rules.limited]


def released(it: CircuitBreaker, *, probe: bool, retry: bool = False) -> CircuitBreaker:
    """What was let through ended without a word from the provider: the next one may probe, and what a
    retry has spent is given back."""
    if retry:
        budget = it.budget
        it = replace(it, budget=_budget(budget.missed, budget.spent - 1, budget.spent_at, budget.served))
    return replace(it, probing_since=None) if probe and it.opened else it


def _budget(missed: Mapping[ConnectionId, LastFailure], spent: float, at: float, served: int) -> RetryBudget:
    """One that is whole and remembers nobody is as good as new."""
    if spent > 0:
        return RetryBudget(missed, spent, at, served)
    return RetryBudget(missed, served=served) if missed else RetryBudget()


def _spent(budget: RetryBudget, now: float, rules: BreakerRules) -> float:
    return max(budget.spent - (now - budget.spent_at) * rules.retry_rate, 0.0)


def _earned(
    budget: RetryBudget, now: float, rules: BreakerRules, connection: ConnectionId | None
) -> RetryBudget:
    """After an answer to `connection`."""
    if not budget.missed and not budget.spent:
        return budget
    served = budget.served + 1
    spent = 0.0 if served >= rules.well else _spent(budget, now, rules) - rules.retry_share
    return _budget(_others(budget, now, rules, connection), spent, now, served)


def _failed(
    budget: RetryBudget, now: float, rules: BreakerRules, code: ErrorCode, connection: ConnectionId
) -> RetryBudget:
    missed = _others(budget, now, rules, connection)
    missed[connection] = LastFailure(now, code)
    if len(missed) > rules.most_remembered:
        del missed[next(iter(missed))]
    return RetryBudget(missed, budget.spent, budget.spent_at)


def _others(
    budget: RetryBudget, now: float, rules: BreakerRules, connection: ConnectionId | None
) -> dict[ConnectionId, LastFailure]:
    """Whose next send is a retry, but for `connection`, and for those whose failure is long ago."""
    missed = dict(budget.missed)
    if connection is not None:
        missed.pop(connection, None)
    while missed and now - missed[oldest := next(iter(missed))].at >= rules.remembered:
        del missed[oldest]
    return missed
