"""Stands where TemporalLink stands, for an API in this process."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId, IntegrationId, Tenant
from evergrant_server.core.messages.connection import ConnectionDescription, EnsureFresh, EnsureFreshResult
from evergrant_server.core.messages.integrations import DiscoverEndpoints
from evergrant_server.core.messages.keys import KeyRotationStart
from evergrant_server.core.messages.work import CommandT, Job, ResultT
from evergrant_server.temporal_link.stories import MayRead, StoryCodec
from tests.fakes.databases import NOW
from tests.fakes.rows import a_description

Refresh = Callable[[Tenant, ConnectionId, EnsureFresh], Awaitable[EnsureFreshResult]]


class ScriptedLink:
    """Stands where TemporalLink stands. Does nothing it isn't told; keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[EnsureFresh] = []
        self.discoveries: list[IntegrationId] = []
        self.events: dict[str | None, list[dict[str, Any]]] = {}
        self.up = True
        self.ended = False  # the run of every connection
        self.next_at = NOW  # what it does next
        self.rotations: dict[str, KeyRotationStart] = {}  # of keys, by workflow id
        self.codec: StoryCodec  # of the API's own store and keys: see `running_api`
        self.on_refresh: Refresh | None = None
        self.on_job: dict[str, Callable[[Any], Awaitable[Any]]] = {}  # by its name, what a worker does

    async def ensure_fresh(
        self, tenant: Tenant, connection_id: ConnectionId, ask: EnsureFresh, *, timeout: float
    ) -> EnsureFreshResult:
        self.asked.append(ask)
        self._must_be_up()
        if self.on_refresh is None:
            raise AssertionError("no refresh was expected")
        return await self.on_refresh(tenant, connection_id, ask)

    async def describe(
        self, tenant: Tenant, connection_id: ConnectionId, timeout: float = 2.0
    ) -> ConnectionDescription | None:
        self._must_be_up()
        if self.ended:
            return None
        facts = {"state": LifecycleState.ACTIVE, "generation": 1, "next_step": "refresh due"}
        return a_description(connection_id, **facts, next_at=self.next_at)

    async def describe_key_rotation(self, workflow: str, timeout: float = 2.0) -> KeyRotationStart | None:
        self._must_be_up()
        return self.rotations.get(workflow)

    async def run_job(self, job: Job[CommandT, ResultT], request: CommandT, timeout: float) -> ResultT:
        if isinstance(request, DiscoverEndpoints):
            self.discoveries.append(request.integration_id)
        self._must_be_up()
        return await self.on_job[job.name](request)

    async def ready(self) -> bool:
        return self.up

    async def history(self, workflow: str, run_id: str | None = None) -> list[dict[str, Any]]:
        self._must_be_up()
        return self.events[run_id]

    async def open_events(self, events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        return await self.codec.open_events(events)

    async def read_payloads(
        self, payloads: Sequence[dict[str, Any]], may_read: MayRead
    ) -> list[dict[str, Any]]:
        return [await self.codec.read(payload, may_read) for payload in payloads]

    def _must_be_up(self) -> None:
        if not self.up:
            raise Failure(ErrorCode.TEMPORAL_UNAVAILABLE, retry_after=1.0)
