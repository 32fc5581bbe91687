"""A new grant in a connection's state: its facts, and everything it makes obsolete. Pure."""

from datetime import datetime
from typing import Any

from evergrant_server.core.connections.connection import LifecycleState, StateChange, state_after
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.lifecycle.command import Command, Transition
from evergrant_server.core.lifecycle.grant_lifetime import grant_ends_at, is_same_end, refresh_extends_end
from evergrant_server.core.messages.activities import GrantResult
from evergrant_server.core.messages.connection import ConnectionState

NO_LATE_TOKENS: dict[str, Any] = {"late_attempt": None, "verify_late_at": None, "late_failures": 0}


def grant_facts_of(result: GrantResult) -> dict[str, Any]:
    """The fields of ConnectionState that a grant determines."""
    return {
        "obtained_at": result.obtained_at,
        "expires_at": result.expires_at,
        "refreshable": result.refreshable,
        "refresh_token_idle_s": result.refresh_token_idle_s,
        "refresh_expires_at": result.refresh_expires_at,
        "margin_s": result.margin_s,
        "min_age_s": result.min_age_s,
        "short_lived": result.short_lived,
        "ends_together": result.ends_together,
        "announce_days": result.announce_days,
    }


def install(
    connection: ConnectionState, change: StateChange, result: GrantResult, now: datetime
) -> Transition:
    """The grant replaces the one before; in a connection that is revoking it is only revoked."""
    state = state_after(connection.state, change)
    changes = {
        "state": state,
        "generation": max(connection.generation, result.generation or 0),
        **grant_facts_of(result),
        "leased": True,
        "failures": 0,
        "retry_at": None,
        "caller_retry_at": None,
        "reason": ErrorCode.CONNECTION_REVOKED if state is LifecycleState.REVOKING else None,
        "installed_at": now,
        "refresh_extends": refresh_extends_end(connection, change, result),
        "account_lookup_at": now if result.account_lookup_needed else None,
        "account_lookup_failures": 0,
        "choice_pending": result.choice_pending,
        **NO_LATE_TOKENS,
    }
    after = connection.model_copy(update=changes)
    if not is_same_end(grant_ends_at(connection), grant_ends_at(after)):
        after = after.model_copy(update={"end_known_at": result.obtained_at, "announced_days": ()})
    if LifecycleState.REVOKING in (result.state, state):
        return start_revoking(after, Command.REVOKE)
    return Transition(after)


def start_revoking(connection: ConnectionState, command: Command, reason: str | None = None) -> Transition:
    changes = {
        "state": state_after(connection.state, StateChange.REVOCATION_REQUESTED),
        "reason": ErrorCode.CONNECTION_REVOKED,
        "revoke_reason": connection.revoke_reason or reason,
        "failures": 0,
        "retry_at": None,
    }
    return Transition(connection.model_copy(update=changes), command)


def store_is_revoking(result: GrantResult) -> bool:
    """True when the store says `revoking` in place of a grant."""
    return result.state is LifecycleState.REVOKING and result.generation is None
