"""Which moment a life waits for: every state, every reason, and the edges between them."""

from datetime import datetime, timedelta

import pytest

from evergrant_server.core.clock import LATEST
from evergrant_server.core.connections.connection import LifecycleState, StateChange
from evergrant_server.core.errors.kinds import FailureCause
from evergrant_server.core.ids import AttemptId, ConsentId
from evergrant_server.core.lifecycle.command import Command
from evergrant_server.core.lifecycle.grants import (
    grant_ends_at,
    is_same_end,
    no_token_to_protect,
    refresh_extends_end,
    token_ends_at,
    token_has_ended,
)
from evergrant_server.core.lifecycle.schedule import LifecycleRules
from evergrant_server.core.lifecycle.timers import (
    Timer,
    TimerPurpose,
    earliest_refresh_at,
    next_timer,
    refresh_due_at,
    settled_at,
)
from evergrant_server.core.messages.activities import GrantResult
from evergrant_server.core.messages.connection import ConnectionState, EventKind
from tests.unit.core.lifecycle import steps
from tests.unit.core.lifecycle.steps import DAY, HOUR, MINUTE, NEWEST, NOW, TICK, timer_of

SOON, LATER = NOW + MINUTE, NOW + HOUR
ACTIVE = steps.ACTIVE.model_copy(update={"policy": "warm"})
DUE = NOW + timedelta(minutes=55)


def life(base: ConnectionState = ACTIVE, /, **what: object) -> ConnectionState:
    return base.model_copy(update=what)


def moment(it: ConnectionState, rules: LifecycleRules = NEWEST, share: float = 0.0) -> datetime | None:
    woken = next_timer(it, rules, share)
    return woken and woken.at


def timer(it: ConnectionState) -> Timer | None:
    return next_timer(it, NEWEST)


def waiting(**what: object) -> ConnectionState:
    return ConnectionState(state=LifecycleState.PENDING_CONSENT, **what)


@pytest.mark.parametrize("state", [LifecycleState.PENDING_CONSENT, LifecycleState.NEEDS_REAUTH])
def test_timers_of_late_tokens_and_first_tokens_without_a_grant(state: LifecycleState):
    assert timer(ConnectionState(state=state)) is None
    late = ConnectionState(state=state, late_attempt=AttemptId("att_1"), verify_late_at=SOON)
    assert timer(late) == Timer(SOON, "verify late tokens again", TimerPurpose.VERIFY_LATE_TOKENS)
    mints = ConnectionState(state=state, waiting_consent=ConsentId("cns_1"), retry_at=SOON)
    assert timer(mints) == Timer(SOON, "request first tokens again", TimerPurpose.REQUEST_FIRST_TOKENS)
    assert timer(life(mints, waiting_consent=None)) is None
    assert timer(life(mints, retry_at=None)) is None
    polls = life(mints, poll_at=LATER)
    assert timer(polls) == Timer(LATER, "poll the device code", TimerPurpose.REQUEST_FIRST_TOKENS)
    assert timer(life(polls, retry_at=None, waiting_consent=None)) == timer(polls)


def test_a_consent_ends_a_grace_after_its_deadline_unless_something_comes_before():
    assert timer(waiting(consent_deadline=LATER)) == Timer(
        LATER + NEWEST.consent_grace, "consent deadline", TimerPurpose.END_CONSENT
    )
    both = waiting(consent_deadline=LATER, late_attempt=AttemptId("att_1"), verify_late_at=SOON)
    assert moment(both) == SOON
    assert moment(waiting(consent_deadline=NOW - HOUR, poll_at=SOON)) == NOW - HOUR + NEWEST.consent_grace
    assert timer(ConnectionState(state=LifecycleState.NEEDS_REAUTH, consent_deadline=LATER)) is None


def test_timers_of_revoking_and_final_states():
    told = ConnectionState(state=LifecycleState.REVOKING, retry_at=SOON)
    assert timer(told) == Timer(SOON, "revoke again", TimerPurpose.REVOKE)
    assert timer(life(told, retry_at=None)) is None
    assert timer(life(told, state=LifecycleState.REVOKED)) is None


