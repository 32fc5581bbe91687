"""What it means that a workflow and the store say different things of one connection. Pure.

The store is written first and the workflow hears of it at once, so they differ for moments
only; unless one of them was set back: the store by a backup, the workflow by hand (a reset).
"""

from enum import StrEnum

from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.messages.connection import ConnectionDescription


class Drift(StrEnum):
    """Who is behind, and in what."""

    NONE = "none"
    STORE_BEHIND = "store behind"  # a newer generation was installed: the refresh token may be spent
    STORE_LOST_REVOCATION = "store forgot a revocation"
    WORKFLOW_MISSED_REVOCATION = "revocation untold"  # the workflow doesn't know that it is to revoke
    WORKFLOW_BEHIND = "workflow behind"  # it waits for what has happened already


def find_drift(stored: Connection, known: ConnectionDescription) -> Drift:
    """Compare. A higher generation is the later one; a revocation outweighs everything."""
    asked, told = (
        stored.state is LifecycleState.REVOKING,
        known.state in (LifecycleState.REVOKING, LifecycleState.REVOKED),
    )
    if told and not (asked or stored.state is LifecycleState.REVOKED):
        return Drift.STORE_LOST_REVOCATION
    if asked and not told:
        return Drift.WORKFLOW_MISSED_REVOCATION
    if known.generation > stored.generation:
        return Drift.STORE_BEHIND
    if stored.generation > known.generation and stored.state is not known.state:
        return Drift.WORKFLOW_BEHIND
    return Drift.NONE
