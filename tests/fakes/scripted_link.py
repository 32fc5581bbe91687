"""A link to no Temporal: every connection's workflow runs, and tells what the store says, unless scripted."""

from collections.abc import Iterable
from datetime import datetime

from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId, Tenant, connection_workflow_id
from evergrant_server.core.messages.connection import ConnectionDescription
from evergrant_server.temporal_link import TemporalLink
from evergrant_server.temporal_link.runs import ClosedRun, NewestRun, RunningWorkflow


class ScriptedLink(TemporalLink):
    """`silent` says how often a connection still doesn't answer; `asked` counts who was asked how often."""

    def __init__(self, connections: Iterable[Connection]) -> None:
        self._known = {it.id: it for it in connections}
        self.silent: dict[str, int] = {}
        self.asked: dict[str, int] = {}
        self.closed_looks = 0

    async def running_connections(self) -> dict[str, RunningWorkflow]:
        return {
            connection_workflow_id(it.tenant, it.id): RunningWorkflow(it.created_at, it.state)
            for it in self._known.values()
        }

    async def newest_run(self, workflow: str) -> NewestRun | None:
        return NewestRun("run", True, None)

    async def closed_connections(self, since: datetime | None) -> list[ClosedRun]:
        self.closed_looks += 1
        return []

    async def describe(
        self, tenant: Tenant, connection_id: ConnectionId, timeout: float = 2.0
    ) -> ConnectionDescription:
        self.asked[connection_id] = self.asked.get(connection_id, 0) + 1
        if self.silent.get(connection_id, 0) > 0:
            self.silent[connection_id] -= 1
            raise Failure(ErrorCode.TEMPORAL_UNAVAILABLE, "scripted: no answer")
        known = self._known[connection_id]
        return ConnectionDescription(
            connection_id=connection_id,
            state=known.state,
            generation=known.generation,
            expires_at=None,
            next_step="nothing",
            next_at=None,
            reason=None,
            repairer=None,
            failures=0,
        )
