"""What the lives of other flows decide, where nobody brings a code."""

from datetime import UTC, datetime, timedelta

import pytest

from evergrant_server.core.connection import State
from evergrant_server.core.device import Poll
from evergrant_server.core.errors import Code
from evergrant_server.core.flow import Flow
from evergrant_server.core.ids import ConsentId
from evergrant_server.core.lifecycle import Do, next_step, wake
from evergrant_server.core.messages import Asked, Event, GrantNews, Happening, Life
from evergrant_server.core.schedule import RULES

RULES_1 = RULES[1]
NOW = datetime(2030, 1, 1, tzinfo=UTC)
ASKED = Asked(by="app:test")
CONSENT = ConsentId("cns_1")
PENDING = Life(flow=Flow.CLIENT_CREDENTIALS, consent_deadline=NOW + timedelta(days=7))
GRANTED = GrantNews(
    state=State.ACTIVE, generation=1, obtained_at=NOW, expires_at=NOW + timedelta(hours=1), refreshable=True
)


def step(life: Life, event: Event, at: datetime = NOW, **brings: object):
    return next_step(life, Happening(event=event, asked=ASKED, **brings), at, RULES_1)


def begun(life: Life = PENDING) -> Life:
    first = step(life, Event.CONSENT_GRANTED, consent_id=CONSENT)
    assert (first.do, first.life.waiting_consent) == (Do.MINT, CONSENT)
    return first.life


def failed(life: Life, code: Code, **more: object) -> Life:
    news = GrantNews(failure=code, **more)
    return step(life, Event.GRANT_MINTED, news=news, consent_id=CONSENT).life


def test_a_consent_that_nobody_gives_is_minted():
    after = step(begun(), Event.GRANT_MINTED, news=GRANTED, consent_id=CONSENT)
    assert (after.do, after.life.state, after.life.generation) == (Do.NOTHING, State.ACTIVE, 1)
    assert after.life.waiting_consent is None
    assert wake(after.life, RULES_1) is not None  # it is refreshed ahead, like any other


@pytest.mark.parametrize(
    ("code", "retry_after", "least"),
    [
        (Code.PROVIDER_UNREACHABLE, None, timedelta(seconds=1)),
        (Code.PROVIDER_RATE_LIMITED, 90.0, timedelta(seconds=90)),
        (Code.CLIENT_REJECTED, None, timedelta(minutes=15)),
    ],
)
def test_what_can_be_repaired_is_tried_again_by_itself(
    code: Code, retry_after: float | None, least: timedelta
):
    life = failed(begun(), code, retry_after=retry_after)
    assert (life.state, life.reason, life.failures) == (State.PENDING_CONSENT, code, 1)
    due = wake(life, RULES_1)
    assert due is not None
    assert due.at >= NOW + least
    again = step(life, Event.TIME_CAME, due.at)
    assert (again.do, again.life.waiting_consent) == (Do.MINT, CONSENT)


def test_a_refusal_for_good_waits_for_somebody():
    life = failed(begun(), Code.GRANT_REJECTED)
    assert (life.state, life.reason, life.waiting_consent) == (
        State.PENDING_CONSENT,
        Code.GRANT_REJECTED,
        None,
    )
    due = wake(life, RULES_1)
    assert due is not None
    assert due.why == "consent deadline"


def test_it_does_not_try_for_ever():
    life = failed(begun(), Code.CLIENT_REJECTED).model_copy(update={"retry_at": NOW + timedelta(days=9)})
    due = wake(life, RULES_1)
    assert due is not None
    ended = step(life, Event.TIME_CAME, due.at)
    assert (ended.do, ended.life.state) == (Do.END_CONSENT, State.CONSENT_EXPIRED)


def test_an_admin_who_repairs_it_is_not_kept_waiting():
    life = step(failed(begun(), Code.CLIENT_REJECTED), Event.PROVIDER_CHANGED).life
    due = wake(life, RULES_1)
    assert due is not None
    assert due.at == NOW


def test_asked_again_after_it_was_lost_it_is_tried_until_it_comes():
    lost = PENDING.model_copy(update={"state": State.NEEDS_REAUTH, "generation": 4})
    life = failed(begun(lost), Code.PROVIDER_ERROR)
    due = wake(life, RULES_1)
    assert due is not None
    assert step(life, Event.TIME_CAME, due.at).do is Do.MINT


def test_asked_again_while_it_works_a_failure_changes_nothing():
    active = PENDING.model_copy(update={"state": State.ACTIVE, "generation": 4})
    life = failed(begun(active), Code.PROVIDER_ERROR)
    assert (life.state, life.reason, life.failures, life.retry_at) == (State.ACTIVE, None, 0, None)
    assert life.refusal is Code.PROVIDER_ERROR


# --- device codes (RFC 8628) ------------------------------------------------------------

