"""The decisions a reader would look up: one row per situation."""

from datetime import UTC, datetime, timedelta

import pytest

from evergrant_server.core.connection import Connection, IllegalMove, Move, Revocation, State, moved
from evergrant_server.core.errors import Code
from evergrant_server.core.ids import ConnectionId, ConsentId, IntegrationId, Tenant
from evergrant_server.core.lifecycle import Do, ensure_fresh_refusal, next_step, wake
from evergrant_server.core.messages import Asked, Event, GrantNews, Happening, Life, RevocationNews
from evergrant_server.core.schedule import RULES

RULES_1 = RULES[1]
NOW = datetime(2030, 1, 1, tzinfo=UTC)
ASKED = Asked(by="app:test")
HOUR = timedelta(hours=1)
ACTIVE = Life(
    state=State.ACTIVE, generation=3, obtained_at=NOW, expires_at=NOW + HOUR, refreshable=True, idle_s=None
)


def step(life: Life, event: Event, at: datetime = NOW, **brings: object):
    return next_step(life, Happening(event=event, asked=ASKED, **brings), at, RULES_1)


def test_adaptive_looks_whether_the_generation_was_leased_before_it_refreshes_ahead():
    due = wake(ACTIVE, RULES_1)
    assert due is not None
    assert due.at == NOW + HOUR - timedelta(minutes=5)
    assert step(ACTIVE, Event.TIME_CAME, due.at).do is Do.REFRESH_IF_LEASED


def test_an_idle_connection_costs_nothing_until_its_refresh_token_would_die():
    idle = step(ACTIVE, Event.GRANT_REFRESHED, news=GrantNews(not_leased=True)).life
    assert wake(idle, RULES_1) is None
    kept = idle.model_copy(update={"idle_s": 86_400.0 * 60})
    due = wake(kept, RULES_1)
    assert due is not None
    assert due.at == NOW + timedelta(days=30)
    assert step(kept, Event.TIME_CAME, due.at).do is Do.REFRESH


@pytest.mark.parametrize(("policy", "do"), [("warm", Do.REFRESH), ("adaptive", Do.REFRESH_IF_LEASED)])
def test_policies_that_refresh_ahead(policy: str, do: Do):
    life = ACTIVE.model_copy(update={"policy": policy})
    due = wake(life, RULES_1)
    assert due is not None
    assert step(life, Event.TIME_CAME, due.at).do is do


def test_on_demand_never_wakes_for_an_expiry():
    assert wake(ACTIVE.model_copy(update={"policy": "on_demand"}), RULES_1) is None


def test_an_outage_costs_no_call_per_caller():
    failed = step(ACTIVE, Event.GRANT_REFRESHED, news=GrantNews(failure=Code.PROVIDER_UNREACHABLE)).life
    assert failed.state is State.ACTIVE
    assert failed.failures == 1
    asked = step(failed, Event.FRESHNESS_ASKED, seen_generation=3)
    assert asked.do is Do.NOTHING
    assert asked.life.refusal is Code.PROVIDER_UNREACHABLE
    assert failed.retry_at is not None
    assert step(failed, Event.FRESHNESS_ASKED, failed.retry_at, seen_generation=3).do is Do.REFRESH


def test_retry_after_is_honoured_and_backoff_grows():
    life, waits = ACTIVE, []
    for _ in range(12):
        life = step(life, Event.GRANT_REFRESHED, news=GrantNews(failure=Code.PROVIDER_ERROR)).life
        assert life.retry_at is not None
        waits.append((life.retry_at - NOW).total_seconds())
    assert waits == sorted(waits)
    assert waits[-1] <= 30 * 60
    told = step(ACTIVE, Event.GRANT_REFRESHED, news=GrantNews(failure=Code.PROVIDER_ERROR, retry_after=500))
    assert told.life.retry_at == NOW + timedelta(seconds=500)


