"""The rules of a connection's workflow: margins, waits and backoff. Pure; jitter comes from ids."""

import hashlib
from datetime import datetime, timedelta
from enum import StrEnum

from evergrant_server.core.clock import add_time
from evergrant_server.core.errors import FAILURES, ErrorCode, RetryAdvice
from evergrant_server.core.errors.kinds import FailureCause
from evergrant_server.core.model import FrozenModel


class RefreshPolicy(StrEnum):
    WARM = "warm"  # always refreshed ahead
    ON_DEMAND = "on_demand"  # only when a caller asks
    ADAPTIVE = "adaptive"  # ahead, if the current generation was leased


class LifecycleRules(FrozenModel):
    """The numbers behind decisions. A run's input names their version: a change of them changes replay."""

    margin: timedelta = timedelta(minutes=5)  # capped at a quarter of the token's lifetime
    spread: float = 0.2  # the share of the margin over which a fleet's refreshes are spread
    lifetime_spread: float = 0.0  # or that share of the lifetime, where it is longer, up to `longest_spread`
    longest_spread: timedelta = timedelta(hours=1)
    # between refreshes, capped at a quarter of a lifetime
    shortest_interval: timedelta = timedelta(minutes=2)
    keep_alive_share: float = 0.5  # of its idle life, after which an idle grant is refreshed
    consent_grace: timedelta = timedelta(minutes=1)  # a callback at the deadline still gets through
    longest_history: int = 2000  # events after which a run continues as new; Temporal's own limit is higher
    announce_days: tuple[int, ...] = (14, 3, 1)  # before a grant ends that no refresh extends
    # also a grant without an expiry is refreshed before it ends by silence, and that end is announced too
    against_silence: bool = False

    first_backoff: timedelta = timedelta(seconds=2)
    backoff_growth: float = 4.0
    longest_backoff: timedelta = timedelta(hours=2)
    longest_platform_backoff: timedelta = timedelta(minutes=1)  # nothing was sent to the provider
    longest_revocation_backoff: timedelta = timedelta(hours=1)
    longest_retry_after: timedelta = timedelta(hours=1)  # a longer Retry-After is not believed
    caller_backoff: timedelta = timedelta(minutes=1)  # callers may cause a try this often in an outage
    repair_interval: timedelta = timedelta(minutes=15)  # for what an admin must repair
    repair_growth: float = 2.0
    longest_repair_interval: timedelta = timedelta(hours=6)
    repaired_spread: timedelta = timedelta(minutes=1)  # over which a fleet tries what an admin has repaired
    first_refused: timedelta = timedelta(minutes=1)  # the provider's error has a name that isn't known
    refused_growth: float = 6.0
    first_refusals: int = 1  # in a row, before the wait for the next try grows
    last_try: timedelta = timedelta(days=1)  # of a grant that is probably over
    longest_refused: timedelta = timedelta(hours=12)
    forced_interval: timedelta = timedelta(minutes=5)  # after a 401 report, doubled while that doesn't help
    longest_forced_interval: timedelta = timedelta(hours=6)
    forced_forgotten: timedelta = timedelta(days=1)
    # an admin's command tries at once what a person has to repair; what was refused before it was sent is
    # tried soon
    tries_repairs: bool = False
    # the waits grow with the failures of one cause in a row; False: with all failures in a row
    counts_by_cause: bool = False


RULES: dict[int, LifecycleRules] = {
    1: LifecycleRules(),
    # A run that no worker has cached is replayed from its first event, 0.4 ms of CPU each (measured): see
    # ADR 0082.
    2: LifecycleRules(longest_history=500),
    # Tokens of one import or one outage expire together: a minute is too short for some thousand refreshes.
    3: LifecycleRules(longest_history=500, lifetime_spread=0.1),
    # A repair of the operator's was tried hours later, and no command helped: see ADR 0095.
    # A first refusal after an outage came hours later, and a subject waited for it: see ADR 0092.
    # Salesforce's replies have no expiry, and its refresh tokens end after 30 idle days: see ADR 0097.
    4: LifecycleRules(
        longest_history=500,
        lifetime_spread=0.1,
        tries_repairs=True,
        counts_by_cause=True,
        first_refused=timedelta(seconds=40),
        first_refusals=2,
        longest_refused=timedelta(hours=4),
        against_silence=True,
    ),
}
NEWEST_RULES = max(RULES)

_LONGEST_IDLE_S = 1e12  # half of it is beyond every date; a span holds no more than 8e13

# Met before anything is sent, and over as soon as the operator has repaired it.
_PLATFORM_CODES = frozenset(
    {ErrorCode.KEY_UNAVAILABLE, ErrorCode.KEY_DENIED, ErrorCode.KEY_GONE}
    | {ErrorCode.JOURNAL_UNAVAILABLE, ErrorCode.STORE_UNAVAILABLE}
)
# Refused before anything is sent, by what an operator has set: no workflow hears of its repair.
UNSENT_CODES = frozenset({ErrorCode.EGRESS_REFUSED, ErrorCode.HOST_NOT_ACCEPTED})


def with_announce_days(rules: LifecycleRules, days: tuple[int, ...] | None) -> LifecycleRules:
    """`rules` with the days that the operator set; None: the operator set none."""
    return rules if days is None else rules.__replace__(announce_days=days)


