"""What a connection's access token is, and why: an active connection may hold an expired one. Pure."""

from datetime import datetime, timedelta
from enum import StrEnum

from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.grant import FollowUp, Grant

_LATE = timedelta(minutes=5)  # a worker refreshes before the end; so long after it none has


class TokenState(StrEnum):
    """Of a connection's access token. Add, never rename."""

    NONE = "none"  # it holds none that could be leased
    VALID = "valid"
    CHOOSING = "choosing"  # no lease before one of several accounts is chosen
    IDLE = "idle"  # expired, and no app has asked since: the next one that asks gets a new one
    DUE = "due"  # expired, and a worker is about to refresh it, or a caller waits for that
    LATE = "late"  # expired for a while, it was used, and no worker has refreshed it
    FAILING = "failing"  # expired, and its refreshes fail
    OVER = "over"  # expired, and nothing refreshes it: its subject has to consent again


def token_state(
    connection: Connection, grant: Grant | None, leased_generation: int, now: datetime
) -> TokenState:
    """`leased_generation`: of the newest token that an app has leased; 0: none."""
    if connection.state not in (LifecycleState.ACTIVE, LifecycleState.NEEDS_REAUTH) or grant is None:
        return TokenState.NONE
    if connection.follow_up is FollowUp.CHOOSING:
        return TokenState.CHOOSING
    if grant.is_valid(now):
        return TokenState.VALID
    if connection.state is LifecycleState.NEEDS_REAUTH or not grant.refreshable:
        return TokenState.OVER
    if connection.failures:
        return TokenState.FAILING
    is_kept_fresh = connection.refresh_policy == "warm"
    was_used = connection.refresh_policy == "adaptive" and leased_generation >= grant.token_generation
    if not (is_kept_fresh or was_used):
        return TokenState.IDLE
    assert grant.expires_at is not None
    return TokenState.LATE if now - grant.expires_at > _LATE else TokenState.DUE
