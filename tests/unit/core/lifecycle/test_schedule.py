"""The arithmetic of schedules, to the number, with rules that are easy to reckon with."""

from datetime import UTC, datetime, timedelta

import pytest

from evergrant_server.core.clock import LATEST
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.errors.kinds import FailureCause
from evergrant_server.core.lifecycle.schedule import (
    NEWEST_RULES,
    RULES,
    LifecycleRules,
    caller_retry_at,
    cause_of,
    due_at,
    jitter,
    keep_alive_at,
    next_forced_refresh_at,
    retry_at,
    with_announce_days,
)

NOW = datetime(2030, 1, 1, tzinfo=UTC)
DOWN, REPAIR = ErrorCode.PROVIDER_UNREACHABLE, ErrorCode.CLIENT_REJECTED


def seconds(number: float) -> timedelta:
    return timedelta(seconds=number)


def at(number: float) -> datetime:
    return NOW + seconds(number)


PLAIN = LifecycleRules(
    margin=seconds(100), spread=0.5, first_backoff=seconds(4), longest_backoff=seconds(100),
    backoff_growth=2.0, repair_interval=seconds(10), repair_growth=3.0, longest_repair_interval=seconds(80),
    first_refused=seconds(8), refused_growth=5.0, longest_refused=seconds(400), caller_backoff=seconds(6),
    longest_retry_after=seconds(1000), forced_interval=seconds(10), longest_forced_interval=seconds(30),
)  # fmt: skip


@pytest.mark.parametrize(
    ("lifetime", "share", "due"),
    [(1000, 0, 900), (1000, 1, 850), (1000, 0.5, 875), (400, 0, 300), (200, 0, 150), (200, 1, 125)],
)
def test_due_at_the_margin_and_up_to_its_spread_earlier(lifetime: float, share: float, due: float):
    assert due_at(NOW, at(lifetime), PLAIN, share) == at(due)


@pytest.mark.parametrize(
    ("lifetime", "share", "due"),
    [(1000, 0, 900), (1000, 1, 700), (1000, 0.5, 800), (100, 1, 55), (2000, 1, 1600)],
)
def test_due_is_spread_over_a_share_of_the_lifetime_where_that_is_longer(
    lifetime: float, share: float, due: float
):
    rules = PLAIN.model_copy(update={"lifetime_spread": 0.2, "longest_spread": seconds(300)})
    assert due_at(NOW, at(lifetime), rules, share) == at(due)


@pytest.mark.parametrize(
    ("margin_s", "share", "due"), [(40, 0, 960), (40, 1, 980), (40, 0.5, 970), (2000, 0, 0), (2000, 1, 500)]
)
def test_a_margin_of_the_provider_s_own_is_spread_towards_the_expiry(
    margin_s: float, share: float, due: float
):
    assert due_at(NOW, at(1000), PLAIN, share, margin_s=margin_s) == at(due)


def test_no_token_is_due_before_the_provider_lets_it():
    assert due_at(NOW, at(1000), PLAIN, 0, min_age_s=950) == at(950)
    assert due_at(NOW, at(1000), PLAIN, 0, min_age_s=10) == at(900)


@pytest.mark.parametrize(("share", "kept"), [(0, 500), (1, 450), (0.5, 475)])
def test_kept_alive_at_half_of_its_idle_life_and_up_to_a_tenth_of_that_earlier(share: float, kept: float):
    assert keep_alive_at(NOW, 1000, PLAIN, share) == at(kept)


@pytest.mark.parametrize("share", [0, 1])
@pytest.mark.parametrize("number", [8e11, 1e12, 8e13, 9e13, 1e300])
def test_what_no_date_can_hold_is_the_last_one(number: float, share: float):
    assert keep_alive_at(NOW, number, PLAIN, share) == LATEST
    assert due_at(NOW, at(1000), PLAIN, share, min_age_s=number) == LATEST


@pytest.mark.parametrize(
    ("failures", "share", "waits"),
    [(0, 0.5, 4), (1, 0, 3), (1, 0.5, 4), (1, 1, 5), (2, 0.5, 8), (3, 0.5, 16), (6, 0.5, 100), (6, 1, 125)],
)
def test_backoff_grows_and_is_spread_by_a_quarter(failures: int, share: float, waits: float):
    assert retry_at(NOW, failures, DOWN, None, PLAIN, share) == at(waits)


def test_a_retry_after_counts_when_it_is_longer_and_up_to_a_limit():
    for told, waits in ((3, 4), (5, 5), (0, 4), (1000, 1000), (1001, 1000)):
        assert retry_at(NOW, 1, DOWN, told, PLAIN, 0.5) == at(waits)
    endless = PLAIN.model_copy(update={"longest_backoff": timedelta(days=365)})
    assert retry_at(NOW, 13, DOWN, None, endless, 0.5) == at(4 * 2**12)
    assert retry_at(NOW, 10_000, DOWN, None, endless, 0.5) == at(4 * 2**12)


