"""The newest rules, simulated: how many calls a day of trouble costs, and when grants are looked at."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from evergrant_server.core.connection import State
from evergrant_server.core.errors import Code
from evergrant_server.core.lifecycle import Do, next_step, wake
from evergrant_server.core.messages import Asked, Event, GrantNews, Happening, Life, Wish
from evergrant_server.core.schedule import NEWEST_RULES, RULES, announcing, jitter, retry_at
from evergrant_server.core.waking import end_of, is_over

NEW = RULES[NEWEST_RULES]
NOW = datetime(2030, 1, 1, tzinfo=UTC)
ASKED = Asked(by="app:test")
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
ACTIVE = Life(state=State.ACTIVE, generation=3, obtained_at=NOW, expires_at=NOW + HOUR, refreshable=True)

Answer = Callable[[datetime], GrantNews]


def step(life: Life, event: Event, at: datetime = NOW, share: float = 0.0, **brings: object):
    return next_step(life, Happening(event=event, asked=ASKED, **brings), at, NEW, share)


def simulated(
    life: Life, answer: Answer, until: datetime, *, asks_every: timedelta | None = None, share: float = 0.5
) -> tuple[Life, list[datetime], list[int]]:
    """Live until `until`: the moments of every try, and the days that were announced."""
    now, tries, said = NOW, [], []
    asked = NOW
    while True:
        woken = wake(life, NEW, share)
        by_itself = max(woken.at, now) if woken else until
        now = min(by_itself, asked) if asks_every else by_itself
        if now >= until:
            return life, tries, said
        if asks_every and now == asked:
            asked += asks_every
            done = step(life, Event.FRESHNESS_ASKED, now, share, seen_generation=life.generation)
        else:
            done = step(life, Event.TIME_CAME, now, share)
        life = done.life
        if done.do is Do.ANNOUNCE:
            said.append(done.days)
        elif done.do is not Do.NOTHING:
            tries.append(now)
            life = step(life, Event.GRANT_REFRESHED, now, share, news=answer(now)).life


def failing(code: Code, **more: object) -> Answer:
    return lambda now: GrantNews(failure=code, **more)


def hourly(**more: object) -> Answer:
    count = iter(range(4, 1_000_000))

    def answer(now: datetime) -> GrantNews:
        facts = {"obtained_at": now, "expires_at": now + HOUR, "refreshable": True} | more
        return GrantNews(state=State.ACTIVE, generation=next(count), **facts)

    return answer


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_an_outage_of_twelve_hours_costs_a_handful_of_calls(share: float):
    warm = ACTIVE.model_copy(update={"policy": "warm"})
    _, tries, _ = simulated(warm, failing(Code.PROVIDER_UNREACHABLE), NOW + 12 * HOUR, share=share)
    print("calls in an outage of twelve hours:", len(tries))
    assert 8 <= len(tries) <= 16


def test_a_dead_connection_whose_error_nobody_knows_costs_single_digits_a_day():
    """60,000 failing refreshes a day from one connection is somebody else's scar."""
    dead = failing(Code.PROVIDER_ERROR, refused=True)
    for share in (0.0, 0.5, 0.99):
        _, tries, _ = simulated(ACTIVE, dead, NOW + DAY, asks_every=timedelta(seconds=1.44), share=share)
        assert 1 < len(tries) < 10, "60,000 asked"


def test_a_client_that_is_refused_costs_single_digits_a_day():
    ask = timedelta(seconds=10)
    _, tries, _ = simulated(ACTIVE, failing(Code.CLIENT_REJECTED), NOW + DAY, asks_every=ask)
    assert len(tries) < 10


def test_a_grant_that_is_refused_costs_one_call():
    rejected = failing(Code.GRANT_REJECTED)
    life, tries, _ = simulated(ACTIVE, rejected, NOW + DAY, asks_every=timedelta(seconds=10))
    assert len(tries) == 1
    assert life.state is State.NEEDS_REAUTH


