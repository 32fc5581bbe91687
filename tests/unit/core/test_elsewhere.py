"""News from the provider's side: what they do to a connection, and what they never do."""

from datetime import UTC, datetime, timedelta

import pytest

from evergrant_server.core.connection import Connection, State
from evergrant_server.core.elsewhere import (
    NewsFromElsewhere,
    Source,
    Verdict,
    Weight,
    judge_news,
    leasable,
)
from evergrant_server.core.errors import Code
from evergrant_server.core.grant import Grant
from evergrant_server.core.ids import ConnectionId, IntegrationId, Tenant
from evergrant_server.core.lifecycle import Do, next_step, wake
from evergrant_server.core.messages import Asked, Event, GrantNews, Happening, Life
from evergrant_server.core.schedule import NEWEST_RULES, RULES

NOW = datetime(2030, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
ASKED = Asked(by="provider")
ACTIVE = Life(state=State.ACTIVE, generation=3, obtained_at=NOW, expires_at=NOW + HOUR, refreshable=True)
GRANT = Grant(generation=3, scopes=("read",), obtained_at=NOW, expires_at=NOW + HOUR, refreshable=True)


def connection(state: State = State.ACTIVE, reason: Code | None = None) -> Connection:
    return Connection(
        tenant=Tenant("acme"),
        id=ConnectionId("con_1"),
        integration_id=IntegrationId("int_1"),
        integration="crm",
        provider="generic",
        subject="user-1",
        state=state,
        reason=reason,
        generation=3,
        created_at=NOW,
        changed_at=NOW,
        consent_deadline=NOW,
    )


def news(weight: Weight = Weight.ENDED, at: datetime | None = None, generation: int | None = None):
    return NewsFromElsewhere(
        source=Source.SECURITY_EVENT, kind="tokens-revoked", weight=weight, at=at, generation=generation
    )


def step(life: Life, event: Event, **brings: object):
    return next_step(life, Happening(event=event, asked=ASKED, **brings), NOW, RULES[NEWEST_RULES])


@pytest.mark.parametrize(
    ("told", "verdict"),
    [
        (news(), Verdict.ENDED),
        (news(at=NOW + HOUR), Verdict.ENDED),
        (news(at=NOW), Verdict.ENDED),
        (news(at=NOW - timedelta(seconds=1)), Verdict.OLDER),
        (news(generation=2), Verdict.OLDER),
        (news(generation=3), Verdict.ENDED),
        (news(Weight.DOUBTED), Verdict.ASKED),
        (news(Weight.DOUBTED, at=NOW - HOUR), Verdict.OLDER),
    ],
)
def test_news_about_an_active_connection(told: NewsFromElsewhere, verdict: Verdict):
    assert judge_news(connection(), GRANT, told) is verdict


@pytest.mark.parametrize("state", [it for it in State if it not in (State.ACTIVE, State.NEEDS_REAUTH)])
def test_news_change_nothing_where_nothing_is_held(state: State):
    assert judge_news(connection(state), GRANT, news()) is Verdict.NOTHING_HELD
    assert judge_news(connection(), None, news()) is Verdict.NOTHING_HELD


def test_a_connection_that_needs_somebody_anyway_stops_serving_its_last_token():
    """Its access token is served while it is valid, until the provider says that it is dead."""
    waiting = connection(State.NEEDS_REAUTH, Code.GRANT_REJECTED)
    assert judge_news(waiting, GRANT, news()) is Verdict.ENDED
    assert judge_news(waiting, GRANT, news(Weight.DOUBTED)) is Verdict.NOTHING_HELD
    known = connection(State.NEEDS_REAUTH, Code.GRANT_REVOKED_ELSEWHERE)
    assert judge_news(known, GRANT, news()) is Verdict.NOTHING_HELD


def test_a_doubt_without_a_refresh_token_condemns_nobody():
    unrefreshable = GRANT.model_copy(update={"refreshable": False})
    assert judge_news(connection(), unrefreshable, news(Weight.DOUBTED)) is Verdict.UNTESTABLE


def test_what_was_revoked_elsewhere_is_not_leased():
    assert leasable(State.ACTIVE, None)
    assert leasable(State.NEEDS_REAUTH, Code.GRANT_REJECTED)
    assert not leasable(State.NEEDS_REAUTH, Code.GRANT_REVOKED_ELSEWHERE)
    assert not leasable(State.REVOKING, None)
    assert leasable(State.ACTIVE, None, reported=True), "nothing confirms the report"
    assert not leasable(State.NEEDS_REAUTH, Code.GRANT_REJECTED, reported=True)


def test_the_workflow_waits_for_the_subject_and_tries_nothing():
    failing = ACTIVE.model_copy(update={"failures": 2, "retry_at": NOW, "ask_at": NOW})
    ended = step(failing, Event.REVOKED_ELSEWHERE, seen_generation=3)
    assert ended.do is Do.NOTHING
    assert (ended.life.state, ended.life.reason) == (State.NEEDS_REAUTH, Code.GRANT_REVOKED_ELSEWHERE)
    assert (ended.life.retry_at, ended.life.ask_at, ended.life.failures) == (None, None, 0)
    assert wake(ended.life, RULES[NEWEST_RULES]) is None
    assert step(ended.life, Event.FRESHNESS_ASKED).life.refusal is Code.GRANT_REVOKED_ELSEWHERE


def test_news_of_an_older_generation_leave_the_newer_grant_alone():
    """The refresh was under way when the news came, and the store took the newer grant first."""
    newer = step(ACTIVE, Event.GRANT_REFRESHED, news=GrantNews(generation=4, obtained_at=NOW)).life
    assert step(newer, Event.REVOKED_ELSEWHERE, seen_generation=3).life.state is State.ACTIVE
    assert step(newer, Event.REVOKED_ELSEWHERE, seen_generation=4).life.state is State.NEEDS_REAUTH


@pytest.mark.parametrize("state", [State.PENDING_CONSENT, State.REVOKING])
def test_no_other_state_is_left(state: State):
    life = ACTIVE.model_copy(update={"state": state})
    assert step(life, Event.REVOKED_ELSEWHERE, seen_generation=3).life.state is state
