"""What it means when a workflow and the store differ about a connection. Pure.

The store is written first and the workflow signalled at once, so they differ for moments only,
unless one was set back: the store by a backup, the workflow by an operator's reset.
"""

from enum import StrEnum

from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.messages.connection import ConnectionDescription


class Drift(StrEnum):
    """Which of the two is behind, and in what."""

    NONE = "none"
    STORE_BEHIND = "store behind"  # a newer generation was installed: the refresh token may be spent
    STORE_LOST_REVOCATION = "store lost a revocation"
    WORKFLOW_MISSED_REVOCATION = "workflow missed a revocation"
    WORKFLOW_BEHIND = "workflow behind"  # it waits for what has happened already


def find_drift(stored: Connection, known: ConnectionDescription) -> Drift:
    """Compare. A higher generation is the later one; a revocation outweighs everything."""
    revoking = stored.state is LifecycleState.REVOKING
    workflow_knows = known.state in (LifecycleState.REVOKING, LifecycleState.REVOKED)
    if workflow_knows and not (revoking or stored.state is LifecycleState.REVOKED):
        return Drift.STORE_LOST_REVOCATION
    if revoking and not workflow_knows:
        return Drift.WORKFLOW_MISSED_REVOCATION
    if known.generation > stored.generation:
        return Drift.STORE_BEHIND
    if stored.generation > known.generation and stored.state is not known.state:
        return Drift.WORKFLOW_BEHIND
    return Drift.NONE
