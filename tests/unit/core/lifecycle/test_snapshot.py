"""A run that begins with what the store says knows what one knows that heard of it."""

from datetime import timedelta

import pytest

from evergrant_server.core.connections.grant import Grant
from evergrant_server.core.integrations import RefreshRules
from evergrant_server.core.lifecycle.snapshot import grant_result_of, state_from_store
from evergrant_server.core.messages.connection import ConnectionState, EventKind
from tests.unit.core.lifecycle.steps import NOW, connection, step, timer_of

TEN_MINUTES = timedelta(minutes=10)
PICKY = RefreshRules(refresh_token_idle_s=86_400.0, min_age_s=570)
CONNECTION = connection(provider="exact-online", generation=1, refresh_policy="warm")
GRANT = Grant(generation=1, scopes=(), obtained_at=NOW, expires_at=NOW + TEN_MINUTES, refreshable=True)


def revived(
    grant: Grant = GRANT, rules: RefreshRules = PICKY, days: tuple[int, ...] | None = None
) -> ConnectionState:
    return state_from_store(CONNECTION, grant, rules, NOW + timedelta(minutes=1), days)


def heard(grant: Grant, rules: RefreshRules, days: tuple[int, ...] | None) -> ConnectionState:
    news = grant_result_of(CONNECTION, grant, rules, days)
    before = ConnectionState(policy=CONNECTION.refresh_policy, consent_deadline=NOW)
    return step(before, EventKind.CODE_EXCHANGE_ENDED, result=news).state


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("rules", [PICKY, RefreshRules(margin_s=30)])
def test_no_refresh_before_the_age_or_the_margin_at_which_the_provider_takes_one(
    rules: RefreshRules, share: float
):
    assert timer_of(revived(rules=rules), share).at >= NOW + timedelta(seconds=570)


def test_a_first_token_is_exchanged_at_any_age():
    life = revived(GRANT.model_copy(update={"short_lived": True}))
    assert life.min_age_s is None
    assert timer_of(life).at == NOW


def test_the_days_that_the_operator_set_are_known():
    assert revived(days=(9, 2)).announce_days == (9, 2)
    assert revived().announce_days is None


@pytest.mark.parametrize("rules", [PICKY, RefreshRules(margin_s=30), RefreshRules()])
@pytest.mark.parametrize("interim", [True, False])
def test_the_state_from_the_store_equals_the_state_after_the_event(rules: RefreshRules, interim: bool):
    end = NOW + timedelta(days=30)
    grant = GRANT.model_copy(update={"short_lived": interim, "refresh_expires_at": end})
    begun = revived(grant, rules, (9, 2))
    told = heard(grant, rules, (9, 2))
    since = {"installed_at", "end_known_at"}  # when it was heard: another moment, by another clock
    assert begun.model_dump(exclude=since) == told.model_dump(exclude=since)