def test_who_needs_a_token_during_an_outage_causes_a_try_a_minute_at_most_and_no_later():
    life = ACTIVE.model_copy(update={"failures": 9})
    failed = step(life, Event.GRANT_REFRESHED, news=GrantNews(failure=Code.PROVIDER_UNREACHABLE)).life
    assert failed.retry_at is not None
    assert failed.retry_at > NOW + HOUR
    soon = NOW + timedelta(seconds=59)
    asked = step(failed, Event.FRESHNESS_ASKED, soon, seen_generation=3)
    assert (asked.do, asked.life.refusal) == (Do.NOTHING, Code.PROVIDER_UNREACHABLE)
    assert step(failed, Event.FRESHNESS_ASKED, NOW + timedelta(minutes=1), seen_generation=3).do is Do.REFRESH


def test_a_wait_that_the_provider_asks_for_holds_callers_too_but_not_for_a_day():
    news = GrantNews(failure=Code.PROVIDER_RATE_LIMITED, retry_after=86_400)
    told = step(ACTIVE, Event.GRANT_REFRESHED, news=news).life
    assert told.ask_at == told.retry_at == NOW + HOUR


def test_a_fleet_is_spread():
    """A thousand tokens that came in the same second."""
    minutes: dict[int, int] = {}
    warm = ACTIVE.model_copy(update={"policy": "warm"})
    for number in range(1000):
        woken = wake(warm, NEW, jitter(f"con_{number}", 3))
        assert woken is not None
        second = int((woken.at - NOW).total_seconds())
        minutes[second] = minutes.get(second, 0) + 1
    assert max(minutes) < 3600 - 299
    assert max(minutes.values()) < 50, "sixty seconds' worth, evenly"


def test_a_repaired_client_is_tried_by_all_but_not_at_once():
    failed = step(ACTIVE, Event.GRANT_REFRESHED, news=GrantNews(failure=Code.CLIENT_REJECTED)).life
    moments = {step(failed, Event.PROVIDER_CHANGED, share=n / 10).life.retry_at for n in range(10)}
    assert len(moments) == 10
    assert max(moments) <= NOW + timedelta(minutes=1)
    asked = step(failed, Event.PROVIDER_CHANGED, share=0.9).life
    assert step(asked, Event.FRESHNESS_ASKED, seen_generation=3).do is Do.REFRESH, "who asks needn't wait"


# --- the refresh token's own end ----------------------------------------------------------


def test_a_refresh_token_that_ages_is_kept_alive_until_it_is_seen_whether_that_helps():
    idle = ACTIVE.model_copy(update={"policy": "on_demand", "refresh_expires_at": NOW + 30 * DAY})
    woken = wake(idle, NEW)
    assert woken is not None
    assert (woken.at, woken.why) == (NOW + 15 * DAY, "keep the refresh token alive")
    extended = GrantNews(
        state=State.ACTIVE, generation=4, refreshable=True, obtained_at=woken.at,
        expires_at=woken.at + HOUR, refresh_expires_at=woken.at + 30 * DAY,
    )  # fmt: skip
    alive = step(idle, Event.GRANT_REFRESHED, woken.at, news=extended).life
    assert alive.refresh_extends is True
    assert end_of(alive) is None
    again = wake(alive, NEW)
    assert again is not None
    assert again.at == woken.at + 15 * DAY


@pytest.mark.parametrize("policy", ["warm", "adaptive", "on_demand"])
def test_an_end_that_no_refresh_moves_is_announced_once_each_and_only_kept_alive_once(policy: str):
    life = ACTIVE.model_copy(
        update={"policy": policy, "refresh_expires_at": NOW + 90 * DAY, "end_known_at": NOW, "leased": False}
    )
    _, tries, said = simulated(life, hourly(refresh_expires_at=NOW + 90 * DAY), NOW + 89.9 * DAY)
    assert said == [14, 3, 1]
    if policy == "on_demand":
        assert len(tries) == 1


def test_an_hour_more_or_less_is_the_same_end_and_a_new_one_is_announced_anew():
    end = NOW + 20 * DAY
    hard = ACTIVE.model_copy(
        update={"refresh_expires_at": end, "refresh_extends": False, "announced": (14,), "end_known_at": NOW}
    )
    for drift, announced in ((timedelta(minutes=5), (14,)), (30 * DAY, ())):
        at = NOW + HOUR
        news = hourly(refresh_expires_at=end + drift)(at)
        move = Event.GRANT_REFRESHED if announced else Event.CODE_EXCHANGED
        assert step(hard, move, at, news=news).life.announced == announced


