"""Lifetimes that end by silence: an idle grant is refreshed in time, or its end is announced."""

from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.lifecycle.command import Command
from evergrant_server.core.lifecycle.schedule import RULES
from evergrant_server.core.lifecycle.timers import TimerPurpose, next_timer
from evergrant_server.core.messages.activities import GrantResult
from evergrant_server.core.messages.connection import ConnectionState, EventKind
from tests.unit.core.lifecycle.steps import ACTIVE, DAY, HOUR, NEWEST, NOW, failed, granted, step, timer_of

MONTH_S = 30 * 86_400.0
SALESFORCE = ACTIVE.__replace__(expires_at=None, refresh_token_idle_s=MONTH_S)


def facts(at: datetime, lifetime: timedelta | None) -> dict[str, Any]:
    return {"expires_at": None if lifetime is None else at + lifetime, "refresh_token_idle_s": MONTH_S}


def silent_year(policy: str, lifetime: timedelta | None, share: float) -> list[datetime]:
    """When the refresh token is used in a year in which nobody leases; every step continues as new."""
    state, uses = ACTIVE.__replace__(policy=policy, installed_at=NOW, **facts(NOW, lifetime)), [NOW]
    for _ in range(100_000):
        timer = timer_of(state, share)
        if timer.at > NOW + 365 * DAY:
            return uses
        after = step(state, EventKind.TIMER_FIRED, timer.at, share)
        assert after.command in (Command.REFRESH, Command.REFRESH_IF_LEASED)
        result = GrantResult(not_leased=True)
        if after.command is Command.REFRESH:
            uses.append(timer.at)
            result = granted(state.generation + 1, timer.at, **facts(timer.at, lifetime))
        ended = step(after.state, EventKind.REFRESH_ENDED, timer.at, share, result=result)
        state = ConnectionState.model_validate_json(ended.state.model_dump_json())
    raise AssertionError("it refreshes again and again")


@pytest.mark.parametrize("share", [0.0, 0.999])
@pytest.mark.parametrize("lifetime", [None, HOUR, 60 * DAY])
@pytest.mark.parametrize("policy", ["adaptive", "on_demand", "warm"])
def test_no_refresh_token_ends_by_silence_under_any_policy(
    policy: str, lifetime: timedelta | None, share: float
):
    uses = silent_year(policy, lifetime, share)
    gaps = [after - before for before, after in pairwise(uses)]
    assert max(gaps) <= 15 * DAY
    if policy != "warm":
        assert len(uses) <= 29, "an idle grant costs two uses in the time that it has"


def test_a_token_without_an_end_is_kept_alive_too():
    timer = timer_of(SALESFORCE)
    assert (timer.at, timer.purpose) == (NOW + 15 * DAY, TimerPurpose.KEEP_ALIVE)
    assert next_timer(SALESFORCE, RULES[3]) is None, "as runs that began by earlier rules are replayed"
    for changes in ({"refreshable": False}, {"refresh_token_idle_s": None}, {"flow": Flow.JWT_BEARER}):
        assert next_timer(SALESFORCE.__replace__(**changes), NEWEST) is None


def test_a_worker_whose_clock_is_behind_doesnt_refresh_again_and_again():
    behind = SALESFORCE.__replace__(obtained_at=NOW - 20 * DAY, installed_at=NOW)
    assert timer_of(behind).at == NOW + NEWEST.shortest_interval


def test_a_refresh_that_fails_until_the_end_by_silence_is_announced_and_a_later_one_anew():
    state, announced = SALESFORCE, list[tuple[int, datetime]]()
    end = NOW + 30 * DAY
    while timer_of(state).at < end:
        now = timer_of(state).at
        after = step(state, EventKind.TIMER_FIRED, now)
        state = after.state
        if after.command is Command.ANNOUNCE_EXPIRY:
            assert after.ends_at == end
            announced.append((after.days_before_end, now))
        else:
            result = failed(ErrorCode.CLIENT_REJECTED)
            state = step(state, EventKind.REFRESH_ENDED, now, result=result).state
    assert announced == [(days, end - days * DAY) for days in (14, 3, 1)]
    assert timer_of(state.__replace__(retry_at=None)).purpose is TimerPurpose.KEEP_ALIVE, "announced once"
    result = granted(4, end - HOUR, **facts(end - HOUR, None))
    again = step(state, EventKind.REFRESH_ENDED, end - HOUR, result=result).state
    assert (again.announced_days, again.failures) == ((), 0)


def test_what_is_announced_is_the_earlier_end():
    dated = SALESFORCE.__replace__(failures=1, retry_at=NOW + 90 * DAY, refresh_expires_at=NOW + 20 * DAY)
    assert timer_of(dated).at == NOW + 6 * DAY
    assert timer_of(dated.__replace__(refresh_expires_at=NOW + 60 * DAY)).at == NOW + 16 * DAY
