"""What the accounts of a grant lead to: a lookup at the provider, then a choice if there are several. Pure.

The lookup asks with the access token and spends nothing, so it is tried until it has an answer.
"""

from datetime import datetime

from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.lifecycle.command import Command, Moment, Transition
from evergrant_server.core.lifecycle.schedule import retry_at
from evergrant_server.core.messages.activities import GrantResult
from evergrant_server.core.messages.connection import ConnectionState, LifecycleEvent


def on_account_lookup_ended(connection: ConnectionState, event: LifecycleEvent, at: Moment) -> Transition:
    after = _after_lookup(connection, event.result or GrantResult(), at)
    return Transition(after, Command.REFRESH if _needs_refresh(after, at.now) else Command.NOTHING)


def on_account_chosen(connection: ConnectionState, event: LifecycleEvent, at: Moment) -> Transition:
    return Transition(connection.model_copy(update={"choice_pending": False, "account_lookup_at": None}))


def blocking_reason(connection: ConnectionState) -> ErrorCode | None:
    """Why the connection can't be used as it is."""
    undecided = connection.choice_pending and connection.state is LifecycleState.ACTIVE
    return connection.reason or (ErrorCode.CHOICE_REQUIRED if undecided else None)


def _after_lookup(connection: ConnectionState, result: GrantResult, at: Moment) -> ConnectionState:
    """The answer, or the moment of the next try."""
    another = result.generation not in (None, connection.generation)  # it has a lookup of its own
    if connection.state is not LifecycleState.ACTIVE or another:
        return connection.model_copy(update={"account_lookup_at": None})
    if result.failure is None:
        return connection.model_copy(
            update={
                "account_lookup_at": None,
                "account_lookup_failures": 0,
                "choice_pending": result.choice_pending,
            }
        )
    failures = connection.account_lookup_failures + 1
    again = retry_at(at.now, failures, result.failure, result.retry_after, at.rules, at.share)
    return connection.model_copy(update={"account_lookup_failures": failures, "account_lookup_at": again})


def _needs_refresh(connection: ConnectionState, now: datetime) -> bool:
    """The lookup waits for a valid token, and no other timer is about to bring one."""
    ended = connection.expires_at is not None and connection.expires_at <= now
    waits = connection.account_lookup_at is not None and connection.retry_at is None
    return ended and waits and connection.refreshable
