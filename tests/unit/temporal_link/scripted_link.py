"""A Temporal link without Temporal: every connection's workflow is running and knows what the store knows."""

from collections import Counter
from collections.abc import Iterable
from datetime import datetime

from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId, Tenant
from evergrant_server.core.messages.base import connection_workflow_id
from evergrant_server.core.messages.connection import ConnectionDescription, ConnectionStart
from evergrant_server.temporal_link.link import TemporalLink
from evergrant_server.temporal_link.runs import NewestRun, RunningWorkflow
from evergrant_server.temporal_link.start_requests import StartRequest


class ScriptedLink(TemporalLink):
    """Tests script the answers with the attributes.

    `silent` says how many queries a workflow leaves unanswered; `queries` counts them. `newest` is
    the newest run of every workflow. `started` holds the messages of started connections.
    """

    def __init__(self, connections: Iterable[Connection]) -> None:
        self._known = {connection.id: connection for connection in connections}
        self.silent: dict[str, int] = {}
        self.queries: Counter[str] = Counter()
        self.newest: NewestRun | None = NewestRun("run", True, None)
        self.pending_replies: tuple[str, ...] = ()
        self.started: list[ConnectionStart] = []
        self.closed_run_queries = 0

    async def running_connections(self) -> dict[str, RunningWorkflow]:
        return {
            connection_workflow_id(known.tenant, known.id): RunningWorkflow(known.created_at, known.state)
            for known in self._known.values()
        }

    async def newest_run(self, workflow: str) -> NewestRun | None:
        return self.newest

    async def is_idle(self, workflow: str) -> bool:
        return True

    async def closed_connections(self, since: datetime | None) -> list[tuple[str, str]]:
        self.closed_run_queries += 1
        return []

    async def start(self, request: StartRequest) -> None:
        assert isinstance(request.argument, ConnectionStart)
        self.started.append(request.argument)

    async def describe(
        self, tenant: Tenant, connection_id: ConnectionId, timeout: float = 2.0
    ) -> ConnectionDescription:
        self.queries[connection_id] += 1
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
            revocation_failure=None,
            revocation_failing_since=None,
            waiting_callers=self.pending_replies,
        )
