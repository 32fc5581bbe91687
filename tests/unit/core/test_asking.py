"""Who wants the same newer token shares one refresh, and who has to wait for a person hears again."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from evergrant_server.core.asking import no_longer_waiting, waiting
from evergrant_server.core.connection import State
from evergrant_server.core.errors import Code
from evergrant_server.core.lifecycle import Do, Step, next_step
from evergrant_server.core.messages import Asked, Event, GrantNews, Happening, Life, Wish
from evergrant_server.core.schedule import NEWEST_RULES, RULES
from evergrant_server.core.waking import nothing_to_keep

NOW = datetime(2030, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
BEFORE, NEWEST = RULES[5], RULES[NEWEST_RULES]
ACTIVE = Life(
    state=State.ACTIVE, generation=1, obtained_at=NOW - HOUR, expires_at=NOW, installed_at=NOW - HOUR,
    refreshable=True, policy="on_demand",
)  # fmt: skip
NEWER = GrantNews(
    state=State.ACTIVE, generation=2, obtained_at=NOW, expires_at=NOW + HOUR, refreshable=True
)  # fmt: skip
DEAD = GrantNews(failure=Code.GRANT_REJECTED)


def step(life: Life, event: Event, rules: Any = NEWEST, **brings: Any) -> Step:
    return next_step(life, Happening(event=event, asked=Asked(by="app:x"), **brings), NOW, rules, 0.5)


@pytest.mark.parametrize(("rules", "refreshes"), [(NEWEST, 1), (BEFORE, 50)])
def test_fifty_who_want_a_newer_token_than_the_same_one_share_one_refresh(rules: Any, refreshes: int):
    life, done = ACTIVE, 0
    for _ in range(50):
        asked = step(life, Event.ROTATE_ASKED, rules, seen_generation=1)
        life = asked.life
        if asked.do is Do.REFRESH:
            done += 1
            news = NEWER.model_copy(update={"generation": life.generation + 1})
            life = step(life, Event.GRANT_REFRESHED, rules, news=news).life
    assert done == refreshes


def test_who_names_no_generation_wants_a_newer_one_than_the_newest():
    assert step(ACTIVE.model_copy(update={"generation": 7}), Event.ROTATE_ASKED).do is Do.REFRESH
    assert step(ACTIVE, Event.ROTATE_ASKED, seen_generation=2).do is Do.REFRESH, "this run is behind"


@pytest.mark.parametrize(("rules", "hears"), [(NEWEST, ("pipeline",)), (BEFORE, ())])
def test_who_finds_out_that_the_grant_is_dead_hears_again(rules: Any, hears: tuple[str, ...]):
    asked = step(ACTIVE, Event.TOKEN_REQUESTED, rules, reply_to="pipeline")
    assert (asked.do, asked.life.reply_later) == (Do.REFRESH, ())
    after = step(asked.life, Event.GRANT_REFRESHED, rules, news=DEAD).life
    assert after.state is State.NEEDS_REAUTH
    life = waiting(after, "pipeline", rules)
    assert life.reply_later == hears
    assert not no_longer_waiting(life, rules)
    assert waiting(life, "pipeline", rules).reply_later == hears, "once"


@pytest.mark.parametrize(("rules", "hears"), [(NEWEST, ("pipeline",)), (BEFORE, ())])
def test_who_asks_while_an_account_has_to_be_chosen_hears_again(rules: Any, hears: tuple[str, ...]):
    choosing = ACTIVE.model_copy(update={"choosing": True, "expires_at": NOW + HOUR})
    life = waiting(step(choosing, Event.TOKEN_REQUESTED, rules, reply_to="pipeline").life, "pipeline", rules)
    assert life.reply_later == hears
    assert no_longer_waiting(life, rules) is (rules is BEFORE)
    chosen = step(life, Event.CHOICE_MADE, rules, reason="1").life
    assert no_longer_waiting(chosen, rules)


def test_nobody_waits_where_there_is_a_token_or_nothing_will_come():
    assert waiting(ACTIVE, "pipeline", NEWEST) == ACTIVE
    dead = ACTIVE.model_copy(update={"state": State.NEEDS_REAUTH})
    assert waiting(dead, None, NEWEST) == dead
    assert no_longer_waiting(ACTIVE.model_copy(update={"state": State.REVOKED}), NEWEST)


@pytest.mark.parametrize(("rules", "first", "last"), [(NEWEST, 0, 99), (RULES[7], 50, 149)])
def test_the_hundred_who_came_first_hear_again_and_who_comes_later_hears_that_nothing_follows(
    rules: Any, first: int, last: int
):
    dead = ACTIVE.model_copy(update={"state": State.NEEDS_REAUTH})
    for caller in range(150):
        dead = waiting(dead, f"pipeline-{caller}", rules)
    assert len(dead.reply_later) == 100
    assert (dead.reply_later[0], dead.reply_later[-1]) == (f"pipeline-{first}", f"pipeline-{last}")


LASTING = ACTIVE.model_copy(update={"expires_at": None, "generation": 3})


def report(life: Life, rules: Any = NEWEST, **what: Any) -> Step:
    return step(life, Event.FRESHNESS_ASKED, rules, wish=Wish.UNAUTHORIZED, **what)


def test_a_token_that_was_reported_is_over_for_every_later_try():
    """It has no end of its own, so nothing else can say so."""
    assert not nothing_to_keep(LASTING, NOW + 9999 * HOUR, NEWEST)
    reported = report(LASTING, seen_generation=3)
    assert reported.do is Do.REFRESH
    assert nothing_to_keep(reported.life, NOW, NEWEST)
    pending = GrantNews(failure=Code.REFRESH_PENDING)
    failed = step(reported.life, Event.GRANT_REFRESHED, news=pending).life
    assert nothing_to_keep(failed, NOW, NEWEST), "also for the try that comes by itself"
    renewed = NEWER.model_copy(update={"generation": 4, "expires_at": None})
    after = step(failed, Event.GRANT_REFRESHED, news=renewed).life
    assert not nothing_to_keep(after, NOW, NEWEST), "of the next token nothing is said"


def test_a_report_that_comes_between_two_tries_is_heeded_by_the_next():
    waits = LASTING.model_copy(update={"retry_at": NOW + HOUR, "failures": 1, "reason": Code.REFRESH_PENDING})
    reported = report(waits)
    assert (reported.do, reported.life.refusal) == (Do.NOTHING, Code.REFRESH_PENDING)
    assert nothing_to_keep(reported.life, NOW, NEWEST)


def test_a_report_that_is_declined_says_nothing():
    """Its token is new, and the one before was refused as well: the provider's API may have other reasons."""
    again = LASTING.model_copy(update={"forced": 1, "forced_at": NOW})
    declined = report(again)
    assert declined.life.declined_s is not None
    assert not nothing_to_keep(declined.life, NOW, NEWEST)
    assert report(LASTING, RULES[7]).life.reported is None, "as histories have it"
