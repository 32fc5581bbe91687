"""Late tokens: verified where there is no grant, and kept until a verification has an answer."""

from datetime import timedelta

import pytest

from evergrant_server.core.connections.account import Account
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.connections.grant import TokenSet
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import AttemptId, ConsentId
from evergrant_server.core.lifecycle.command import Command, Transition
from evergrant_server.core.lifecycle.timers import TimerPurpose, next_timer
from evergrant_server.core.messages.activities import GrantResult
from evergrant_server.core.messages.connection import ConnectionState, EventKind
from evergrant_server.core.secret import Secret
from tests.unit.core.lifecycle.steps import NEWEST, NOW, failed, granted, step, timer_of, woken

LATE = AttemptId("att_1")
GIVEN_UP = ConnectionState(state=LifecycleState.NEEDS_REAUTH, generation=3, reason=ErrorCode.OUTCOME_UNKNOWN)


NEWER = granted(4)
REFUSED, DOWN = failed(ErrorCode.GRANT_REJECTED), failed(ErrorCode.PROVIDER_ERROR)


def ended(life: ConnectionState, news: GrantResult) -> Transition:
    return step(life, EventKind.LATE_VERIFICATION_ENDED, result=news)


def came(life: ConnectionState) -> Transition:
    return step(life, EventKind.LATE_TOKENS_RECEIVED, attempt_id=LATE)


@pytest.mark.parametrize("state", [it for it in LifecycleState if it is not LifecycleState.ACTIVE])
def test_late_tokens_are_verified_in_states_without_a_grant(state: LifecycleState):
    found = came(GIVEN_UP.model_copy(update={"state": state}))
    wanted = state in (LifecycleState.PENDING_CONSENT, LifecycleState.NEEDS_REAUTH)
    assert (found.command is Command.VERIFY_LATE_TOKENS, found.state.late_attempt == LATE) == (wanted, wanted)
    assert found.state.state is state, "nothing is believed yet"


def test_beside_a_grant_that_works_it_is_asked_what_holds():
    """A journal's tokens could be parsed only later, and are installed already."""
    active = ConnectionState(
        state=LifecycleState.ACTIVE, generation=3, failures=2, retry_at=NOW, reason=ErrorCode.PROVIDER_ERROR
    )
    asked = came(active)
    assert asked.command is Command.VERIFY_LATE_TOKENS
    assert (asked.state.late_attempt, asked.state.failures) == (LATE, 2)
    life = ended(asked.state, NEWER).state
    assert (life.generation, life.failures, life.late_attempt) == (4, 0, None)
    for nothing_newer in (NEWER.model_copy(update={"generation": 3}), DOWN):
        assert ended(asked.state, nothing_newer) == Transition(active)


def test_what_works_is_a_grant():
    life = ended(came(GIVEN_UP).state, NEWER).state
    assert (life.state, life.generation) == (LifecycleState.ACTIVE, 4)
    assert (life.reason, life.late_attempt) == (None, None)


@pytest.mark.parametrize("code", [ErrorCode.GRANT_REJECTED, ErrorCode.OUTCOME_UNKNOWN])
def test_what_is_refused_changes_nothing(code: ErrorCode):
    after = ended(came(GIVEN_UP).state, failed(code))
    assert after == Transition(GIVEN_UP)
    assert next_timer(after.state, NEWEST) is None


@pytest.mark.parametrize("state", [LifecycleState.PENDING_CONSENT, LifecycleState.NEEDS_REAUTH])
def test_an_outage_says_nothing_about_it(state: LifecycleState):
    life = came(GIVEN_UP.model_copy(update={"state": state})).state
    for failures in (1, 2):
        life = ended(life, DOWN).state
        assert (life.late_attempt, life.late_failures, life.state) == (LATE, failures, state)
        assert woken(life) is Command.VERIFY_LATE_TOKENS