def test_a_grant_without_a_refresh_token_is_announced_too():
    """Sixty days and no way to go on: LinkedIn's members know it."""
    life = ACTIVE.model_copy(update={"refreshable": False, "expires_at": NOW + 60 * DAY, "end_known_at": NOW})
    _, _, said = simulated(life, failing(Code.CONSENT_REQUIRED), NOW + 60 * DAY)
    assert said == [14, 3, 1]


@pytest.mark.parametrize(("days", "said"), [(0.5, []), (2, [1]), (5, [3, 1]), (14, [3, 1])])
def test_no_announcement_is_for_more_days_than_the_grant_ever_had(days: float, said: list[int]):
    end = NOW + timedelta(days=days)
    life = ACTIVE.model_copy(update={"refreshable": False, "expires_at": end, "end_known_at": NOW})
    assert simulated(life, failing(Code.CONSENT_REQUIRED), end)[2] == said


def test_announcements_that_were_slept_through_are_not_made_up_for():
    life = ACTIVE.model_copy(update={"refreshable": False, "expires_at": NOW + 60 * DAY, "end_known_at": NOW})
    late = step(life, Event.TIME_CAME, NOW + 58 * DAY)
    assert (late.do, late.days, late.life.announced) == (Do.ANNOUNCE, 3, (14, 3))


def test_an_end_comes_near_when_what_would_extend_it_fails():
    life = ACTIVE.model_copy(
        update={"refresh_expires_at": NOW + 30 * DAY, "refresh_extends": True, "end_known_at": NOW}
    )
    assert end_of(life) is None
    down = failing(Code.PROVIDER_UNREACHABLE)
    assert simulated(life, down, NOW + 30 * DAY)[2] == [14, 3, 1]


# --- what providers refuse ----------------------------------------------------------------


def test_a_provider_that_refuses_an_early_refresh_is_not_asked_early():
    """Exact Online: not before the last 30 seconds of 600."""
    ten = NOW + timedelta(minutes=10)
    life = ACTIVE.model_copy(update={"expires_at": ten, "margin_s": 30.0, "policy": "warm"})
    moments = [wake(life, NEW, share / 10) for share in range(10)]
    assert all(it and ten - timedelta(seconds=30) <= it.at < ten for it in moments)
    early = step(life, Event.FRESHNESS_ASKED, NOW + timedelta(minutes=8), seen_generation=3)
    assert (early.do, early.life.declined_s) == (Do.NOTHING, 90.0)
    assert step(life, Event.FRESHNESS_ASKED, ten - timedelta(seconds=30), seen_generation=3).do is Do.REFRESH


def test_a_token_that_is_too_young_is_not_refreshed():
    """Meta: at least 24 hours old."""
    life = ACTIVE.model_copy(update={"expires_at": NOW + 60 * DAY, "min_age_s": 86_400.0})
    young = step(life, Event.ROTATE_ASKED, NOW + HOUR)
    assert (young.do, young.life.declined_s) == (Do.NOTHING, 23 * 3600.0)
    assert step(life, Event.ROTATE_ASKED, NOW + DAY).do is Do.REFRESH


# --- reports of a refused token -----------------------------------------------------------


def test_a_report_refreshes_once_and_a_provider_that_always_says_401_causes_no_storm():
    """Beyond one for each token that is over, which a report only hastens."""
    life, forced, over, now = ACTIVE, [], [], NOW
    answer = hourly()
    while now < NOW + DAY:
        done = step(life, Event.FRESHNESS_ASKED, now, seen_generation=life.generation, wish=Wish.UNAUTHORIZED)
        life = done.life
        if done.do is Do.REFRESH:
            (over if is_over(life, now) else forced).append(now)
            life = step(life, Event.GRANT_REFRESHED, now, news=answer(now)).life
        else:
            assert life.declined_s
        now += timedelta(seconds=10)
    assert len(forced) <= 10, "8,640 reports, each of the newest generation"
    assert len(over) <= 24
    assert forced[1] - forced[0] == NEW.forced_interval