DEVICE = Life(flow=Flow.DEVICE_CODE, consent_deadline=NOW + timedelta(hours=1))


def polled(life: Life, poll: Poll, at: datetime = NOW, interval_s: float | None = None) -> Life:
    news = GrantNews(poll=poll, interval_s=interval_s)
    return step(life, Event.GRANT_MINTED, at, news=news, consent_id=CONSENT).life


def asked_for_a_code() -> Life:
    first = step(DEVICE, Event.CONSENT_GRANTED, consent_id=CONSENT)
    assert first.do is Do.POLL
    return polled(first.life, Poll.BEGUN, interval_s=5.0)


@pytest.mark.parametrize(
    ("said", "interval_s"),
    [
        ([], 5),
        ([Poll.PENDING, Poll.PENDING], 5),
        ([Poll.SLOW_DOWN], 10),
        ([Poll.SLOW_DOWN, Poll.PENDING], 10),  # for good: "for this and all subsequent requests"
        ([Poll.SLOW_DOWN, Poll.SLOW_DOWN], 15),
        ([Poll.UNHEARD], 10),
        ([Poll.UNHEARD] * 9, 60),
        ([Poll.UNHEARD] * 9 + [Poll.SLOW_DOWN], 65),
    ],
)
def test_rfc8628_3_5_how_often_is_asked(said: list[Poll], interval_s: float):
    life = asked_for_a_code()
    for poll in said:
        life = polled(life, poll)
    due = wake(life, RULES_1)
    assert due is not None
    assert (due.at, due.why) == (NOW + timedelta(seconds=interval_s), "ask whether the code was approved")
    assert step(life, Event.TIME_CAME, due.at).do is Do.POLL
    assert step(life, Event.TIME_CAME, due.at - timedelta(seconds=1)).do is Do.NOTHING


def test_rfc8628_3_5_a_server_that_names_no_interval_is_asked_every_five_seconds():
    life = polled(begun_device := step(DEVICE, Event.CONSENT_GRANTED, consent_id=CONSENT).life, Poll.BEGUN)
    assert begun_device.waiting_consent == CONSENT
    due = wake(life, RULES_1)
    assert due is not None
    assert due.at == NOW + timedelta(seconds=5)


def test_an_approved_code_ends_the_asking():
    after = step(asked_for_a_code(), Event.GRANT_MINTED, news=GRANTED, consent_id=CONSENT).life
    assert (after.state, after.waiting_consent, after.poll_at) == (State.ACTIVE, None, None)


@pytest.mark.parametrize(
    ("code", "state"),
    [(Code.CONSENT_DENIED, State.DENIED), (Code.CONSENT_EXPIRED, State.CONSENT_EXPIRED)],
)
def test_a_code_that_is_over_ends_a_connection_that_waits_for_it(code: Code, state: State):
    news = GrantNews(failure=code, over=True)
    ended = step(asked_for_a_code(), Event.GRANT_MINTED, news=news, consent_id=CONSENT)
    assert (ended.do, ended.denied) == (Do.END_CONSENT, code is Code.CONSENT_DENIED)
    assert (ended.life.state, ended.life.reason) == (state, code)


def test_a_new_code_for_a_connection_that_works_disturbs_nothing():
    active = DEVICE.model_copy(
        update={
            "state": State.ACTIVE,
            "generation": 4,
            "obtained_at": NOW,
            "expires_at": NOW + timedelta(hours=1),
            "refreshable": True,
        }
    )
    refresh = wake(active, RULES_1)
    life = polled(step(active, Event.CONSENT_GRANTED, consent_id=CONSENT).life, Poll.BEGUN)
    due = wake(life, RULES_1)
    assert due is not None
    assert step(life, Event.TIME_CAME, due.at).do is Do.POLL
    news = GrantNews(failure=Code.CONSENT_DENIED, over=True)
    after = step(life, Event.GRANT_MINTED, news=news, consent_id=CONSENT).life
    assert (after.state, after.failures) == (State.ACTIVE, 0)
    assert wake(after, RULES_1) == refresh


def test_any_other_error_stops_the_asking():
    news = GrantNews(failure=Code.CLIENT_REJECTED, over=True)
    after = step(asked_for_a_code(), Event.GRANT_MINTED, news=news, consent_id=CONSENT).life
    due = wake(after, RULES_1)
    assert due is not None
    assert (after.reason, due.why) == (Code.CLIENT_REJECTED, "consent deadline")


def test_a_code_that_could_not_be_got_is_asked_for_again():
    news = GrantNews(failure=Code.PROVIDER_UNREACHABLE)
    life = step(DEVICE, Event.CONSENT_GRANTED, consent_id=CONSENT).life
    after = step(life, Event.GRANT_MINTED, news=news, consent_id=CONSENT).life
    due = wake(after, RULES_1)
    assert due is not None
    assert step(after, Event.TIME_CAME, due.at).do is Do.POLL