def test_an_active_connection_waits_for_what_was_said():
    assert timer(life(retry_at=NOW + DAY)) == Timer(NOW + DAY, "try the refresh again")
    refused = life(retry_at=SOON, cause=FailureCause.REFUSAL)
    lost = life(retry_at=SOON, cause=FailureCause.LOST_ANSWER)
    assert timer_of(refused).summary.startswith("ask again: the provider has refused the grant")
    assert timer_of(lost).summary.startswith("send the refresh again: the answer")
    assert timer(life(account_lookup_at=SOON)) == Timer(
        SOON, "look up the accounts", TimerPurpose.LOOK_UP_ACCOUNTS
    )
    assert moment(life(poll_at=SOON)) == SOON
    assert moment(life(poll_at=DUE + MINUTE)) == DUE
    it = life(refreshable=False, refresh_token_idle_s=60.0, end_known_at=NOW)
    assert timer(it) == Timer(NOW + HOUR, "access token expires, and can't be refreshed")


def test_a_token_ends_by_the_workflows_clock_and_at_the_last_date():
    assert token_ends_at(ACTIVE) == NOW + HOUR
    assert token_ends_at(life(installed_at=NOW + MINUTE)) == NOW + HOUR + MINUTE
    assert token_ends_at(life(installed_at=NOW - MINUTE)) == NOW + HOUR
    far = life(obtained_at=NOW - 30 * DAY, installed_at=NOW, expires_at=LATEST)
    assert token_ends_at(far) == LATEST
    assert not token_has_ended(far, NOW)
    assert token_has_ended(far, LATEST)
    assert earliest_refresh_at(life(min_age_s=1e12)) == LATEST
    idle = life(policy="on_demand", refresh_token_idle_s=1e300)
    assert moment(idle) == LATEST


@pytest.mark.parametrize("missing", ["expires_at", "obtained_at"])
def test_a_token_without_an_end_is_never_due(missing: str):
    endless = life(**{missing: None})
    assert timer(endless) is None
    assert refresh_due_at(endless, NEWEST) is None


@pytest.mark.parametrize(
    ("policy", "leased", "ahead"),
    [("warm", False, True), ("adaptive", True, True), ("adaptive", False, False), ("on_demand", True, False)],
)
def test_which_policies_refresh_ahead(policy: str, leased: bool, ahead: bool):
    found = timer(life(policy=policy, leased=leased, refresh_token_idle_s=40 * 3600.0))
    assert found == (
        Timer(DUE, "refresh due")
        if ahead
        else Timer(NOW + 20 * HOUR, "keep the refresh token alive", TimerPurpose.KEEP_ALIVE)
    )


@pytest.mark.parametrize("policy", ["warm", "adaptive", "on_demand"])
@pytest.mark.parametrize("leased", [True, False])
def test_a_refresh_token_that_ends_before_its_access_token_is_kept_alive(policy: str, leased: bool):
    facts = {"expires_at": NOW + 30 * DAY, "refresh_token_idle_s": 10 * 86_400.0, "generation": 1}
    long = life(policy=policy, leased=leased, **facts)
    alive = Timer(NOW + 5 * DAY, "keep the refresh token alive", TimerPurpose.KEEP_ALIVE)
    assert timer(long) == alive
    assert steps.step(long, EventKind.TIMER_FIRED, alive.at).command is Command.REFRESH, (
        "whoever has leased it"
    )
    dated = life(long, refresh_token_idle_s=None, refresh_expires_at=NOW + 10 * DAY)
    assert timer(dated) == alive


def test_a_lost_answer_is_not_waited_for_beyond_the_refresh_tokens_own_end():
    long = life(expires_at=NOW + 30 * DAY, refresh_token_idle_s=10 * 86_400.0)
    assert not no_token_to_protect(long, NOW + 9 * DAY - TICK)
    assert no_token_to_protect(long, NOW + 9 * DAY)
    assert no_token_to_protect(life(long, expires_at=None), NOW + 9 * DAY)
    assert not no_token_to_protect(life(long, obtained_at=None), NOW + 9 * DAY)
    assert not no_token_to_protect(life(long, refresh_token_idle_s=None), NOW + 29 * DAY)
    assert no_token_to_protect(life(long, refresh_token_idle_s=None), NOW + 30 * DAY)
    assert no_token_to_protect(ACTIVE, NOW + HOUR)


