"""First tokens without a code: client grants and device codes."""

from datetime import timedelta

import pytest

from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.connections.device_code import DevicePoll
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import ConsentId
from evergrant_server.core.lifecycle.command import Command, Transition
from evergrant_server.core.lifecycle.timers import next_timer
from evergrant_server.core.messages.activities import GrantResult
from evergrant_server.core.messages.connection import ConnectionState, EventKind
from tests.unit.core.lifecycle.steps import ACTIVE, NEWEST, NOW, granted, step, timer_of, woken

CONSENT = ConsentId("cns_1")
PENDING = ConnectionState(flow=Flow.CLIENT_CREDENTIALS, consent_deadline=NOW + timedelta(days=7))
GRANTED = granted()


def begun(life: ConnectionState = PENDING) -> ConnectionState:
    first = step(life, EventKind.CONSENT_GRANTED, consent_id=CONSENT)
    assert (first.command, first.state.waiting_consent) == (Command.REQUEST_CLIENT_GRANT, CONSENT)
    return first.state


def ended(life: ConnectionState, news: GrantResult) -> Transition:
    return step(life, EventKind.FIRST_TOKENS_ENDED, result=news, consent_id=CONSENT)


def failed(life: ConnectionState, code: ErrorCode, **more: object) -> ConnectionState:
    return ended(life, GrantResult(failure=code, **more)).state


def test_a_client_grant_installs_its_first_token():
    after = ended(begun(), GRANTED)
    assert after.command is Command.NOTHING
    assert (after.state.state, after.state.generation) == (LifecycleState.ACTIVE, 1)
    assert after.state.waiting_consent is None
    assert next_timer(after.state, NEWEST) is not None  # it is refreshed ahead, like any other


@pytest.mark.parametrize(
    ("code", "retry_after", "least"),
    [
        (ErrorCode.PROVIDER_UNREACHABLE, None, timedelta(seconds=1)),
        (ErrorCode.PROVIDER_RATE_LIMITED, 90.0, timedelta(seconds=90)),
        (ErrorCode.CLIENT_REJECTED, None, timedelta(minutes=15)),
    ],
)
def test_what_can_be_repaired_is_tried_again_by_itself(
    code: ErrorCode, retry_after: float | None, least: timedelta
):
    life = failed(begun(), code, retry_after=retry_after)
    assert (life.state, life.reason, life.failures) == (LifecycleState.PENDING_CONSENT, code, 1)
    due = timer_of(life)
    assert due.at >= NOW + least
    again = step(life, EventKind.TIMER_FIRED, due.at)
    assert (again.command, again.state.waiting_consent) == (Command.REQUEST_CLIENT_GRANT, CONSENT)


def test_a_permanent_refusal_is_not_retried_and_nothing_for_ever():
    life = failed(begun(), ErrorCode.GRANT_REJECTED)
    assert (life.state, life.reason) == (LifecycleState.PENDING_CONSENT, ErrorCode.GRANT_REJECTED)
    assert (life.waiting_consent, timer_of(life).summary) == (None, "consent deadline")
    life = failed(begun(), ErrorCode.CLIENT_REJECTED).model_copy(update={"retry_at": NOW + timedelta(days=9)})
    over = step(life, EventKind.TIMER_FIRED, timer_of(life).at)
    assert (over.command, over.state.state) == (Command.END_CONSENT, LifecycleState.CONSENT_EXPIRED)


def test_a_repair_by_the_admin_is_tried_at_once():
    life = step(failed(begun(), ErrorCode.CLIENT_REJECTED), EventKind.PROVIDER_CHANGED).state
    assert timer_of(life).at == NOW


def test_asked_again_after_it_was_lost_it_is_tried_until_it_comes():
    lost = PENDING.model_copy(update={"state": LifecycleState.NEEDS_REAUTH, "generation": 4})
    life = failed(begun(lost), ErrorCode.PROVIDER_ERROR)
    assert woken(life) is Command.REQUEST_CLIENT_GRANT


def test_asked_again_while_it_works_a_failure_changes_nothing():
    active = PENDING.model_copy(update={"state": LifecycleState.ACTIVE, "generation": 4})
    life = failed(begun(active), ErrorCode.PROVIDER_ERROR)
    assert (life.state, life.reason, life.failures, life.retry_at) == (LifecycleState.ACTIVE, None, 0, None)
    assert life.refusal is ErrorCode.PROVIDER_ERROR


