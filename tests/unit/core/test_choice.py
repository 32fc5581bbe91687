"""Which account a connection is for: looked up until there is an answer, chosen among several."""

from datetime import UTC, datetime, timedelta

import pytest

from evergrant_server.core.account import FollowUp, Option, picked
from evergrant_server.core.beginning import life_of
from evergrant_server.core.choice import reason_of
from evergrant_server.core.connection import Connection, State
from evergrant_server.core.elsewhere import leasable
from evergrant_server.core.errors import Code
from evergrant_server.core.ids import ConnectionId, IntegrationId, Tenant
from evergrant_server.core.lifecycle import Do, Step, next_step, wake
from evergrant_server.core.messages import Asked, Event, GrantNews, Happening, Life
from evergrant_server.core.schedule import NEWEST_RULES, RULES

RULES_NOW = RULES[NEWEST_RULES]
NOW = datetime(2030, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
ASKED = Asked(by="app:test")
ONE, TWO = Option(id="1", label="One", metadata={"site": "1"}), Option(id="2", label="Two")
CONNECTION = Connection(
    tenant=Tenant("acme"),
    id=ConnectionId("con_1"),
    integration_id=IntegrationId("int_1"),
    integration="crm",
    provider="acme",
    subject="sam",
    state=State.ACTIVE,
    follow_up=FollowUp.LOOKING,
    created_at=NOW,
    changed_at=NOW,
    consent_deadline=NOW,
)


def step(life: Life, event: Event, at: datetime = NOW, **brings: object) -> Step:
    return next_step(life, Happening(event=event, asked=ASKED, **brings), at, RULES_NOW)


def news(**more: object) -> GrantNews:
    fields = {"state": State.ACTIVE, "generation": 1, "obtained_at": NOW, "expires_at": NOW + HOUR}
    return GrantNews(**{**fields, "refreshable": True, **more})


def granted(**more: object) -> Life:
    return step(Life(), Event.CODE_EXCHANGED, news=news(look_up=True, **more)).life


@pytest.mark.parametrize(
    ("options", "wish", "found"),
    [
        ((), None, None),
        ((ONE,), None, ONE),
        ((ONE,), "2", ONE),
        ((ONE, TWO), None, None),
        ((ONE, TWO), "2", TWO),
    ],
)
def test_one_account_or_the_one_that_was_asked_for(options: tuple, wish: str | None, found: Option | None):
    assert picked(options, wish) == found
    after, option = CONNECTION.model_copy(update={"choice": wish}).found(options, NOW)
    assert option == found
    assert after.follow_up is (None if found else FollowUp.CHOOSING)
    assert after.choice == (found.id if found else wish)


def test_a_grant_that_came_is_followed_by_a_lookup():
    life = granted()
    woken = wake(life, RULES_NOW)
    assert woken is not None
    assert (woken.at, woken.looks) == (NOW, True)
    assert step(life, Event.TIME_CAME).do is Do.LOOK_UP
    answered = step(life, Event.LOOKED_UP, news=news()).life
    woken = wake(answered, RULES_NOW)
    assert woken is not None
    assert (woken.why, answered.look_at) == ("refresh due", None)


def test_a_lookup_that_fails_is_tried_again_slower_and_slower():
    life, waits = granted(), []
    for _ in range(4):
        life = step(life, Event.LOOKED_UP, news=GrantNews(failure=Code.PROVIDER_ERROR)).life
        assert life.look_at is not None
        waits.append(life.look_at - NOW)
    assert waits == sorted(set(waits))
    assert life.state is State.ACTIVE


def test_a_token_that_is_over_is_replaced_before_the_next_try():
    late = NOW + 2 * HOUR
    failed = step(granted(), Event.LOOKED_UP, late, news=GrantNews(failure=Code.REFRESH_PENDING))
    assert failed.do is Do.REFRESH
    fresh = news(generation=2, obtained_at=late, expires_at=late + HOUR, look_up=True)
    assert step(failed.life, Event.GRANT_REFRESHED, late, news=fresh).life.look_at == late


def test_several_accounts_wait_and_a_refresh_forgets_nothing():
    life = step(granted(), Event.LOOKED_UP, news=news(choosing=True)).life
    assert (reason_of(life), life.look_at) == (Code.CHOICE_REQUIRED, None)
    life = step(life, Event.GRANT_REFRESHED, news=news(generation=2, choosing=True)).life
    assert reason_of(life) is Code.CHOICE_REQUIRED
    assert reason_of(step(life, Event.CHOICE_MADE, reason="1").life) is None


def test_a_workflow_that_begins_again_goes_on_where_the_store_is():
    looking = life_of(CONNECTION, None, None, NOW)
    assert (looking.look_at, looking.choosing) == (NOW, False)
    choosing = life_of(CONNECTION.found((ONE, TWO), NOW)[0], None, None, NOW)
    assert (choosing.look_at, choosing.choosing) == (None, True)


def test_no_lease_leaves_for_nobody_knows_which_account():
    assert leasable(State.ACTIVE, None, FollowUp.LOOKING)
    assert not leasable(State.ACTIVE, None, FollowUp.CHOOSING)
    assert not leasable(State.NEEDS_REAUTH, Code.GRANT_REJECTED, FollowUp.CHOOSING)
