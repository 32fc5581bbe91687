"""What the console says of connections, integrations and providers: pure functions of what the API shows."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from evergrant_server.console.catalogue import evidence_of, search
from evergrant_server.console.next_steps import TOKEN_NOTES, cause_of, findings, step_of, turn_of
from evergrant_server.console.times import ago
from evergrant_server.core.connections.binding import Binding
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.connections.token_state import TokenState
from evergrant_server.core.errors import FAILURES, ErrorCode, Repairer
from evergrant_server.core.integrations import IntegrationState

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NOTHING = {"reason": None, "repairer": None, "last_failure": None, "expires_at": None}
NOTHING |= {"token_state": TokenState.VALID, "failed_consent": None, "provider_said": None}


def step(state: LifecycleState, flow: Flow = Flow.AUTHORIZATION_CODE, **more: Any) -> tuple[str, str]:
    found = step_of(SimpleNamespace(state=state, flow=flow, **NOTHING | more))
    return found.actor, found.tone


@pytest.mark.parametrize("state", LifecycleState)
def test_every_state_has_a_step_and_only_ended_and_healthy_ones_have_no_one_to_act(state: LifecycleState):
    who, _ = step(state)
    assert bool(who) is not (state.is_final or state is LifecycleState.ACTIVE)


@pytest.mark.parametrize("code", ErrorCode)
def test_a_reason_says_its_repair_and_who_repairs_it(code: ErrorCode):
    shown = SimpleNamespace(state=LifecycleState.ACTIVE, flow=Flow.OAUTH1, **NOTHING | {"last_failure": code})
    found = step_of(shown)
    by_itself = FAILURES[code].repairer is Repairer.TIME
    words = "None: a worker tries again by itself." if by_itself else FAILURES[code].repair
    assert found.text == words or code in (ErrorCode.CHOICE_REQUIRED, ErrorCode.CONNECTION_HELD)
    assert found.tone == "wait"
    assert found.actor


def test_who_acts_for_some():
    pending, reauth = LifecycleState.PENDING_CONSENT, LifecycleState.NEEDS_REAUTH
    assert step(pending) == ("the subject", "wait")
    assert step(pending, Flow.CLIENT_CREDENTIALS) == ("a worker", "wait")
    assert step(reauth, reason=ErrorCode.GRANT_REJECTED) == ("the subject", "bad")
    again = SimpleNamespace(state=reauth, flow=Flow.OAUTH1, **NOTHING | {"reason": ErrorCode.GRANT_REJECTED})
    assert step_of(again).text == "Consent again, by a new connect link."
    refused = ErrorCode.CLIENT_REJECTED
    assert step(LifecycleState.ACTIVE, last_failure=refused) == ("the integration's admin", "wait")


@pytest.mark.parametrize("state", [LifecycleState.PENDING_CONSENT, LifecycleState.NEEDS_REAUTH])
def test_a_consent_that_the_client_made_fail_is_its_admins_turn(state: LifecycleState):
    admin, reason = Repairer.INTEGRATION_ADMIN, None
    if state is LifecycleState.NEEDS_REAUTH:
        reason = ErrorCode.GRANT_REJECTED
    failed = SimpleNamespace(code=ErrorCode.CLIENT_REJECTED, repairer=admin)
    said = SimpleNamespace(error="invalid_scope")
    more = {"reason": reason, "failed_consent": failed, "provider_said": said}
    shown = SimpleNamespace(state=state, flow=Flow.OAUTH1, **NOTHING | more)
    shown.repairer = admin
    assert (step_of(shown).actor, "scopes" in step_of(shown).text) == ("the integration's admin", True)
    assert cause_of(shown) is ErrorCode.CLIENT_REJECTED
    shown.repairer = None  # the integration was changed since
    assert step_of(shown).actor == "the subject"


@pytest.mark.parametrize(
    ("token", "actor", "said"),
    [
        (TokenState.IDLE, "", "no app has asked for a token since it expired"),
        (TokenState.DUE, "a worker", "has just expired"),
        (TokenState.LATE, "the operator", "doctor"),
        (TokenState.OVER, "the subject", "nothing refreshes it"),
        (TokenState.VALID, "", "refreshed when it is due"),
    ],
)
def test_an_active_connection_with_an_expired_token_says_why(token: TokenState, actor: str, said: str):
    shown = SimpleNamespace(state=LifecycleState.ACTIVE, flow=Flow.OAUTH1, **NOTHING | {"token_state": token})
    step = step_of(shown)
    assert (step.actor, said in step.text) == (actor, True)
    assert (token in TOKEN_NOTES) == (token is not TokenState.VALID)


def test_whose_turn_a_cause_is_and_that_nobody_knows_it_of_a_sole_connection():
    def turn(code: ErrorCode, state: LifecycleState, *, is_sole: bool = False) -> tuple[str, str]:
        facts = {"repairer": FAILURES[code].repairer, "is_sole": is_sole, "provider_said": ()}
        shown = SimpleNamespace(state=state, code=code, **facts)
        step = turn_of(shown)
        return step.actor, step.text

    active, reauth = LifecycleState.ACTIVE, LifecycleState.NEEDS_REAUTH
    assert turn(ErrorCode.CLIENT_REJECTED, active)[0] == "the integration's admin"
    assert turn(ErrorCode.GRANT_REJECTED, reauth) == ("the subject", "Consent again, by a new connect link.")
    assert turn(ErrorCode.PROVIDER_ERROR, active) == ("a worker", "None: a worker tries again by itself.")
    actor, text = turn(ErrorCode.PROVIDER_ERROR, active, is_sole=True)
    assert actor == "not known yet"
    assert text.startswith("It can't be decided yet whose fault this is: it is the only connection here.")


def integration(**more: Any) -> Any:
    usual = dict.fromkeys(
        ("problem", "secret_refused_at", "previous_secret_until", "client_secret_expires_at",
         "client_certificate_expires_at", "failed_exchange")
    )  # fmt: skip
    return SimpleNamespace(state=IntegrationState.READY, binding=Binding.APP, **usual | more)


def failed(code: ErrorCode, *, circuit_open: bool = False) -> dict[str, Any]:
    facts = {"failure": code, "repairer": FAILURES[code].repairer, "at": NOW, "unanswered": 7}
    return {"failed_exchange": SimpleNamespace(**facts, circuit_open=circuit_open)}


@pytest.mark.parametrize(
    ("facts", "tone", "said"),
    [
        ({}, "good", "ready"),
        (failed(ErrorCode.CLIENT_REJECTED), "bad", "The last exchange failed"),
        (failed(ErrorCode.PROVIDER_ERROR), "wait", "The last exchange failed"),
        (failed(ErrorCode.PROVIDER_ERROR, circuit_open=True), "bad", "circuit is open: 7 refreshes in a row"),
        ({"secret_refused_at": NOW}, "bad", "refuses the new client secret"),
        ({"previous_secret_until": NOW + timedelta(hours=1)}, "wait", "is being rotated"),
        ({"previous_secret_until": NOW}, "good", "ready"),
        ({"client_secret_expires_at": NOW + timedelta(days=29)}, "wait", "secret expires"),
        ({"client_secret_expires_at": NOW + timedelta(days=31)}, "good", "ready"),
        ({"client_certificate_expires_at": NOW}, "bad", "certificate has expired"),
    ],
)
def test_health_of_an_integration(facts: dict[str, Any], tone: str, said: str):
    (found,) = findings(integration(**facts), NOW)
    assert found.tone == tone
    assert said in found.text
    assert bool(found.actor) is (tone != "good") or "rotated" in said


def test_the_worst_comes_first():
    it = integration(client_certificate_expires_at=NOW, previous_secret_until=NOW + timedelta(days=1))
    it.state, it.problem, it.binding = IntegrationState.FAILED, "no metadata", Binding.NONE
    assert [found.tone for found in findings(it, NOW)] == ["bad", "bad", "wait", "wait"]


KINDS = ["crm"], ["crm", "dev"]


def providers(count: int) -> list[dict[str, Any]]:
    return [
        {"name": f"p{number:03}", "display_name": f"Provider {number}", "categories": KINDS[number % 2]}
        for number in range(count)
    ]  # fmt: skip


def test_the_catalogue_is_searched_by_all_words_and_paged_without_a_gap():
    every = providers(100)
    names, after = [], ""
    while True:
        found = search(every, "provider SALES", "", after)
        names += [it["name"] for it in found.items]
        if found.next_after is None:
            break
        after = found.next_after
    assert (names, found.total) == ([it["name"] for it in every], 100)
    assert search(every, "", "dev", "").total == 50
    assert search(every, "p007", "", "").items == [every[7]]
    assert search(every, "absent", "", "").items == []


def test_evidence_names_each_field_once_and_links_only_https():
    sources = {
        "agreeing": {"token_endpoint": 3},
        "by_field": {"pkce": "javascript:alert(1)", "code_lifetime_s": "https://example.com/a (ten minutes)"},
        "vendor_documentation": ["token_endpoint", "rate_limit"],
    }
    rows = {it.field: it for it in evidence_of({"sources": sources})}
    assert (rows["token_endpoint"].agreeing, rows["token_endpoint"].vendor_only) == (3, False)
    assert (rows["pkce"].url, rows["code_lifetime_s"].url) == (None, "https://example.com/a")
    assert rows["rate_limit"].vendor_only
    assert evidence_of({}) == []


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s ago"), (59, "59 s ago"), (60, "1 min ago"), (-7200, "in 2 h"), (90_000, "1 d ago")],
)
def test_moments_are_told_in_one_unit(seconds: int, said: str):
    assert ago(NOW - timedelta(seconds=seconds), NOW) == said
