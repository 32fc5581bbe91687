"""An answer that came too late: verified where nobody has a grant, and never forgotten while unsure."""

from datetime import UTC, datetime, timedelta

import pytest

from evergrant_server.core.connection import State
from evergrant_server.core.errors import Code
from evergrant_server.core.flow import Flow
from evergrant_server.core.grant import TokenSet
from evergrant_server.core.ids import AttemptId, ConsentId
from evergrant_server.core.lifecycle import Do, Step, next_step, wake
from evergrant_server.core.messages import Asked, Event, GrantNews, Happening, Life
from evergrant_server.core.schedule import NEWEST_RULES, RULES, Rules
from evergrant_server.core.secret import Secret

RULES_NOW = RULES[NEWEST_RULES]
NOW = datetime(2030, 1, 1, tzinfo=UTC)
ASKED = Asked(by="app:test")
LATE = AttemptId("att_1")
GIVEN_UP = Life(state=State.NEEDS_REAUTH, generation=3, reason=Code.OUTCOME_UNKNOWN)


def step(life: Life, event: Event, at: datetime = NOW, rules: Rules = RULES_NOW, **brings: object) -> Step:
    return next_step(life, Happening(event=event, asked=ASKED, **brings), at, rules)


def came(life: Life, rules: Rules = RULES_NOW) -> Step:
    return step(life, Event.ANSWER_CAME_LATE, rules=rules, attempt_id=LATE)


@pytest.mark.parametrize("state", list(State))
def test_it_is_verified_where_nobody_has_a_grant(state: State):
    found = came(GIVEN_UP.model_copy(update={"state": state}), RULES[6])
    wanted = state in (State.PENDING_CONSENT, State.NEEDS_REAUTH)
    assert (found.do is Do.VERIFY_LATE, found.life.late == LATE) == (wanted, wanted)
    assert found.life.state is state, "nothing is believed yet"


def test_beside_a_grant_that_works_it_is_asked_what_holds():
    """A journal brought tokens that nobody could read at first, and they are installed already."""
    active = Life(state=State.ACTIVE, generation=3, failures=2, retry_at=NOW, reason=Code.PROVIDER_ERROR)
    asked = came(active)
    assert (asked.do, asked.life.late, asked.life.failures) == (Do.VERIFY_LATE, LATE, 2)
    news = GrantNews(state=State.ACTIVE, generation=4, obtained_at=NOW, expires_at=NOW + timedelta(hours=1))
    life = step(asked.life, Event.LATE_ANSWER_TRIED, news=news).life
    assert (life.generation, life.failures, life.late) == (4, 0, None)
    for nothing_newer in (news.model_copy(update={"generation": 3}), GrantNews(failure=Code.PROVIDER_ERROR)):
        assert step(asked.life, Event.LATE_ANSWER_TRIED, news=nothing_newer) == Step(active)
    assert came(active, RULES[6]) == Step(active), "as histories have it"


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
        assert (life.late, life.late_failures, life.state) == (LATE, failures, state)
        due = wake(life, RULES_NOW)
        assert due is not None
        assert step(life, Event.TIME_CAME, due.at).do is Do.VERIFY_LATE


def test_a_consent_deadline_is_kept_meanwhile():
    deadline = NOW + timedelta(hours=1)
    pending = Life(consent_deadline=deadline)
    life = step(came(pending).life, Event.LATE_ANSWER_TRIED, news=GrantNews(failure=Code.PROVIDER_ERROR)).life
    assert step(life, Event.TIME_CAME, deadline + RULES_NOW.consent_grace).do is Do.VERIFY_LATE
    life = life.model_copy(update={"late_at": deadline + timedelta(days=1)})
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


def test_a_late_answer_keeps_every_fact_of_its_reply():
    """The hour too, that every server with a clock says (RFC 9110 section 6.6.1)."""
    facts = {
        "access_token": Secret("at"),
        "token_type": "DPoP",
        "refresh_token": Secret("rt"),
        "id_token": Secret("id"),
        "expires_in": 3600.0,
        "refresh_expires_in": 86_400.0,
        "scopes": ("read",),
        "metadata": {"site": "one"},
        "said_at": NOW,
    }
    chain = TokenSet(**facts)
    tokens = TokenSet(**facts, further={"user": chain})
    assert set(TokenSet.model_fields) == {*facts, "further"}, "a new fact is kept as well"
    assert TokenSet.from_secret(tokens.as_secret()) == tokens