def test_a_refused_grant_needs_its_subject_and_is_not_tried_again():
    refused = step(ACTIVE, Event.GRANT_REFRESHED, news=GrantNews(failure=Code.GRANT_REJECTED)).life
    assert (refused.state, refused.reason) == (State.NEEDS_REAUTH, Code.GRANT_REJECTED)
    assert wake(refused, RULES_1) is None
    assert step(refused, Event.FRESHNESS_ASKED, seen_generation=3).do is Do.NOTHING


def test_a_grant_that_cannot_be_refreshed_is_looked_at_when_it_expires():
    life = ACTIVE.model_copy(update={"refreshable": False})
    due = wake(life, RULES_1)
    assert due is not None
    assert due.at == life.expires_at
    assert step(life, Event.TIME_CAME, due.at).do is Do.REFRESH


def test_a_token_that_never_expires_needs_no_timer_and_no_refresh():
    life = ACTIVE.model_copy(update={"expires_at": None, "refreshable": False})
    assert wake(life, RULES_1) is None
    assert step(life, Event.FRESHNESS_ASKED, seen_generation=3).do is Do.NOTHING


def test_a_token_that_lands_while_revoking_is_kept_only_to_be_revoked():
    news = GrantNews(state=State.REVOKING, generation=4, obtained_at=NOW, expires_at=NOW + HOUR)
    landed = step(ACTIVE, Event.GRANT_REFRESHED, news=news)
    assert (landed.life.state, landed.do) == (State.REVOKING, Do.REVOKE)


def test_revocation_is_never_given_up():
    life = step(ACTIVE, Event.REVOKE_ASKED, reason="left the company").life
    for _ in range(50):
        life = step(life, Event.REVOCATION_TRIED, revocation=RevocationNews(failure=Code.PROVIDER_ERROR)).life
        due = wake(life, RULES_1)
        assert due is not None
        assert due.at - NOW <= timedelta(hours=1.25)
        assert step(life, Event.TIME_CAME, due.at).do is Do.REVOKE
    ended = step(life, Event.REVOCATION_TRIED, revocation=RevocationNews(revocation=Revocation.CONFIRMED))
    assert ended.life.state is State.REVOKED


def test_a_code_is_exchanged_once_however_often_its_signal_comes():
    life = Life(consent_deadline=NOW + HOUR)
    first = step(life, Event.CONSENT_GRANTED, consent_id=ConsentId("cns_1"))
    assert first.do is Do.EXCHANGE_CODE
    assert step(first.life, Event.CONSENT_GRANTED, consent_id=ConsentId("cns_1")).do is Do.NOTHING


def test_a_failed_exchange_leaves_the_consent_open():
    news = GrantNews(failure=Code.CLIENT_REJECTED)
    after = step(Life(consent_deadline=NOW + HOUR), Event.CODE_EXCHANGED, news=news).life
    assert after.state is State.PENDING_CONSENT


def test_the_consent_deadline_leaves_a_callback_at_the_last_second_its_minute():
    life = Life(consent_deadline=NOW + HOUR)
    due = wake(life, RULES_1)
    assert due is not None
    assert due.at == NOW + HOUR + RULES_1.consent_grace
    ended = step(life, Event.TIME_CAME, due.at)
    assert (ended.life.state, ended.do, ended.denied) == (State.CONSENT_EXPIRED, Do.END_CONSENT, False)


def test_a_declined_reconnect_leaves_what_there_was():
    assert step(ACTIVE, Event.CONSENT_DENIED).life.state is State.ACTIVE


def test_a_repaired_client_is_tried_at_once():
    failed = step(ACTIVE, Event.GRANT_REFRESHED, news=GrantNews(failure=Code.CLIENT_REJECTED)).life
    assert failed.retry_at == NOW + timedelta(minutes=15)
    assert step(failed, Event.PROVIDER_CHANGED).life.retry_at == NOW


