"""A run that begins with what the store says knows what one knows that heard of it."""

from datetime import timedelta

import pytest

from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.connections.grant import Grant
from evergrant_server.core.ids import ConnectionId
from evergrant_server.core.integrations import RefreshRules
from evergrant_server.core.lifecycle.snapshot import Drift, find_drift, grant_result_of, state_from_store
from evergrant_server.core.messages.connection import ConnectionState, EventKind
from tests.fakes.rows import a_description
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


def test_a_first_token_is_exchanged_at_any_age_and_the_operator_s_days_are_known():
    life = revived(GRANT.model_copy(update={"short_lived": True}))
    assert life.min_age_s is None
    assert timer_of(life).at == NOW
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


# --- drift between the store and the workflow: one row per pair of states ------------------


A, N, P, R, X = (
    LifecycleState.ACTIVE,
    LifecycleState.NEEDS_REAUTH,
    LifecycleState.PENDING_CONSENT,
    LifecycleState.REVOKING,
    LifecycleState.REVOKED,
)

TABLE = [
    # stored, known, what it means
    ((A, 2), (A, 2), Drift.NONE),
    ((A, 2), (A, 1), Drift.NONE),  # its next step tells it
    ((A, 1), (A, 2), Drift.STORE_BEHIND),
    ((N, 1), (A, 2), Drift.STORE_BEHIND),
    ((P, 0), (A, 1), Drift.STORE_BEHIND),
    ((A, 1), (P, 0), Drift.WORKFLOW_BEHIND),
    ((A, 2), (N, 1), Drift.WORKFLOW_BEHIND),
    ((A, 1), (N, 1), Drift.NONE),  # the workflow saw the refusal; nothing is sent
    ((N, 1), (A, 1), Drift.NONE),  # its next refresh is told, and sends nothing
    ((R, 1), (A, 1), Drift.WORKFLOW_MISSED_REVOCATION),
    ((R, 2), (P, 0), Drift.WORKFLOW_MISSED_REVOCATION),
    ((R, 1), (R, 1), Drift.NONE),
    ((R, 1), (X, 1), Drift.NONE),
    ((A, 1), (R, 1), Drift.STORE_LOST_REVOCATION),
    ((A, 1), (X, 2), Drift.STORE_LOST_REVOCATION),
    ((X, 1), (R, 1), Drift.NONE),
]  # fmt: skip


@pytest.mark.parametrize(("stored", "known", "meaning"), TABLE)
def test_drift(stored: tuple[LifecycleState, int], known: tuple[LifecycleState, int], meaning: Drift):
    described = a_description(ConnectionId("con_1"), state=known[0], generation=known[1], next_step="")
    assert find_drift(connection(state=stored[0], generation=stored[1]), described) is meaning
