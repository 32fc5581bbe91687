"""Consents that wait for their app's confirmation: undone in time, whatever else the connection waits for."""

import pytest

from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.ids import ConsentId
from evergrant_server.core.lifecycle.command import Command
from evergrant_server.core.lifecycle.timers import next_timer
from evergrant_server.core.messages.connection import ConnectionState, EventKind
from tests.unit.core.lifecycle.steps import ACTIVE, HOUR, MINUTE, NEWEST, NOW, step, timer_of, woken

PENDING = ConnectionState(consent_deadline=NOW + HOUR)
FIRST, SECOND = ConsentId("cns_1"), ConsentId("cns_2")


def returned(state: ConnectionState, consent: ConsentId, minutes: int = 2) -> ConnectionState:
    return step(state, EventKind.CONSENT_RETURNED, consent_id=consent, until=NOW + minutes * MINUTE).state


def lapsed(state: ConnectionState, consent: ConsentId, **more: object) -> ConnectionState:
    return step(state, EventKind.CONSENT_LAPSED, timer_of(state).at, consent_id=consent, **more).state


@pytest.mark.parametrize(
    "state", [PENDING, ACTIVE, PENDING.model_copy(update={"state": LifecycleState.NEEDS_REAUTH})]
)
def test_what_is_not_confirmed_is_undone_and_the_connection_stays_as_it_is(state: ConnectionState):
    waits = returned(returned(state, FIRST), SECOND, minutes=1)
    assert timer_of(waits).at == NOW + MINUTE
    assert woken(waits) is Command.LAPSE_CONSENT
    waits = lapsed(waits, SECOND)
    assert timer_of(waits).at == NOW + 2 * MINUTE
    done = lapsed(waits, FIRST)
    assert done == state
    assert next_timer(done, NEWEST) == next_timer(state, NEWEST)


def test_a_confirmed_consent_is_exchanged_and_forgotten():
    waits = returned(PENDING, FIRST)
    granted = step(waits, EventKind.CONSENT_GRANTED, consent_id=FIRST)
    assert (granted.command, granted.state.confirming) == (Command.EXCHANGE_CODE, ())
    assert returned(granted.state, FIRST).confirming == (), "the message of before came twice"


def test_the_store_may_say_that_its_time_is_not_over():
    waits = returned(PENDING, FIRST)
    assert timer_of(lapsed(waits, FIRST, until=NOW + 4 * MINUTE)).at == NOW + 4 * MINUTE
    again = lapsed(waits, FIRST, until=NOW)
    assert timer_of(again).at > timer_of(waits).at, "by a clock that is behind: not in a loop"


def test_a_revocation_awaits_no_confirmation():
    waits = returned(ACTIVE, FIRST)
    revoking = step(waits, EventKind.REVOCATION_REQUESTED, reason="left").state
    assert next_timer(revoking, NEWEST) is None