def test_a_refresh_comes_no_sooner_than_the_grant_has_settled():
    behind = life(obtained_at=NOW - HOUR, expires_at=NOW, installed_at=NOW)
    assert moment(behind) == NOW + NEWEST.shortest_interval
    kept = life(behind, policy="on_demand", refresh_token_idle_s=60.0)
    assert moment(kept) == NOW + NEWEST.shortest_interval
    assert moment(life(kept, refresh_token_idle_s=86_400.0)) == NOW + 11 * HOUR
    assert settled_at(life(installed_at=NOW), NEWEST) == NOW + 2 * MINUTE
    assert settled_at(life(installed_at=NOW, expires_at=NOW + 4 * MINUTE), NEWEST) == NOW + MINUTE
    assert settled_at(ACTIVE, NEWEST) is None
    for missing in ("expires_at", "obtained_at"):
        assert settled_at(life(installed_at=NOW, **{missing: None}), NEWEST) is None


def test_a_refresh_token_s_age_keeps_it_alive_where_a_refresh_may_start_it_anew():
    idle = life(policy="on_demand", refresh_expires_at=NOW + 30 * DAY)
    assert moment(idle) == NOW + 15 * DAY
    assert moment(life(idle, refresh_extends=True)) == NOW + 15 * DAY
    assert moment(life(idle, refresh_token_idle_s=10 * 86_400.0)) == NOW + 5 * DAY, "whichever is shorter"
    assert moment(life(idle, refresh_extends=False, end_known_at=NOW + 30 * DAY)) is None
    assert moment(life(idle, refresh_expires_at=NOW + timedelta(seconds=1))) == NOW + timedelta(seconds=0.5)
    assert moment(life(idle, refresh_expires_at=NOW)) is None, "over already"
    assert moment(life(idle, refresh_expires_at=NOW - DAY)) is None


def test_before_this_the_provider_refuses():
    assert earliest_refresh_at(ACTIVE) is None
    assert earliest_refresh_at(life(min_age_s=60.0)) == NOW + MINUTE
    assert earliest_refresh_at(life(margin_s=600.0)) == NOW + 50 * MINUTE
    assert earliest_refresh_at(life(min_age_s=60.0, margin_s=600.0)) == NOW + 50 * MINUTE
    assert earliest_refresh_at(life(min_age_s=60.0, obtained_at=None)) is None
    assert earliest_refresh_at(life(margin_s=60.0, expires_at=None)) is None
    assert refresh_due_at(life(min_age_s=7200.0), NEWEST) == NOW + 2 * HOUR
    assert refresh_due_at(life(margin_s=60.0), NEWEST) == NOW + 59 * MINUTE


def test_the_end_of_a_grant():
    assert grant_ends_at(life(refreshable=False)) == NOW + HOUR
    dated = life(refresh_expires_at=NOW + DAY)
    assert grant_ends_at(dated) is None, "not seen yet: it is thought to be extended"
    assert grant_ends_at(life(dated, refresh_extends=True)) is None
    assert grant_ends_at(life(dated, refresh_extends=False)) == NOW + DAY
    assert grant_ends_at(life(dated, refresh_extends=True, failures=1)) == NOW + DAY


def test_ends_an_hour_apart_are_the_same():
    assert is_same_end(None, None)
    assert not is_same_end(NOW, None)
    assert not is_same_end(None, NOW)
    assert is_same_end(NOW, NOW + HOUR)
    assert is_same_end(NOW + HOUR, NOW)
    assert not is_same_end(NOW, NOW + HOUR + TICK)


def test_the_next_announcement_is_the_longest_that_is_open():
    ends = life(refreshable=False, expires_at=NOW + 30 * DAY, end_known_at=NOW)
    assert timer(ends) == Timer(NOW + 16 * DAY, "announce that the grant ends", TimerPurpose.ANNOUNCE_EXPIRY)
    assert timer(life(ends, announced_days=(14,))) == Timer(
        NOW + 27 * DAY, "announce that the grant ends", TimerPurpose.ANNOUNCE_EXPIRY
    )
    done = timer(life(ends, announced_days=(14, 3, 1)))
    assert done == Timer(NOW + 30 * DAY, "access token expires, and can't be refreshed")
    assert moment(life(ends, end_known_at=NOW + 16 * DAY)) == NOW + 27 * DAY, "none from before it was known"
    assert moment(life(ends, end_known_at=NOW + 16 * DAY - TICK)) == NOW + 16 * DAY
    assert moment(life(ends, end_known_at=None)) == NOW + 16 * DAY, "then since it was obtained"
    assert timer(life(ends, end_known_at=None, obtained_at=None)) is None


