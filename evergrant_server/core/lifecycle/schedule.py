"""When a connection is looked at next. Every function is pure; jitter comes from the id."""

import hashlib
from datetime import datetime, timedelta
from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from evergrant_server.core.clock import add_time
from evergrant_server.core.errors import FAILURES, ErrorCode, RetryAdvice


class RefreshPolicy(StrEnum):
    WARM = "warm"  # always refreshed ahead
    ON_DEMAND = "on_demand"  # only when somebody asks
    ADAPTIVE = "adaptive"  # ahead, if the current generation was leased


class LifecycleRules(BaseModel):
    """The numbers behind decisions. A run names its version, since a change here changes replay."""

    model_config = ConfigDict(frozen=True)

    margin: timedelta = timedelta(minutes=5)  # capped at a quarter of the token's lifetime
    spread: float = 0.2  # the share of the margin over which a fleet's refreshes are spread
    first_backoff: timedelta = timedelta(seconds=2)
    longest_backoff: timedelta = timedelta(minutes=30)
    repair_interval: timedelta = timedelta(minutes=15)  # for what an admin must repair
    longest_revocation_backoff: timedelta = timedelta(hours=1)
    consent_grace: timedelta = timedelta(minutes=1)  # a callback at the deadline still gets through
    longest_history: int = 2000  # events after which a run continues as new; Temporal's own limit is higher
    keep_alive_share: float = 0.5  # refresh an idle grant after this share of its idle life
    # Version 1 had none of what follows: its defaults are how it behaved.
    backoff_growth: float = 2.0
    repair_growth: float = 1.0
    longest_repair_interval: timedelta = timedelta(minutes=15)
    first_refused: timedelta | None = None  # an answer that refuses, by a name nobody knows
    refused_growth: float = 6.0
    longest_refused: timedelta = timedelta(hours=12)
    asked_backoff: timedelta | None = None  # callers may cause a try this often, while time repairs it
    longest_retry_after: timedelta = timedelta(days=1)  # a Retry-After above it is not believed
    shortest_interval: timedelta | None = None  # between two refreshes, capped at a quarter of the lifetime
    forced_interval: timedelta = timedelta(minutes=5)  # after a 401 report, doubled while that doesn't help
    longest_forced_interval: timedelta = timedelta(hours=6)
    forced_forgotten: timedelta = timedelta(days=1)
    announce_days: tuple[int, ...] = ()  # before a grant ends that no refresh extends
    tracks_refresh_expiry: bool = False
    repaired_spread: timedelta = timedelta(0)  # over which a fleet tries what an admin has repaired
    answers_again: bool = False  # a workflow that was told no hears again when there is a token
    late_apart: bool = False  # a late answer and a first token are each tried again at a moment of its own
    longest_ours: timedelta | None = None  # while something of ours is away, and the provider isn't asked
    once_for_all: bool = False  # who want a newer token than the same one share a refresh
    told_of_grants: bool = False  # one that a journal brought beside a grant that works is asked about
    own_clock: bool = False  # a worker's clock that is ahead is seen, and a token that is over is no riddle
    heeds_reports: bool = False  # nobody waits, for the sake of a token that was refused, for a lost answer
    keeps_all_alive: bool = False  # also who refreshes ahead, where the refresh token ends first
    first_come: bool = False  # who can't be told again hears so at once, instead of the one who waits longest


_RULES_2 = LifecycleRules(
    backoff_growth=4.0,
    longest_backoff=timedelta(hours=2),
    repair_growth=2.0,
    longest_repair_interval=timedelta(hours=6),
    first_refused=timedelta(minutes=1),
    asked_backoff=timedelta(minutes=1),
    longest_retry_after=timedelta(hours=1),
    shortest_interval=timedelta(minutes=2),
    announce_days=(14, 3, 1),
    tracks_refresh_expiry=True,
    repaired_spread=timedelta(minutes=1),
    answers_again=True,
)
_RULES_3 = _RULES_2.model_copy(update={"late_apart": True})

_RULES_4 = _RULES_3.model_copy(update={"longest_ours": timedelta(minutes=1)})

_RULES_5 = _RULES_4.model_copy(update={"own_clock": True})

_RULES_6 = _RULES_5.model_copy(update={"once_for_all": True})

