"""What somebody has to repair is tried when they say so, and soon where no workflow hears of the repair."""

from datetime import timedelta

import pytest

from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.lifecycle.command import Command
from evergrant_server.core.lifecycle.schedule import RULES
from evergrant_server.core.lifecycle.transition import next_step
from evergrant_server.core.messages.connection import (
    ConnectionState,
    EventKind,
    LifecycleEvent,
    RefreshReason,
)
from tests.unit.core.lifecycle.steps import ACTIVE, CONTEXT, HOUR, MINUTE, NOW, failed, step, timer_of

LATER = NOW + 2 * HOUR
WHY = "127.0.0.1:9000 is not https"
REPAIRED = [ErrorCode.CLIENT_REJECTED, ErrorCode.EGRESS_REFUSED, ErrorCode.HOST_NOT_ACCEPTED]


def failing(code: ErrorCode, times: int = 1, **more: object) -> ConnectionState:
    """A connection whose refreshes have failed so often, just now."""
    state = ACTIVE
    for _ in range(times):
        state = step(state, EventKind.REFRESH_ENDED, LATER, result=failed(code, **more)).state
    return state


def asks(
    state: ConnectionState, reason: RefreshReason, after: timedelta, *, repaired: bool = False
) -> Command:
    told = {"refresh_reason": reason, "repaired": repaired}
    return step(state, EventKind.REFRESH_REQUESTED, LATER + after, 0.0, **told).command


@pytest.mark.parametrize("code", [*REPAIRED, ErrorCode.SOURCE_NOT_PERMITTED, ErrorCode.KEY_UNAVAILABLE])
def test_an_admins_command_tries_at_once_what_somebody_has_repaired(code: ErrorCode):
    state = failing(code, 5)
    assert asks(state, RefreshReason.COMMAND, MINUTE / 60, repaired=True) is Command.REFRESH
    assert asks(state, RefreshReason.COMMAND, MINUTE / 60) is Command.NOTHING, "an app's isn't an admin's"


@pytest.mark.parametrize("code", [ErrorCode.PROVIDER_ERROR, ErrorCode.PROVIDER_UNREACHABLE])
def test_a_command_repairs_no_outage(code: ErrorCode):
    assert asks(failing(code, 5), RefreshReason.COMMAND, MINUTE / 60, repaired=True) is Command.NOTHING


def test_a_command_waits_as_before_in_a_run_of_older_rules():
    state = failing(ErrorCode.EGRESS_REFUSED)
    state = state.__replace__(caller_retry_at=state.retry_at)
    event = LifecycleEvent(kind=EventKind.REFRESH_REQUESTED, context=CONTEXT, repaired=True)
    assert next_step(state, event, LATER, RULES[3], 0.0).command is Command.NOTHING


@pytest.mark.parametrize("code", [ErrorCode.EGRESS_REFUSED, ErrorCode.HOST_NOT_ACCEPTED])
def test_what_was_never_sent_is_tried_again_soon(code: ErrorCode):
    """A worker that was started with another setting tells no workflow."""
    once, often = failing(code), failing(code, 9)
    assert timer_of(once).at - LATER <= MINUTE
    assert timer_of(often).at - LATER <= 15 * MINUTE
    assert asks(often, RefreshReason.DUE, MINUTE / 2) is Command.NOTHING
    assert asks(often, RefreshReason.DUE, MINUTE) is Command.REFRESH


def test_a_wrong_secret_is_sent_no_sooner_for_callers():
    assert asks(failing(ErrorCode.CLIENT_REJECTED), RefreshReason.DUE, 5 * MINUTE) is Command.NOTHING


def test_the_refused_host_is_kept_until_a_refresh_is_sent():
    state = failing(ErrorCode.EGRESS_REFUSED, why_unsent=WHY)
    assert state.why_unsent == WHY
    sent = step(state, EventKind.REFRESH_ENDED, LATER, result=failed(ErrorCode.PROVIDER_ERROR))
    assert sent.state.why_unsent is None