REFUSED = GrantNews(failure=Code.GRANT_REJECTED)
DOWN = GrantNews(failure=Code.PROVIDER_ERROR)


def test_when_one_is_refused_the_next_that_is_kept_is_tried():
    """A is retried through an outage when B comes and is refused: A may be the newest token there is."""
    other = AttemptId("att_2")
    waiting = step(came(GIVEN_UP).life, Event.LATE_ANSWER_TRIED, news=DOWN).life
    newer = step(waiting, Event.ANSWER_CAME_LATE, attempt_id=other)
    assert (newer.do, newer.life.late) == (Do.VERIFY_LATE, other)
    news = REFUSED.model_copy(update={"late_next": LATE})
    again = step(newer.life, Event.LATE_ANSWER_TRIED, news=news)
    assert (again.do, again.life.late) == (Do.VERIFY_LATE, LATE)
    assert step(again.life, Event.LATE_ANSWER_TRIED, news=REFUSED) == Step(GIVEN_UP)


def test_one_that_is_moot_is_not_tried_again_whatever_the_connection_waits_for():
    news = GrantNews(state=State.PENDING_CONSENT, failure=Code.PROVIDER_ERROR, over=True)
    after = step(came(Life()).life, Event.LATE_ANSWER_TRIED, news=news)
    assert after == Step(Life())


def awaiting_a_first_token() -> Life:
    """A grant was given up, and minting another is tried again later."""
    minting = GIVEN_UP.model_copy(update={"flow": Flow.CLIENT_CREDENTIALS})
    consent = ConsentId("con_1")
    minting = step(minting, Event.CONSENT_GRANTED, consent_id=consent).life
    life = step(minting, Event.GRANT_MINTED, news=DOWN, consent_id=consent).life
    due = wake(life, RULES_NOW)
    assert due is not None
    assert due.mints
    return life


@pytest.mark.parametrize("before", [[], [DOWN], [DOWN, DOWN]])
def test_a_first_token_is_asked_for_again_whatever_becomes_of_a_late_answer(before: list[GrantNews]):
    minting = awaiting_a_first_token()
    life = came(minting).life
    for news in [*before, REFUSED]:
        life = step(life, Event.LATE_ANSWER_TRIED, news=news).life
    assert life == minting.model_copy(update={"refusal": None})
    due = wake(life, RULES_NOW)
    assert due is not None
    assert step(life, Event.TIME_CAME, due.at).do is Do.MINT


def test_a_late_answer_is_verified_again_whatever_becomes_of_a_first_token():
    life = step(came(awaiting_a_first_token()).life, Event.LATE_ANSWER_TRIED, news=DOWN).life
    over = GrantNews(failure=Code.CONSENT_EXPIRED, over=True)
    life = step(life, Event.GRANT_MINTED, news=over, consent_id=ConsentId("con_1")).life
    due = wake(life, RULES_NOW)
    assert due is not None
    assert step(life, Event.TIME_CAME, due.at).do is Do.VERIFY_LATE


def test_a_repair_has_both_tried_again():
    life = step(
        came(GIVEN_UP).life, Event.LATE_ANSWER_TRIED, news=GrantNews(failure=Code.CLIENT_REJECTED)
    ).life
    due = wake(step(life, Event.PROVIDER_CHANGED).life, RULES_NOW)
    assert due is not None
    assert due.at == NOW


def test_a_life_from_before_they_were_apart_goes_on():
    """Its late answer waits at `retry_at`, as versions 1 and 2 of the rules had it."""
    old = step(came(GIVEN_UP, RULES[2]).life, Event.LATE_ANSWER_TRIED, rules=RULES[2], news=DOWN).life
    assert old.retry_at is not None
    assert wake(old, RULES_NOW) == wake(old, RULES[2])
    tried = step(old, Event.TIME_CAME, old.retry_at)
    assert tried.do is Do.VERIFY_LATE
    later = step(tried.life, Event.LATE_ANSWER_TRIED, old.retry_at, news=DOWN).life
    due = wake(later, RULES_NOW)
    assert due is not None
    assert due.at > old.retry_at
    assert wake(step(later, Event.LATE_ANSWER_TRIED, news=REFUSED).life, RULES_NOW) is None