_RULES_7 = _RULES_6.model_copy(update={"told_of_grants": True})

RULES: dict[int, LifecycleRules] = {
    1: LifecycleRules(),
    2: _RULES_2,
    3: _RULES_3,
    4: _RULES_4,
    5: _RULES_5,
    6: _RULES_6,
    7: _RULES_7,
    8: _RULES_7.model_copy(update={"heeds_reports": True, "keeps_all_alive": True, "first_come": True}),
}
NEWEST_RULES = max(RULES)

_LONGEST_IDLE_S = 1e12  # half of it is beyond every date; a span holds no more than 8e13

# Met before anything is sent, and over at once when our operator has repaired it.
_PLATFORM_CODES = frozenset(
    {ErrorCode.KEY_UNAVAILABLE, ErrorCode.JOURNAL_UNAVAILABLE, ErrorCode.STORE_UNAVAILABLE}
)


def with_announce_days(rules: LifecycleRules, days: tuple[int, ...] | None) -> LifecycleRules:
    """`rules` with the days that the operator set (None: nobody did), where they announce at all."""
    if days is None or not rules.announce_days:
        return rules
    return rules.model_copy(update={"announce_days": days})


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
    """When a refresh ahead of expiry starts: at the margin, up to `spread` of it earlier.

    A provider may have a margin of its own (`margin_s`: earlier is refused, so it is spread
    towards the expiry), and an age under which it refuses to refresh at all.
    """
    if margin_s is not None:
        margin = min(timedelta(seconds=margin_s), expires_at - obtained_at)
        due = expires_at - margin * (1 - rules.spread * share)
    else:
        margin = min(rules.margin, (expires_at - obtained_at) / 4)
        due = expires_at - margin - margin * rules.spread * share
    return due if min_age_s is None else max(due, add_time(obtained_at, min_age_s))


def keep_alive_at(obtained_at: datetime, idle_s: float, rules: LifecycleRules, share: float) -> datetime:
    """When an idle grant is refreshed only to keep its refresh token alive."""
    idle = timedelta(seconds=min(idle_s, _LONGEST_IDLE_S))
    return add_time(obtained_at, idle * rules.keep_alive_share * (1 - 0.1 * share))


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
    """When to try again after `failures` failures in a row: the table's class, then Retry-After.

    `refused`: the provider answered this grant with an error that nobody knows. It may be dead,
    and then each further try is one too many.
    """
    if FAILURES[code].retry is RetryAdvice.AFTER_REPAIR:
        wait = _backoff(rules.repair_interval, rules.repair_growth, failures, rules.longest_repair_interval)
        return now + wait
    if refused and rules.first_refused is not None:
        wait = _backoff(rules.first_refused, rules.refused_growth, failures, rules.longest_refused)
    else:
        ours = rules.longest_ours if code in _PLATFORM_CODES else None
        longest = ours or rules.longest_backoff
        wait = _backoff(rules.first_backoff, rules.backoff_growth, failures, longest)
    wait = wait * (0.75 + 0.5 * share)
    return now + max(wait, _believed_retry_after(retry_after, rules))


def caller_retry_at(
    now: datetime,
    retry: datetime,
    code: ErrorCode,
    retry_after: float | None,
    rules: LifecycleRules,
    *,
    refused: bool,
) -> datetime:
    """From when on a caller's wish causes another try: sooner than the workflow's own, in an outage.

    Not for what an admin must repair, nor for a refusal: callers would hammer a dead grant.
    """
    if rules.asked_backoff is None or refused or FAILURES[code].retry is RetryAdvice.AFTER_REPAIR:
        return retry
    return min(retry, now + max(rules.asked_backoff, _believed_retry_after(retry_after, rules)))


def next_forced_refresh_at(last: datetime, times: int, rules: LifecycleRules) -> datetime:
    """When a report of a refused token may force a refresh again, after `times` that didn't help."""
    return last + _backoff(rules.forced_interval, 2.0, times, rules.longest_forced_interval)


def _backoff(first: timedelta, growth: float, times: int, longest: timedelta) -> timedelta:
    return min(first * growth ** min(max(times - 1, 0), 12), longest)


def _believed_retry_after(retry_after: float | None, rules: LifecycleRules) -> timedelta:
    return min(timedelta(seconds=retry_after or 0), rules.longest_retry_after)
