"""What it means that a workflow and the store say different things of one connection. Pure.

The store is written first and the workflow hears of it at once, so they differ for moments
only; unless one of them was set back: the store by a backup, the workflow by hand (a reset).
"""

from enum import StrEnum

from evergrant_server.core.connection import Connection, State
from evergrant_server.core.messages import Description


class Drift(StrEnum):
    """Who is behind, and in what."""

    NONE = "none"
    STORE_BEHIND = "store behind"  # a newer generation was installed: the refresh token may be spent
    STORE_FORGOT_REVOCATION = "store forgot a revocation"
    REVOCATION_UNTOLD = "revocation untold"  # the workflow doesn't know that it is to revoke
    WORKFLOW_BEHIND = "workflow behind"  # it waits for what has happened already


def drift(stored: Connection, known: Description) -> Drift:
    """Compare. A higher generation is the later one; a revocation outweighs everything."""
    asked, told = stored.state is State.REVOKING, known.state in (State.REVOKING, State.REVOKED)
    if told and not (asked or stored.state is State.REVOKED):
        return Drift.STORE_FORGOT_REVOCATION
    if asked and not told:
        return Drift.REVOCATION_UNTOLD
    if known.generation > stored.generation:
        return Drift.STORE_BEHIND
    if stored.generation > known.generation and stored.state is not known.state:
        return Drift.WORKFLOW_BEHIND
    return Drift.NONE