def test_what_an_admin_must_repair_and_a_refusal_by_an_unknown_name_have_their_own_pace():
    waits = [retry_at(NOW, failures, REPAIR, 999, PLAIN, 0.9) for failures in (1, 2, 3)]
    assert waits == [at(10), at(30), at(80)]
    waits = [retry_at(NOW, n, ErrorCode.PROVIDER_ERROR, None, PLAIN, 0.5, refused=True) for n in (1, 2, 3, 4)]
    assert waits == [at(8), at(40), at(200), at(400)]


@pytest.mark.parametrize(
    ("code", "facts", "cause"),
    [
        (DOWN, {}, FailureCause.OUTAGE),
        (ErrorCode.PROVIDER_ERROR, {}, FailureCause.OUTAGE),
        (DOWN, {"answer_lost": True}, FailureCause.LOST_ANSWER),
        (ErrorCode.REFRESH_PENDING, {}, FailureCause.LOST_ANSWER),
        (ErrorCode.PROVIDER_ERROR, {"refused": True}, FailureCause.REFUSAL),
        (REPAIR, {"refused": True}, FailureCause.REPAIR),
        (ErrorCode.KEY_UNAVAILABLE, {}, FailureCause.PLATFORM),
    ],
)
def test_the_cause_of_a_failure(code: ErrorCode, facts: dict[str, bool], cause: FailureCause):
    assert cause_of(code, **{"refused": False, "answer_lost": False, **facts}) is cause


def asked(
    code: ErrorCode = DOWN, told: float | None = None, rules: LifecycleRules = PLAIN, refused: bool = False
):
    return caller_retry_at(NOW, at(500), code, told, rules, refused=refused)


def test_callers_may_cause_a_try_sooner_where_time_repairs_it():
    assert asked() == at(6)
    assert asked(told=50) == at(50)
    assert asked(told=5) == at(6)
    assert asked(told=900) == at(500), "never later than the workflow itself"
    assert asked(REPAIR) == at(500)
    assert asked(refused=True) == at(500)


@pytest.mark.parametrize(("times", "waits"), [(0, 10), (1, 10), (2, 20), (3, 30), (9, 30)])
def test_reports_force_less_and_less(times: int, waits: float):
    assert next_forced_refresh_at(NOW, times, PLAIN) == at(waits)


# --- contracts: a change needs a new version of the rules ----------------------------------


def test_jitter_stays_and_new_runs_begin_with_the_newest_rules():
    assert jitter("con_1", 1) == pytest.approx(0.6479279057489779, abs=1e-15)
    assert jitter("con_1", 2) == pytest.approx(0.9680514907550444, abs=1e-15)
    assert max(RULES) == NEWEST_RULES


VERSION_1 = {
    "margin": 300, "spread": 0.2, "lifetime_spread": 0.0, "longest_spread": 3600,
    "shortest_interval": 120, "keep_alive_share": 0.5, "consent_grace": 60,
    "longest_history": 2000, "announce_days": (14, 3, 1), "first_backoff": 2, "backoff_growth": 4,
    "longest_backoff": 7200, "longest_platform_backoff": 60, "longest_revocation_backoff": 3600,
    "longest_retry_after": 3600, "caller_backoff": 60, "repair_interval": 900, "repair_growth": 2,
    "longest_repair_interval": 21_600, "repaired_spread": 60, "first_refused": 60, "refused_growth": 6,
    "longest_refused": 43_200, "forced_interval": 300, "longest_forced_interval": 21_600,
    "forced_forgotten": 86_400, "first_refusals": 1, "last_try": 86_400, "counts_by_cause": False,
    "tries_repairs": False, "against_silence": False,
}  # fmt: skip


VERSION_2 = VERSION_1 | {"longest_history": 500}
VERSION_3 = VERSION_2 | {"lifetime_spread": 0.1}
VERSION_4 = VERSION_3 | {
    "tries_repairs": True, "counts_by_cause": True, "first_refused": 40,
    "first_refusals": 2, "longest_refused": 14_400, "against_silence": True,
}  # fmt: skip


@pytest.mark.parametrize(
    ("version", "numbers"), [(1, VERSION_1), (2, VERSION_2), (3, VERSION_3), (4, VERSION_4)]
)
def test_the_numbers_of_a_version_never_change(version: int, numbers: dict[str, object]):
    found = {
        name: value.total_seconds() if isinstance(value, timedelta) else value
        for name, value in RULES[version]
    }
    assert found == numbers


def test_the_days_that_an_operator_set_replace_those_of_the_rules():
    rules = RULES[NEWEST_RULES]
    assert rules.announce_days == (14, 3, 1)
    assert with_announce_days(rules, (7,)) == rules.model_copy(update={"announce_days": (7,)})
    assert with_announce_days(rules, ()).announce_days == ()
    assert with_announce_days(rules, None) is rules