def jitter(identity: str, generation: int) -> float:
    """A share in [0, 1) that is always the same for this connection and generation."""
    digest = hashlib.sha256(f"{identity}:{generation}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64


def due_at(
    obtained_at: datetime,
    expires_at: datetime,
    rules: LifecycleRules,
    share: float,
    *,
    margin_s: float | None = None,
    min_age_s: float | None = None,
) -> datetime:
    """When a refresh ahead of expiry starts: at the margin, or by a share of the rules' spread earlier.

    A provider may have a margin of its own (`margin_s`: earlier is refused, so it is spread
    towards the expiry), and an age under which it refuses to refresh at all.
    """
    if margin_s is not None:
        margin = min(timedelta(seconds=margin_s), expires_at - obtained_at)
        due = expires_at - margin * (1 - rules.spread * share)
    else:
        lifetime = expires_at - obtained_at
        margin = min(rules.margin, lifetime / 4)
        spread = max(margin * rules.spread, min(lifetime * rules.lifetime_spread, rules.longest_spread))
        due = expires_at - margin - spread * share
    return due if min_age_s is None else max(due, add_time(obtained_at, min_age_s))


def keep_alive_at(obtained_at: datetime, idle_s: float, rules: LifecycleRules, share: float) -> datetime:
    """When an idle grant is refreshed only to keep its refresh token alive."""
    idle = timedelta(seconds=min(idle_s, _LONGEST_IDLE_S))
    return add_time(obtained_at, idle * rules.keep_alive_share * (1 - 0.1 * share))


def cause_of(code: ErrorCode, *, refused: bool, answer_lost: bool) -> FailureCause:
    """The cause of a failed refresh."""
    if FAILURES[code].retry is RetryAdvice.AFTER_REPAIR:
        return FailureCause.REPAIR
    if refused:
        return FailureCause.REFUSAL
    if answer_lost or code is ErrorCode.REFRESH_PENDING:
        return FailureCause.LOST_ANSWER
    return FailureCause.PLATFORM if code in _PLATFORM_CODES else FailureCause.OUTAGE


def retry_at(
    now: datetime,
    failures: int,
    code: ErrorCode,
    retry_after: float | None,
    rules: LifecycleRules,
    share: float,
    *,
    refused: bool = False,
) -> datetime:
    """When to try again after `failures` failures in a row, as the rules count them: the table's class, then
    Retry-After.

    `refused`: the provider answered this grant with an error whose name isn't known. The grant may
    be dead, so each further try comes much later than the one before.
    """
    if FAILURES[code].retry is RetryAdvice.AFTER_REPAIR:
        first, longest = rules.repair_interval, rules.longest_repair_interval
        if rules.tries_repairs and code in UNSENT_CODES:
            first, longest = rules.caller_backoff, rules.repair_interval
        return now + _backoff(first, rules.repair_growth, failures, longest)
    if refused:
        times = failures - rules.first_refusals + 1
        wait = _backoff(rules.first_refused, rules.refused_growth, times, rules.longest_refused)
    else:
        ours = code in _PLATFORM_CODES
        longest = rules.longest_platform_backoff if ours else rules.longest_backoff
        wait = _backoff(rules.first_backoff, rules.backoff_growth, failures, longest)
    wait = wait * (0.75 + 0.5 * share)
    return now + max(wait, _believed_retry_after(retry_after, rules))


def revocation_retry_at(
    now: datetime,
    failures: int,
    code: ErrorCode,
    retry_after: float | None,
    rules: LifecycleRules,
    share: float,
) -> datetime:
    """As `retry_at`, for a revocation: its pauses grow no longer than `longest_revocation_backoff`."""
    shorter = rules.__replace__(longest_backoff=rules.longest_revocation_backoff)
    return retry_at(now, failures, code, retry_after, shorter, share)


def caller_retry_at(
    now: datetime,
    retry: datetime,
    code: ErrorCode,
    retry_after: float | None,
    rules: LifecycleRules,
    *,
    refused: bool,
) -> datetime:
    """From when on a caller's request causes another try: sooner than the workflow's own, in an outage.

    Not for what an admin must repair, but for what was refused before it was sent. After a refusal a caller
    causes a look for evidence alone, by rules that have a schedule for each cause, and nothing by earlier
    ones: callers would hammer a dead grant.
    """
    waits = refused and not rules.counts_by_cause
    unsent = rules.tries_repairs and code in UNSENT_CODES
    if waits or (FAILURES[code].retry is RetryAdvice.AFTER_REPAIR and not unsent):
        return retry
    return min(retry, now + max(rules.caller_backoff, _believed_retry_after(retry_after, rules)))


def next_forced_refresh_at(last: datetime, times: int, rules: LifecycleRules) -> datetime:
    """When a report of a refused token may force a refresh again, after `times` that didn't help."""
    return last + _backoff(rules.forced_interval, 2.0, times, rules.longest_forced_interval)


def _backoff(first: timedelta, growth: float, times: int, longest: timedelta) -> timedelta:
    return min(first * growth ** min(max(times - 1, 0), 12), longest)


def _believed_retry_after(retry_after: float | None, rules: LifecycleRules) -> timedelta:
    return min(timedelta(seconds=retry_after or 0), rules.longest_retry_after)
