"""Which account a connection is for: looked up until there is an answer, chosen among several."""

import pytest

from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.connections.grant import AccountOption, FollowUp, matching_option
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.lifecycle.command import Command
from evergrant_server.core.lifecycle.consents import blocking_reason
from evergrant_server.core.lifecycle.snapshot import state_from_store
from evergrant_server.core.lifecycle.timers import TimerPurpose
from evergrant_server.core.messages.connection import ConnectionState, EventKind
from tests.unit.core.lifecycle.steps import HOUR, NOW, connection, failed, granted, step, timer_of

ONE, TWO = AccountOption(id="1", label="One", metadata={"site": "1"}), AccountOption(id="2", label="Two")
CONNECTION = connection(provider="acme", follow_up=FollowUp.LOOKING_UP)


def consented(**more: object) -> ConnectionState:
    first = granted(account_lookup_needed=True, **more)
    return step(ConnectionState(), EventKind.CODE_EXCHANGE_ENDED, result=first).state


@pytest.mark.parametrize(
    ("options", "wish", "found"),
    [
        ((), None, None),
        ((ONE,), None, ONE),
        ((ONE,), "2", ONE),
        ((ONE, TWO), None, None),
        ((ONE, TWO), "2", TWO),
    ],
)
def test_one_account_or_the_one_that_was_asked_for(
    options: tuple, wish: str | None, found: AccountOption | None
):
    assert matching_option(options, wish) == found
    after, option = CONNECTION.model_copy(update={"choice": wish}).accounts_found(options, NOW)
    assert option == found
    assert after.follow_up is (None if found else FollowUp.CHOOSING)
    assert after.choice == (found.id if found else wish)


def test_a_grant_that_came_is_followed_by_a_lookup():
    life = consented()
    woken = timer_of(life)
    assert (woken.at, woken.purpose) == (NOW, TimerPurpose.LOOK_UP_ACCOUNTS)
    assert step(life, EventKind.TIMER_FIRED).command is Command.LOOK_UP_ACCOUNTS
    answered = step(life, EventKind.ACCOUNT_LOOKUP_ENDED, result=granted()).state
    woken = timer_of(answered)
    assert (woken.summary, answered.account_lookup_at) == ("refresh due", None)


def test_a_lookup_that_fails_is_tried_again_slower_and_slower():
    life, waits = consented(), []
    for _ in range(4):
        life = step(life, EventKind.ACCOUNT_LOOKUP_ENDED, result=failed(ErrorCode.PROVIDER_ERROR)).state
        assert life.account_lookup_at is not None
        waits.append(life.account_lookup_at - NOW)
    assert waits == sorted(set(waits))
    assert life.state is LifecycleState.ACTIVE


def test_a_token_that_is_over_is_replaced_before_the_next_try():
    late = NOW + 2 * HOUR
    pending = failed(ErrorCode.REFRESH_PENDING)
    no = step(consented(), EventKind.ACCOUNT_LOOKUP_ENDED, late, result=pending)
    assert no.command is Command.REFRESH
    fresh = granted(2, late, account_lookup_needed=True)
    assert step(no.state, EventKind.REFRESH_ENDED, late, result=fresh).state.account_lookup_at == late


def test_several_accounts_wait_and_a_refresh_forgets_nothing():
    life = step(consented(), EventKind.ACCOUNT_LOOKUP_ENDED, result=granted(choice_pending=True)).state
    assert (blocking_reason(life), life.account_lookup_at) == (ErrorCode.CHOICE_REQUIRED, None)
    life = step(life, EventKind.REFRESH_ENDED, result=granted(2, choice_pending=True)).state
    assert blocking_reason(life) is ErrorCode.CHOICE_REQUIRED
    assert blocking_reason(step(life, EventKind.ACCOUNT_CHOSEN, reason="1").state) is None


def test_a_workflow_that_begins_again_goes_on_where_the_store_is():
    looking = state_from_store(CONNECTION, None, None, NOW)
    assert (looking.account_lookup_at, looking.choice_pending) == (NOW, False)
    choosing = state_from_store(CONNECTION.accounts_found((ONE, TWO), NOW)[0], None, None, NOW)
    assert (choosing.account_lookup_at, choosing.choice_pending) == (None, True)
