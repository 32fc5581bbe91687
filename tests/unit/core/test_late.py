"""An answer that came too late: verified where nobody has a grant, and never forgotten while unsure."""

from datetime import UTC, datetime, timedelta

import pytest

from evergrant_server.core.connection import State
from evergrant_server.core.errors import Code
from evergrant_server.core.grant import TokenSet
from evergrant_server.core.ids import AttemptId
from evergrant_server.core.lifecycle import Do, Step, next_step, wake
from evergrant_server.core.messages import Asked, Event, GrantNews, Happening, Life
from evergrant_server.core.schedule import NEWEST_RULES, RULES
from evergrant_server.core.secret import Secret

RULES_NOW = RULES[NEWEST_RULES]
NOW = datetime(2030, 1, 1, tzinfo=UTC)
ASKED = Asked(by="app:test")
LATE = AttemptId("att_1")
GIVEN_UP = Life(state=State.NEEDS_REAUTH, generation=3, reason=Code.OUTCOME_UNKNOWN)


def step(life: Life, event: Event, at: datetime = NOW, **brings: object) -> Step:
    return next_step(life, Happening(event=event, asked=ASKED, **brings), at, RULES_NOW)


def came(life: Life) -> Step:
    return step(life, Event.ANSWER_CAME_LATE, attempt_id=LATE)


@pytest.mark.parametrize("state", list(State))
def test_it_is_verified_where_nobody_has_a_grant(state: State):
    found = came(GIVEN_UP.model_copy(update={"state": state}))
    wanted = state in (State.PENDING_CONSENT, State.NEEDS_REAUTH)
    assert (found.do is Do.VERIFY_LATE, found.life.late == LATE) == (wanted, wanted)
    assert found.life.state is state, "nothing is believed yet"


def test_what_works_is_a_grant():
    news = GrantNews(state=State.ACTIVE, generation=4, obtained_at=NOW, expires_at=NOW + timedelta(hours=1))
    life = step(came(GIVEN_UP).life, Event.LATE_ANSWER_TRIED, news=news).life
    assert (life.state, life.generation, life.reason, life.late) == (State.ACTIVE, 4, None, None)


@pytest.mark.parametrize("code", [Code.GRANT_REJECTED, Code.OUTCOME_UNKNOWN])
def test_what_is_refused_changes_nothing(code: Code):
    after = step(came(GIVEN_UP).life, Event.LATE_ANSWER_TRIED, news=GrantNews(failure=code))
    assert after == Step(GIVEN_UP)
    assert wake(after.life, RULES_NOW) is None


@pytest.mark.parametrize("state", [State.PENDING_CONSENT, State.NEEDS_REAUTH])
def test_an_outage_says_nothing_about_it(state: State):
    life = came(GIVEN_UP.model_copy(update={"state": state})).life
    for failures in (1, 2):
        news = GrantNews(failure=Code.PROVIDER_ERROR)
        life = step(life, Event.LATE_ANSWER_TRIED, news=news).life
        assert (life.late, life.failures, life.state) == (LATE, failures, state)
        due = wake(life, RULES_NOW)
        assert due is not None
        assert step(life, Event.TIME_CAME, due.at).do is Do.VERIFY_LATE


def test_a_consent_deadline_is_kept_meanwhile():
    deadline = NOW + timedelta(hours=1)
    pending = Life(consent_deadline=deadline)
    life = step(came(pending).life, Event.LATE_ANSWER_TRIED, news=GrantNews(failure=Code.PROVIDER_ERROR)).life
    assert step(life, Event.TIME_CAME, deadline + RULES_NOW.consent_grace).do is Do.VERIFY_LATE
    life = life.model_copy(update={"retry_at": deadline + timedelta(days=1)})
    assert step(life, Event.TIME_CAME, deadline + RULES_NOW.consent_grace).do is Do.END_CONSENT


def test_a_revocation_in_between_wins():
    news = GrantNews(state=State.REVOKING)
    revoking = step(came(GIVEN_UP).life, Event.LATE_ANSWER_TRIED, news=news)
    assert (revoking.life.state, revoking.do) == (State.REVOKING, Do.REVOKE)


def test_tokens_on_their_way_to_a_sealer_come_back_the_same():
    tokens = TokenSet(
        access_token=Secret("a"),
        refresh_token=Secret("r"),
        expires_in=60,
        scopes=("read",),
        metadata={"x": 1},
    )
    assert TokenSet.from_secret(tokens.as_secret()) == tokens
    bare = TokenSet(access_token=Secret("a"), scopes=(), expires_in=0)
    assert TokenSet.from_secret(bare.as_secret()) == bare