ITSELF = life(
    expires_at=NOW + 60 * DAY, refresh_expires_at=NOW + 60 * DAY, ends_together=True, min_age_s=86_400.0
)


def test_a_first_token_is_exchanged_at_once():
    assert timer(life(short_lived=True)) == Timer(NOW, "exchange the first token for a long-lived one")
    assert moment(life(short_lived=True, expires_at=None)) == NOW
    assert moment(life(short_lived=True, retry_at=SOON)) == SOON


@pytest.mark.parametrize("policy", ["warm", "adaptive", "on_demand"])
def test_a_token_refreshed_with_itself_is_refreshed_at_half_of_its_lifetime(policy: str):
    long_before = Timer(NOW + 30 * DAY, "refresh long before the token ends")
    assert timer(life(ITSELF, policy=policy)) == long_before
    assert moment(life(ITSELF, policy=policy, leased=False)) == NOW + 30 * DAY
    short = life(ITSELF, expires_at=NOW + 36 * HOUR, refresh_expires_at=NOW + 36 * HOUR)
    assert moment(short) == NOW + DAY


def test_where_a_refresh_moves_no_end_it_waits_for_the_margin():
    it = life(ITSELF, refresh_extends=False, announced_days=(14, 3, 1))
    assert timer(it) == Timer(NOW + 60 * DAY - 5 * MINUTE, "refresh due")
    assert moment(it, share=0.99) != moment(it), "a fleet is spread"


DATED = life(refresh_expires_at=NOW + DAY)


@pytest.mark.parametrize(
    ("passed", "moved", "told"),
    [
        (HOUR, HOUR, True),
        (HOUR, HOUR / 2 + TICK, True),
        (HOUR, HOUR / 2, False),
        (HOUR, 25 * MINUTE, False),
        (MINUTE, timedelta(0), False),
        (MINUTE - TICK, HOUR, None),  # a moved end can't be told from a rounded one
    ],
)
def test_whether_a_refresh_moves_the_end_of_its_refresh_token(
    passed: timedelta, moved: timedelta, told: bool | None
):
    news = GrantResult(obtained_at=NOW + passed, refresh_expires_at=NOW + DAY + moved)
    assert refresh_extends_end(DATED, StateChange.REFRESHED, news) is told
    assert refresh_extends_end(DATED, StateChange.GRANTED, news) is None, "of another grant nothing was seen"


@pytest.mark.parametrize("missing", ["obtained_at", "refresh_expires_at"])
def test_what_was_seen_of_an_end_stands_while_nothing_more_is_known(missing: str):
    known = life(DATED, refresh_extends=True)
    news = GrantResult(obtained_at=NOW + HOUR, refresh_expires_at=NOW + DAY)
    assert refresh_extends_end(known, StateChange.REFRESHED, news) is False
    assert refresh_extends_end(life(known, **{missing: None}), StateChange.REFRESHED, news) is True
    assert refresh_extends_end(known, StateChange.REFRESHED, news.model_copy(update={missing: None})) is True


def refreshed(before: ConnectionState, news: GrantResult) -> ConnectionState:
    return steps.step(before, EventKind.REFRESH_ENDED, result=news).state


@pytest.mark.parametrize("share", [0.0, 0.99])
def test_a_worker_whose_clock_is_ahead_puts_no_refresh_beyond_the_end_of_what_it_is_made_from(share: float):
    """The refresh token ends with the access token: an hour late is too late."""
    end = NOW + 2 * HOUR
    facts = {"generation": 4, "refreshable": True, "ends_together": True}
    news = GrantResult(obtained_at=NOW + HOUR, expires_at=end, refresh_expires_at=end, **facts)
    after = refreshed(ACTIVE, news)
    assert (after.obtained_at, after.expires_at, after.refresh_expires_at) == (NOW, NOW + HOUR, NOW + HOUR)
    woken = timer_of(after, share)
    assert woken.at <= NOW + HOUR / 2
    fixed = ACTIVE.model_copy(update={"refresh_expires_at": NOW + DAY, "obtained_at": NOW - HOUR})
    again = news.model_copy(update={"refresh_expires_at": NOW + DAY + HOUR, "ends_together": False})
    assert refreshed(fixed, again).refresh_extends is False, "by our clock"