def test_a_report_of_an_older_generation_is_answered_and_one_after_a_day_forces_again():
    life = ACTIVE.model_copy(update={"forced": 5, "forced_at": NOW, "expires_at": NOW + 2 * DAY})
    old = step(life, Event.FRESHNESS_ASKED, seen_generation=2, wish=Wish.UNAUTHORIZED)
    assert (old.do, old.life.declined_s) == (Do.NOTHING, None)
    later = step(life, Event.FRESHNESS_ASKED, NOW + DAY, seen_generation=3, wish=Wish.UNAUTHORIZED)
    assert (later.do, later.life.forced) == (Do.REFRESH, 1)


# --- clocks -------------------------------------------------------------------------------


def test_a_report_of_a_token_that_is_over_is_no_riddle():
    """Forced a moment ago, and over now by our clock: whoever says that it is good has a wrong one."""
    life = ACTIVE.model_copy(update={"forced": 3, "forced_at": NOW + HOUR, "installed_at": NOW})
    report = {"seen_generation": 3, "wish": Wish.UNAUTHORIZED}
    over = step(life, Event.FRESHNESS_ASKED, NOW + HOUR, **report)
    assert (over.do, over.life.forced) == (Do.REFRESH, 3)
    before = step(life, Event.FRESHNESS_ASKED, NOW + HOUR - timedelta(seconds=1), **report)
    assert (before.do, before.life.declined_s) == (Do.NOTHING, 1.0), "and may report again when it is over"
    lasting = life.model_copy(update={"expires_at": None})
    for forever, rules in ((lasting, NEW), (life, RULES[4])):
        told = next_step(forever, _report(report), NOW + HOUR - timedelta(seconds=1), rules).life
        assert told.declined_s == NEW.forced_interval.total_seconds() * 4 + 1
    assert next_step(life, _report(report), NOW + HOUR, RULES[4]).do is Do.NOTHING, "as it was"
    failing = life.model_copy(update={"ask_at": NOW + 2 * HOUR, "reason": Code.PROVIDER_UNREACHABLE})
    refused = step(failing, Event.FRESHNESS_ASKED, NOW + HOUR, **report)
    assert (refused.do, refused.life.refusal) == (Do.NOTHING, Code.PROVIDER_UNREACHABLE)


def _report(brings: dict[str, object]) -> Happening:
    return Happening(event=Event.FRESHNESS_ASKED, asked=ASKED, **brings)


def test_a_clock_that_is_behind_makes_no_token_over_before_its_time():
    """Dated an hour early by a worker; it lives for an hour from when the workflow heard of it."""
    behind = ACTIVE.model_copy(update={"obtained_at": NOW - HOUR, "expires_at": NOW, "installed_at": NOW})
    assert not is_over(behind, NOW + HOUR - timedelta(seconds=1))
    assert is_over(behind, NOW + HOUR)
    assert is_over(behind.model_copy(update={"installed_at": None}), NOW), "from a run that knew it not"
    assert not is_over(behind.model_copy(update={"expires_at": None}), NOW + DAY), "it never ends"


def test_a_worker_whose_clock_is_ahead_dates_no_token_into_the_future():
    news = GrantNews(generation=4, obtained_at=NOW + HOUR, expires_at=NOW + 2 * HOUR, refreshable=True)
    life = step(ACTIVE, Event.GRANT_REFRESHED, news=news).life
    assert (life.obtained_at, life.expires_at) == (NOW, NOW + HOUR)
    woken = wake(life, NEW)
    assert woken is not None
    assert woken.at < NOW + HOUR
    old = next_step(ACTIVE, Happening(event=Event.GRANT_REFRESHED, asked=ASKED, news=news), NOW, RULES[4])
    assert old.life.expires_at == NOW + 2 * HOUR, "as it was"
    near = news.model_copy(update={"obtained_at": NOW + timedelta(minutes=2)})
    assert step(ACTIVE, Event.GRANT_REFRESHED, news=near).life.obtained_at == near.obtained_at
    lasting = news.model_copy(update={"expires_at": None})
    assert step(ACTIVE, Event.GRANT_REFRESHED, news=lasting).life.expires_at is None


