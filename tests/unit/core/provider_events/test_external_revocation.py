"""Reports of a provider: what they change about a connection, and what they never change."""

from datetime import datetime, timedelta

import pytest

from evergrant_server.core.connections.connection import Connection, LifecycleState, is_leasable
from evergrant_server.core.connections.grant import FollowUp, Grant
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.lifecycle.command import Command
from evergrant_server.core.lifecycle.timers import next_timer
from evergrant_server.core.messages.connection import EventKind
from evergrant_server.core.provider_events import (
    Certainty,
    IntrospectionFinding,
    ProviderReport,
    ReportDecision,
    ReportSource,
    judge_introspection,
    judge_report,
)
from tests.unit.core.lifecycle import steps
from tests.unit.core.lifecycle.steps import ACTIVE, HOUR, NOW, step

GRANT = Grant(generation=3, scopes=("read",), obtained_at=NOW, expires_at=NOW + HOUR, refreshable=True)


def connection(state: LifecycleState = LifecycleState.ACTIVE, reason: ErrorCode | None = None) -> Connection:
    return steps.connection(state=state, reason=reason, generation=3)


def news(weight: Certainty = Certainty.ENDED, at: datetime | None = None, generation: int | None = None):
    said = {"source": ReportSource.SECURITY_EVENT, "kind": "tokens-revoked", "certainty": weight}
    return ProviderReport(**said, at=at, generation=generation)


@pytest.mark.parametrize(
    ("told", "verdict"),
    [
        (news(), ReportDecision.ENDED),
        (news(at=NOW + HOUR), ReportDecision.ENDED),
        (news(at=NOW), ReportDecision.ENDED),
        (news(at=NOW - timedelta(seconds=1)), ReportDecision.OUTDATED),
        (news(generation=2), ReportDecision.OUTDATED),
        (news(generation=3), ReportDecision.ENDED),
        (news(Certainty.SUSPECTED), ReportDecision.REFRESH_REQUESTED),
        (news(Certainty.SUSPECTED, at=NOW - HOUR), ReportDecision.OUTDATED),
    ],
)
def test_a_report_about_an_active_connection(told: ProviderReport, verdict: ReportDecision):
    assert judge_report(connection(), GRANT, told) is verdict


@pytest.mark.parametrize(
    "state", [it for it in LifecycleState if it not in (LifecycleState.ACTIVE, LifecycleState.NEEDS_REAUTH)]
)
def test_a_report_changes_nothing_without_a_grant(state: LifecycleState):
    assert judge_report(connection(state), GRANT, news()) is ReportDecision.NOTHING_HELD
    assert judge_report(connection(), None, news()) is ReportDecision.NOTHING_HELD


def test_a_connection_in_needs_reauth_stops_serving_its_last_token():
    """Its access token is served while it is valid, until the provider says that it is dead."""
    waiting = connection(LifecycleState.NEEDS_REAUTH, ErrorCode.GRANT_REJECTED)
    assert judge_report(waiting, GRANT, news()) is ReportDecision.ENDED
    assert judge_report(waiting, GRANT, news(Certainty.SUSPECTED)) is ReportDecision.NOTHING_HELD
    known = connection(LifecycleState.NEEDS_REAUTH, ErrorCode.GRANT_REVOKED_ELSEWHERE)
    assert judge_report(known, GRANT, news()) is ReportDecision.NOTHING_HELD


def test_a_suspicion_without_a_refresh_token_ends_no_grant():
    unrefreshable = GRANT.model_copy(update={"refreshable": False})
    assert judge_report(connection(), unrefreshable, news(Certainty.SUSPECTED)) is ReportDecision.UNTESTABLE


def test_what_was_revoked_elsewhere_or_waits_for_a_choice_is_not_leased():
    assert is_leasable(LifecycleState.ACTIVE, None, FollowUp.LOOKING_UP)
    for state, reason in (
        (LifecycleState.ACTIVE, None),
        (LifecycleState.NEEDS_REAUTH, ErrorCode.GRANT_REJECTED),
    ):
        assert not is_leasable(state, reason, FollowUp.CHOOSING)
    assert is_leasable(LifecycleState.ACTIVE, None)
    assert is_leasable(LifecycleState.NEEDS_REAUTH, ErrorCode.GRANT_REJECTED)
    for ended in (ErrorCode.GRANT_REVOKED_ELSEWHERE, ErrorCode.RECONSENT_REQUIRED):
        assert not is_leasable(LifecycleState.NEEDS_REAUTH, ended)
    assert not is_leasable(LifecycleState.REVOKING, None)
    assert is_leasable(LifecycleState.ACTIVE, None, reported=True), "nothing confirms the report"
    assert not is_leasable(LifecycleState.NEEDS_REAUTH, ErrorCode.GRANT_REJECTED, reported=True)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (ReportSource.INTROSPECTION, ErrorCode.GRANT_REVOKED_ELSEWHERE),
        (ReportSource.CAMPAIGN, ErrorCode.RECONSENT_REQUIRED),
    ],
)
def test_the_workflow_waits_for_the_subject_and_tries_nothing(source: ReportSource, reason: ErrorCode):
    failing = ACTIVE.model_copy(update={"failures": 2, "retry_at": NOW, "caller_retry_at": NOW})
    ended = step(failing, EventKind.REVOKED_AT_PROVIDER, seen_generation=3, reason=source)
    assert ended.command is Command.NOTHING
    assert ended.state.state is LifecycleState.NEEDS_REAUTH
    assert ended.state.reason is reason
    assert (ended.state.retry_at, ended.state.caller_retry_at, ended.state.failures) == (None, None, 0)
    assert next_timer(ended.state, steps.NEWEST) is None
    assert step(ended.state, EventKind.REFRESH_REQUESTED).state.refusal is reason


# --- introspection: what is believed, and about which token ---------------------------------


@pytest.mark.parametrize(
    ("refresh", "access", "answers", "finding"),
    [
        (True, None, False, IntrospectionFinding.REFRESH_TOKEN_ACTIVE),
        (False, None, True, IntrospectionFinding.REFRESH_TOKEN_INACTIVE),
        (False, True, False, IntrospectionFinding.ACCESS_TOKEN_ACTIVE),
        (False, False, False, IntrospectionFinding.ACCESS_TOKEN_INACTIVE),
        (False, None, False, IntrospectionFinding.NOTHING_LEARNT),
        (None, True, False, IntrospectionFinding.ACCESS_TOKEN_ACTIVE),
        (None, False, True, IntrospectionFinding.ACCESS_TOKEN_INACTIVE),
        (None, None, True, IntrospectionFinding.NOTHING_LEARNT),
    ],
)
def test_a_table(refresh: bool | None, access: bool | None, answers: bool, finding: IntrospectionFinding):
    assert judge_introspection(refresh, access, refresh_answers=answers) is finding


def test_only_a_refresh_token_condemns():
    weights = {it: it.certainty for it in IntrospectionFinding if it.certainty is not None}
    assert weights == {
        IntrospectionFinding.REFRESH_TOKEN_INACTIVE: Certainty.ENDED,
        IntrospectionFinding.ACCESS_TOKEN_INACTIVE: Certainty.SUSPECTED,
    }
