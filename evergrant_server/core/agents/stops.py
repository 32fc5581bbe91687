"""The stop of an agent: its first commit refuses the agent's requests, a workflow closes what is left.

Pure. The row says what was ordered and how far it has come; the workflow only calls until nothing is left.
"""

from datetime import datetime

from evergrant_server.core.ids import AgentStopId, AppId, TenantRow


class AgentStop(TenantRow):
    """One stop. The counts are of what it has ended so far; `finished_at` None: there is more to end.

    `revoke_connections`: connections whose tokens no other app has leased are revoked too; `after` is the
    last of the agent's connections that was looked at.
    """

    id: AgentStopId
    app_id: AppId
    reason: str
    by: str
    revoke_connections: bool
    created_at: datetime
    approvals_closed: int = 0
    connections_revoked: int = 0
    connections_kept: int = 0
    delegations_ended: int = 0
    after: str = ""
    finished_at: datetime | None = None

    @property
    def counts(self) -> dict[str, int]:
        """What it has ended so far, and the connections that other apps use too."""
        return {
            "approvals_closed": self.approvals_closed,
            "connections_revoked": self.connections_revoked,
            "connections_kept": self.connections_kept,
            "delegations_ended": self.delegations_ended,
        }