def test_ensure_fresh_is_refused_when_the_store_has_the_answer():
    assert ensure_fresh_refusal(ACTIVE, 2) is Code.STORE_CONFLICT
    assert ensure_fresh_refusal(ACTIVE, 3) is None
    assert ensure_fresh_refusal(Life(), 0) is Code.CONSENT_REQUIRED


def test_final_states_have_no_way_out():
    for state in State:
        for move in Move:
            if state.final:
                with pytest.raises(IllegalMove):
                    moved(state, move)


def test_a_refresh_that_brings_nothing_newer_is_not_due_again_at_once():
    """A grant that can't be refreshed, looked at by a clock that is behind."""
    expired = NOW + HOUR
    life = ACTIVE.model_copy(update={"refreshable": False})
    news = GrantNews(state=State.ACTIVE, generation=3, obtained_at=NOW, expires_at=expired)
    after = step(life, Event.GRANT_REFRESHED, expired, news=news).life
    due = wake(after, RULES_1)
    assert due is not None
    assert due.at >= expired + RULES_1.first_backoff
    early = step(life, Event.GRANT_REFRESHED, NOW, news=news).life
    again = wake(early, RULES_1)
    assert again is not None
    assert again.at == expired


def test_what_waits_for_an_unknown_outcome_looks_again_when_the_token_is_over():
    life = ACTIVE.model_copy(update={"failures": 12})
    news = GrantNews(failure=Code.REFRESH_PENDING)
    nearly = NOW + HOUR - timedelta(seconds=30)
    assert step(life, Event.GRANT_REFRESHED, nearly, news=news).life.retry_at == (
        NOW + HOUR + RULES_1.first_backoff
    )
    over = step(life, Event.GRANT_REFRESHED, NOW + HOUR, news=news).life
    assert over.retry_at is not None
    assert over.retry_at > NOW + HOUR + timedelta(minutes=10)


def test_a_consent_whose_end_the_store_contradicts_goes_on():
    over = step(Life(consent_deadline=NOW), Event.TIME_CAME, NOW + HOUR).life
    assert over.state is State.CONSENT_EXPIRED
    revoking = step(over, Event.CONSENT_STANDS, news=GrantNews(state=State.REVOKING))
    assert (revoking.life.state, revoking.do) == (State.REVOKING, Do.REVOKE)
    waits = GrantNews(state=State.PENDING_CONSENT, consent_id=ConsentId("cns_1"))
    exchanging = step(over, Event.CONSENT_STANDS, news=waits)
    assert (exchanging.life.state, exchanging.do) == (State.PENDING_CONSENT, Do.EXCHANGE_CODE)
    assert exchanging.life.reason is None
    granted = GrantNews(state=State.ACTIVE, generation=1, obtained_at=NOW, expires_at=NOW + HOUR)
    assert step(over, Event.CONSENT_STANDS, news=granted).life.state is State.ACTIVE


def test_revoked_stays_revoked_whatever_stands():
    revoked = Life(state=State.REVOKED, reason=Code.CONNECTION_REVOKED)
    stands = GrantNews(state=State.PENDING_CONSENT, consent_id=ConsentId("cns_1"))
    after = step(revoked, Event.CONSENT_STANDS, news=stands)
    assert (after.life.state, after.do) == (State.REVOKED, Do.NOTHING)


def test_a_grant_that_lands_while_revoking_keeps_the_reason():
    connection = Connection(
        tenant=Tenant("acme"),
        id=ConnectionId("con_1"),
        integration_id=IntegrationId("int_1"),
        integration="crm",
        provider="generic",
        subject="user-1",
        state=State.ACTIVE,
        created_at=NOW,
        changed_at=NOW,
        consent_deadline=NOW,
    )
    revoking = connection.revoke_asked("left", NOW)
    for landed in (revoking.refreshed(NOW), revoking.granted(NOW)):
        assert (landed.state, landed.reason) == (State.REVOKING, Code.CONNECTION_REVOKED)
    rejected = connection.rejected(Code.GRANT_REJECTED, NOW)
    assert rejected.granted(NOW).reason is None
