"""What the lifecycle's tests share: a moment, an active connection, and one step by the newest rules."""

from datetime import UTC, datetime, timedelta

from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import ConnectionId, Tenant
from evergrant_server.core.lifecycle.command import Command, Transition
from evergrant_server.core.lifecycle.schedule import NEWEST_RULES, RULES
from evergrant_server.core.lifecycle.timers import Timer, next_timer
from evergrant_server.core.lifecycle.transition import next_step
from evergrant_server.core.messages.activities import GrantResult
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.connection import ConnectionState, EventKind, LifecycleEvent
from tests.fakes.rows import a_connection, an_integration

NEWEST = RULES[NEWEST_RULES]
NOW = datetime(2030, 1, 1, tzinfo=UTC)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
TICK = timedelta(microseconds=1)
CONTEXT = RequestContext(by="app:test")
ACTIVE = ConnectionState(
    state=LifecycleState.ACTIVE, generation=3, obtained_at=NOW, expires_at=NOW + HOUR, refreshable=True
)


def step(
    state: ConnectionState, kind: EventKind, at: datetime = NOW, share: float = 0.0, **brings: object
) -> Transition:
    event = LifecycleEvent(kind=kind, context=CONTEXT, **brings)
    return next_step(state, event, at, NEWEST, share)


def timer_of(state: ConnectionState, share: float = 0.0) -> Timer:
    timer = next_timer(state, NEWEST, share)
    assert timer is not None
    return timer


def woken(state: ConnectionState) -> Command:
    """What is done when its timer fires."""
    return step(state, EventKind.TIMER_FIRED, timer_of(state).at).command


def failed(code: ErrorCode, **more: object) -> GrantResult:
    return GrantResult(failure=code, **more)


def granted(generation: int = 1, at: datetime = NOW, **more: object) -> GrantResult:
    """What an activity reports of tokens that live for an hour."""
    facts = {"state": LifecycleState.ACTIVE, "obtained_at": at, "expires_at": at + HOUR, "refreshable": True}
    return GrantResult(generation=generation, **{**facts, **more})


def connection(**facts: object) -> Connection:
    plain = {"id": ConnectionId("con_1"), "state": LifecycleState.ACTIVE, "consent_deadline": NOW}
    return a_connection(an_integration(Tenant("acme"), NOW), NOW, **{**plain, **facts})