def test_a_consent_deadline_is_kept_meanwhile():
    deadline = NOW + timedelta(hours=1)
    over = deadline + NEWEST.consent_grace
    life = ended(came(ConnectionState(consent_deadline=deadline)).state, DOWN).state
    assert step(life, EventKind.TIMER_FIRED, over).command is Command.VERIFY_LATE_TOKENS
    life = life.model_copy(update={"verify_late_at": deadline + timedelta(days=1)})
    assert step(life, EventKind.TIMER_FIRED, over).command is Command.END_CONSENT


def test_a_revocation_in_between_wins():
    revoking = ended(came(GIVEN_UP).state, GrantResult(state=LifecycleState.REVOKING))
    assert (revoking.state.state, revoking.command) == (LifecycleState.REVOKING, Command.REVOKE)


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
        "account": Account(id="a", name="ann", claims={"sub": "a"}),
        "server_time": NOW,
    }
    chain = TokenSet(**facts)
    tokens = TokenSet(**facts, further={"user": chain})
    assert set(TokenSet.model_fields) == {*facts, "further"}, "a new fact is kept as well"
    bare = TokenSet(access_token=Secret("a"), scopes=(), expires_in=0)
    for kept in (tokens, bare):
        assert TokenSet.from_secret(kept.as_secret()) == kept


def test_when_one_is_refused_the_next_that_is_kept_is_tried():
    """A is retried through an outage when B comes and is refused: A may be the newest token there is."""
    other = AttemptId("att_2")
    waiting = ended(came(GIVEN_UP).state, DOWN).state
    newer = step(waiting, EventKind.LATE_TOKENS_RECEIVED, attempt_id=other)
    assert (newer.command, newer.state.late_attempt) == (Command.VERIFY_LATE_TOKENS, other)
    news = REFUSED.model_copy(update={"next_late_attempt": LATE})
    again = ended(newer.state, news)
    assert (again.command, again.state.late_attempt) == (Command.VERIFY_LATE_TOKENS, LATE)
    assert ended(again.state, REFUSED) == Transition(GIVEN_UP)


def test_one_that_is_moot_is_not_tried_again_whatever_the_connection_waits_for():
    news = GrantResult(
        state=LifecycleState.PENDING_CONSENT, failure=ErrorCode.PROVIDER_ERROR, consent_over=True
    )
    after = ended(came(ConnectionState()).state, news)
    assert after == Transition(ConnectionState())


def awaiting_a_first_token() -> ConnectionState:
    """A grant was given up, and minting another is tried again later."""
    minting = GIVEN_UP.model_copy(update={"flow": Flow.CLIENT_CREDENTIALS})
    consent = ConsentId("con_1")
    minting = step(minting, EventKind.CONSENT_GRANTED, consent_id=consent).state
    life = step(minting, EventKind.FIRST_TOKENS_ENDED, result=DOWN, consent_id=consent).state
    assert timer_of(life).purpose is TimerPurpose.REQUEST_FIRST_TOKENS
    return life


@pytest.mark.parametrize("before", [[], [DOWN], [DOWN, DOWN]])
def test_a_first_token_is_asked_for_again_whatever_becomes_of_a_late_answer(before: list[GrantResult]):
    minting = awaiting_a_first_token()
    life = came(minting).state
    for news in [*before, REFUSED]:
        life = ended(life, news).state
    assert life == minting.model_copy(update={"refusal": None})
    assert woken(life) is Command.REQUEST_CLIENT_GRANT


def test_a_late_answer_is_verified_again_whatever_becomes_of_a_first_token():
    life = ended(came(awaiting_a_first_token()).state, DOWN).state
    over = GrantResult(failure=ErrorCode.CONSENT_EXPIRED, consent_over=True)
    life = step(life, EventKind.FIRST_TOKENS_ENDED, result=over, consent_id=ConsentId("con_1")).state
    assert woken(life) is Command.VERIFY_LATE_TOKENS


def test_a_repair_has_both_tried_again():
    life = ended(came(GIVEN_UP).state, failed(ErrorCode.CLIENT_REJECTED)).state
    assert timer_of(step(life, EventKind.PROVIDER_CHANGED).state).at == NOW
