"""What a revocation leads to: the store first, then the provider until it confirms. Pure."""

from evergrant_server.core.connections.connection import LifecycleState, StateChange, state_after
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.lifecycle.command import Command, Moment, Transition
from evergrant_server.core.lifecycle.grant_install import start_revoking
from evergrant_server.core.lifecycle.schedule import retry_at
from evergrant_server.core.messages.activities import RevocationResult
from evergrant_server.core.messages.connection import ConnectionState, LifecycleEvent


def on_revocation_requested(connection: ConnectionState, event: LifecycleEvent, at: Moment) -> Transition:
    """A second request changes nothing: the first one is carried out, and never given up."""
    if connection.state is LifecycleState.REVOKING:
        return Transition(connection)
    return start_revoking(connection, Command.BEGIN_REVOCATION, event.reason)


def on_revocation_ended(connection: ConnectionState, event: LifecycleEvent, at: Moment) -> Transition:
    """Without a result, the store has just been written: the provider comes next."""
    if event.revocation is None:
        return Transition(connection, Command.REVOKE)
    return Transition(_after_attempt(connection, event.revocation, at))


def on_revoked_at_provider(connection: ConnectionState, event: LifecycleEvent, at: Moment) -> Transition:
    """The provider ended a generation, as the store says already; a newer grant stays."""
    has_grant = connection.state in (LifecycleState.ACTIVE, LifecycleState.NEEDS_REAUTH)
    if not has_grant or connection.generation > (event.seen_generation or 0):
        return Transition(connection)
    changes = {
        "state": LifecycleState.NEEDS_REAUTH,
        "reason": ErrorCode.GRANT_REVOKED_ELSEWHERE,
        "retry_at": None,
        "caller_retry_at": None,
        "failures": 0,
    }
    return Transition(connection.model_copy(update=changes))


def _after_attempt(connection: ConnectionState, result: RevocationResult, at: Moment) -> ConnectionState:
    """Ended once the provider has confirmed, or has no revocation; otherwise tried again."""
    if result.revocation is not None:
        changes = {
            "state": state_after(connection.state, StateChange.REVOCATION_ENDED),
            "revocation": result.revocation,
            "revocation_failure": None,
            "revocation_failing_since": None,
            "retry_at": None,
        }
        return connection.model_copy(update=changes)
    failures, code = connection.failures + 1, result.failure or ErrorCode.INTERNAL
    rules = at.rules.model_copy(update={"longest_backoff": at.rules.longest_revocation_backoff})
    again = retry_at(at.now, failures, code, result.retry_after, rules, at.share)
    after = connection.model_copy(update={"failures": failures, "retry_at": again})
    if code is ErrorCode.REFRESH_PENDING:  # it waits for the tokens of an open attempt, to revoke them too
        return after
    return after.model_copy(
        update={
            "revocation_failure": result.failure,
            "revocation_failing_since": connection.revocation_failing_since or at.now,
        }
    )
