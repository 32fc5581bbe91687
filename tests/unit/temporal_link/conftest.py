"""A store on SQLite with connections, and a link that plays their workflows without Temporal."""

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import datetime
from pathlib import Path

import pytest
import pytest_asyncio

from evergrant_server.core.connections.connection import Connection
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId, Tenant
from evergrant_server.core.messages.connection import ConnectionDescription, ConnectionStart
from evergrant_server.core.messages.names import connection_workflow_id
from evergrant_server.crypto.keyring import KeyRing
from evergrant_server.store import Store
from evergrant_server.temporal_link.link import TemporalLink
from evergrant_server.temporal_link.reconcile import Reconciler
from evergrant_server.temporal_link.runs import NewestRun, RunningWorkflow
from evergrant_server.temporal_link.start_requests import StartRequest
from evergrant_server.temporal_link.workflow_starter import WorkflowStarter
from providers.definition.registry import Registry
from tests.fakes.clock import SetClock
from tests.fakes.databases import clock, key_path, migrated_sqlite, ring, sqlite_url
from tests.fakes.rows import a_connection, a_description, an_integration

__all__ = ["clock", "key_path", "ring"]


class ScriptedLink(TemporalLink):
    """Tests script the answers with the attributes.

    `silent` says how many queries a workflow leaves unanswered; `queries` counts them. `newest` is
    the newest run of every workflow, `open_runs` how many are open, `failing` the workflows whose task
    fails. `started` holds the messages of started connections.
    """

    def __init__(self, connections: Sequence[Connection]) -> None:
        self._known = {connection.id: connection for connection in connections}
        self._by_workflow = {connection_workflow_id(c.tenant, c.id): c for c in connections}
        self.silent: dict[str, int] = {}
        self.queries: Counter[str] = Counter()
        self.newest: NewestRun | None = NewestRun("run", True, None)
        self.pending_replies: tuple[str, ...] = ()
        self.started: list[ConnectionStart] = []
        self.closed_run_queries = 0
        self.open_runs = len(connections)
        self.failing: tuple[str, ...] = ()
        self.most_listed = 0  # workflows that one query of visibility named

    async def running_connections(self, workflows: Sequence[str]) -> dict[str, RunningWorkflow]:
        self.most_listed = max(self.most_listed, len(workflows))
        wanted = {name: self._by_workflow[name] for name in workflows if name in self._by_workflow}
        return {name: RunningWorkflow(known.created_at, known.state) for name, known in wanted.items()}

    async def newest_run(self, workflow: str) -> NewestRun | None:
        return self.newest

    async def open_connections(self, state: str | None = None) -> int:
        return self.open_runs if state is None else 0

    async def failing_workflows(self) -> AsyncIterator[str]:
        for workflow in self.failing:
            yield workflow

    async def is_idle(self, workflow: str) -> bool:
        return True

    async def closed_connections(self, since: datetime | None) -> AsyncIterator[tuple[str, str]]:
        self.closed_run_queries += 1
        for run in ():
            yield run

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
        facts = {"state": known.state, "generation": known.generation, "next_step": "nothing"}
        return a_description(connection_id, **facts, waiting_callers=self.pending_replies)


Prepare = Callable[..., Awaitable[tuple[Reconciler, ScriptedLink]]]


def connection_ids(*numbers: int) -> tuple[str, ...]:
    return tuple(f"con_{number:026}" for number in numbers)


@pytest_asyncio.fixture
async def store(tmp_path: Path, ring: KeyRing, clock: SetClock) -> AsyncIterator[Store]:
    await migrated_sqlite(tmp_path)
    opened = await Store.open(sqlite_url(tmp_path), ring, clock)
    yield opened
    await opened.close()


@pytest.fixture
def prepare(store: Store, ring: KeyRing, clock: SetClock) -> Prepare:
    """Adds that many connections; returns the reconciler and the link that it queries."""

    async def prepared(count: int, first: int = 0) -> tuple[Reconciler, ScriptedLink]:
        connections = [connection(number, clock) for number in range(first, first + count)]
        async with store.write() as tx:
            for added in connections:
                await tx.connections.add(added)
        link = ScriptedLink(connections)
        starter = WorkflowStarter(store, link, ring, clock, Registry({}).refresh_rules)
        return Reconciler(store, link, starter, clock), link

    return prepared


def connection(number: int, clock: SetClock) -> Connection:
    names = {"id": ConnectionId(*connection_ids(number)), "subject": f"user-{number}"}
    return a_connection(an_integration(Tenant("acme"), clock.now()), clock.now(), **names)