def test_a_worker_whose_clock_is_an_hour_behind_causes_no_storm():
    """Every grant it brings looks over when it comes."""
    behind = iter(range(4, 100_000))

    def answer(now: datetime) -> GrantNews:
        return GrantNews(
            state=State.ACTIVE, generation=next(behind), refreshable=True,
            obtained_at=now - HOUR, expires_at=now,
        )  # fmt: skip

    _, tries, _ = simulated(ACTIVE.model_copy(update={"policy": "warm"}), answer, NOW + 2 * HOUR)
    assert len(tries) <= 2 * HOUR / NEW.shortest_interval


def test_what_only_looks_due_is_not_refreshed_again_at_once_but_a_command_is():
    life = step(ACTIVE, Event.GRANT_REFRESHED, news=hourly()(NOW)).life
    at = NOW + timedelta(seconds=30)
    looks_due = step(life, Event.FRESHNESS_ASKED, at, seen_generation=life.generation, wish=Wish.DUE)
    assert (looks_due.do, looks_due.life.declined_s) == (Do.NOTHING, 90.0)
    assert step(life, Event.FRESHNESS_ASKED, at, seen_generation=life.generation).do is Do.REFRESH
    back = NOW - HOUR  # the workflow's clock jumped back: what it knows is from the future
    jumped = step(life, Event.FRESHNESS_ASKED, back, seen_generation=life.generation, wish=Wish.DUE)
    assert jumped.do is Do.REFRESH


def test_a_clock_that_is_behind_makes_no_loop_of_keeping_alive():
    """A worker's clock says of every grant that it came a day ago, and its idle life is an hour."""
    generations = iter(range(4, 100))

    def answer(now: datetime) -> GrantNews:
        came = now - DAY
        return GrantNews(
            state=State.ACTIVE,
            generation=next(generations),
            obtained_at=came,
            expires_at=came + HOUR,
            refreshable=True,
            idle_s=3600,
        )

    life = ACTIVE.model_copy(update={"policy": "on_demand", "idle_s": 3600})
    _, tries, _ = simulated(life, answer, NOW + 2 * HOUR)
    assert 1 < len(tries) <= 2 + 90 * 60 / 120


@pytest.mark.parametrize("code", [Code.KEY_UNAVAILABLE, Code.JOURNAL_UNAVAILABLE, Code.STORE_UNAVAILABLE])
def test_what_is_ours_to_repair_is_tried_again_within_a_minute_and_a_quarter(code: Code):
    """Nothing is sent meanwhile. A provider's outage, and what may have been sent, waits as before."""
    last = retry_at(NOW, 50, code, None, NEW, share=0.999) - NOW
    assert timedelta(seconds=45) < last <= timedelta(seconds=75)
    for other in (Code.PROVIDER_UNREACHABLE, Code.INTERNAL):
        assert retry_at(NOW, 50, other, None, NEW, share=0.5) - NOW == NEW.longest_backoff
    assert retry_at(NOW, 50, code, None, RULES[3], share=0.5) - NOW == NEW.longest_backoff


@pytest.mark.parametrize(("days", "said"), [(None, [14, 3, 1]), ((30, 7), [30, 7]), ((), []), ((2,), [2])])
def test_an_operator_says_when_an_end_is_announced(days: tuple[int, ...] | None, said: list[int]):
    life = ACTIVE.model_copy(
        update={
            "refreshable": False,
            "expires_at": NOW + 40 * DAY,
            "end_known_at": NOW,
            "announce_days": days,
        }
    )
    rules = announcing(NEW, life.announce_days)
    told: list[int] = []
    while (woken := wake(life, rules)) is not None and woken.days is not None:
        happening = Happening(event=Event.TIME_CAME, asked=ASKED)
        step_ = next_step(life, happening, woken.at, rules)
        told.append(step_.days)
        life = step_.life
    assert told == said


def test_rules_that_announced_nothing_do_not_begin_to():
    assert announcing(RULES[1], (14,)) is RULES[1]