# --- device codes (RFC 8628) ------------------------------------------------------------

DEVICE = ConnectionState(flow=Flow.DEVICE_CODE, consent_deadline=NOW + timedelta(hours=1))


def polled(life: ConnectionState, poll: DevicePoll, interval_s: float | None = None) -> ConnectionState:
    return ended(life, GrantResult(device_poll=poll, interval_s=interval_s)).state


def asked_for_a_code(interval_s: float | None = 5.0) -> ConnectionState:
    first = step(DEVICE, EventKind.CONSENT_GRANTED, consent_id=CONSENT)
    assert (first.command, first.state.waiting_consent) == (Command.POLL_DEVICE_TOKEN, CONSENT)
    return polled(first.state, DevicePoll.STARTED, interval_s=interval_s)


@pytest.mark.parametrize(
    ("said", "interval_s"),
    [
        ([], 5),
        ([DevicePoll.PENDING, DevicePoll.PENDING], 5),
        ([DevicePoll.SLOW_DOWN], 10),
        ([DevicePoll.SLOW_DOWN, DevicePoll.PENDING], 10),  # for good: "for this and all subsequent requests"
        ([DevicePoll.SLOW_DOWN, DevicePoll.SLOW_DOWN], 15),
        ([DevicePoll.NO_ANSWER], 10),
        ([DevicePoll.NO_ANSWER] * 9, 60),
        ([DevicePoll.NO_ANSWER] * 9 + [DevicePoll.SLOW_DOWN], 65),
    ],
)
@pytest.mark.parametrize("named", [5.0, None])  # "If no value is provided, clients MUST use 5"
def test_rfc8628_3_5_how_often_is_asked(said: list[DevicePoll], interval_s: float, named: float | None):
    life = asked_for_a_code(named)
    for poll in said:
        life = polled(life, poll)
    due = timer_of(life)
    assert (due.at, due.summary) == (NOW + timedelta(seconds=interval_s), "poll the device code")
    assert step(life, EventKind.TIMER_FIRED, due.at).command is Command.POLL_DEVICE_TOKEN
    assert step(life, EventKind.TIMER_FIRED, due.at - timedelta(seconds=1)).command is Command.NOTHING


def test_an_approved_code_and_any_other_error_end_the_asking():
    after = ended(asked_for_a_code(), GRANTED).state
    assert (after.state, after.waiting_consent, after.poll_at) == (LifecycleState.ACTIVE, None, None)
    after = failed(asked_for_a_code(), ErrorCode.CLIENT_REJECTED, consent_over=True)
    assert (after.reason, timer_of(after).summary) == (ErrorCode.CLIENT_REJECTED, "consent deadline")


@pytest.mark.parametrize(
    ("code", "state"),
    [
        (ErrorCode.CONSENT_DENIED, LifecycleState.DENIED),
        (ErrorCode.CONSENT_EXPIRED, LifecycleState.CONSENT_EXPIRED),
    ],
)
def test_a_code_that_is_over_ends_a_connection_that_waits_for_it(code: ErrorCode, state: LifecycleState):
    over = ended(asked_for_a_code(), GrantResult(failure=code, consent_over=True))
    assert (over.command, over.denied) == (Command.END_CONSENT, code is ErrorCode.CONSENT_DENIED)
    assert (over.state.state, over.state.reason) == (state, code)


def test_a_new_code_for_a_connection_that_works_disturbs_nothing():
    active = ACTIVE.model_copy(update={"flow": Flow.DEVICE_CODE, "consent_deadline": DEVICE.consent_deadline})
    refresh = next_timer(active, NEWEST)
    life = polled(step(active, EventKind.CONSENT_GRANTED, consent_id=CONSENT).state, DevicePoll.STARTED)
    assert woken(life) is Command.POLL_DEVICE_TOKEN
    after = failed(life, ErrorCode.CONSENT_DENIED, consent_over=True)
    assert (after.state, after.failures) == (LifecycleState.ACTIVE, 0)
    assert next_timer(after, NEWEST) == refresh


def test_a_code_that_could_not_be_got_is_asked_for_again():
    life = step(DEVICE, EventKind.CONSENT_GRANTED, consent_id=CONSENT).state
    after = failed(life, ErrorCode.PROVIDER_UNREACHABLE)
    assert woken(after) is Command.POLL_DEVICE_TOKEN
