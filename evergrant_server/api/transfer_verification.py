"""After an import: wait until a worker has installed the grants, and refresh each once."""

import asyncio

from evergrant_server.api.parts import Parts
from evergrant_server.api.transfer_shapes import ItemOutcome
from evergrant_server.core.connection import Connection, State
from evergrant_server.core.errors import Code, Failure, Kind
from evergrant_server.core.ids import ConnectionId, Tenant
from evergrant_server.core.messages import Asked, EnsureFresh

WAIT_S = 15.0  # for a whole request: shorter than a client's patience with one attempt
AT_LEAST_S = 3.0  # after items that took so long that nobody would be asked for a refresh
AT_ONCE = 16  # refreshes under way for one request
_LOOK_S = 0.1
_FIRST = 1  # the generation that an import installs
_REFUSED = (Kind.RECONNECT_NEEDED, Kind.CLIENT_MISCONFIGURED)


class Verification:
    """Judges the outcomes of one request, whose time begins with this. What isn't done then goes on alone."""

    def __init__(self, parts: Parts, tenant: Tenant, asked: Asked, *, refresh: bool) -> None:
        self._parts = parts
        self._tenant = tenant
        self._asked = asked
        self._refresh = refresh
        self._gate = asyncio.Semaphore(AT_ONCE)
        self._ends = asyncio.get_running_loop().time() + WAIT_S

    async def of(self, outcomes: list[ItemOutcome]) -> list[ItemOutcome]:
        """The same outcomes in the same order, imported ones with their verification."""
        self._ends = max(self._ends, asyncio.get_running_loop().time() + AT_LEAST_S)
        waiting = await self._to_judge(outcomes)
        running: dict[str, asyncio.Task[ItemOutcome]] = {}
        try:
            while waiting and self._left() > 0:
                for connection, refreshable in await self._installed(list(waiting)):
                    outcome = waiting.pop(connection.id)
                    judging = self._judged(outcome, connection, refreshable)
                    running[connection.id] = asyncio.create_task(judging)
                if waiting:
                    await asyncio.sleep(_LOOK_S)
            if running:
                await asyncio.wait(running.values(), timeout=max(self._left(), 0.0))
            return [self._said(outcome, waiting, running) for outcome in outcomes]
        finally:
            for task in running.values():
                task.cancel()
            await asyncio.gather(*running.values(), return_exceptions=True)

    async def _to_judge(self, outcomes: list[ItemOutcome]) -> dict[str, ItemOutcome]:
        """What was imported now, and what an earlier request imported and nothing has refreshed yet."""
        found = {it.connection_id: it for it in outcomes if it.connection_id and it.status == "imported"}
        if not self._refresh:
            return found
        async with self._parts.store.read() as tx:
            for outcome in outcomes:
                if outcome.status != "exists" or outcome.connection_id is None:
                    continue
                if outcome.connection_id in found:
                    continue
                connection = await tx.connections.get(self._tenant, ConnectionId(outcome.connection_id))
                if connection is None or connection.generation > _FIRST:
                    continue
                if await tx.consents.import_of(self._tenant, connection.id) is not None:
                    found[connection.id] = outcome
        return found

    async def _installed(self, ids: list[str]) -> list[tuple[Connection, bool]]:
        """Those of the connections whose grant is in, and whether it can be refreshed."""
        ready: list[tuple[Connection, bool]] = []
        async with self._parts.store.read() as tx:
            for connection_id in ids:
                connection = await tx.connections.get(self._tenant, ConnectionId(connection_id))
                if connection is None or connection.state is State.PENDING_CONSENT:
                    continue
                grant = await tx.grants.get(self._tenant, connection.id)
                ready.append((connection, grant is not None and grant.refreshable))
        return ready

    async def _judged(self, outcome: ItemOutcome, connection: Connection, refreshable: bool) -> ItemOutcome:
        if connection.state is not State.ACTIVE:
            return outcome.judged("failed", connection.reason or Code.CONSENT_REQUIRED)
        if connection.generation > _FIRST:
            return outcome.judged("verified")
        if not self._refresh:
            return outcome.judged("unverified", detail="nobody asked for a first refresh")
        if not refreshable:
            return outcome.judged("unverified", detail="there is no refresh token to try")
        async with self._gate:
            return await self._refreshed(outcome, connection)

    async def _refreshed(self, outcome: ItemOutcome, connection: Connection) -> ItemOutcome:
        ask = EnsureFresh(seen_generation=_FIRST, asked=self._asked)
        left = max(self._left(), 0.5)
        try:
            said = await self._parts.link.ensure_fresh(self._tenant, connection.id, ask, timeout=left)
        except Failure as failure:
            return outcome.judged("unverified", failure.code, failure.detail)
        if said.generation > _FIRST:
            return outcome.judged("verified")
        failure = Failure(said.problem or Code.REFRESH_PENDING)
        how = "failed" if failure.kind in _REFUSED else "unverified"
        return outcome.judged(how, failure.code, failure.detail)

    def _said(
        self,
        outcome: ItemOutcome,
        waiting: dict[str, ItemOutcome],
        running: dict[str, asyncio.Task[ItemOutcome]],
    ) -> ItemOutcome:
        task = running.get(outcome.connection_id or "")
        if task is not None and task.done():
            judged = task.result()
            how = judged.verification
            return (
                outcome if how is None else outcome.judged(how, judged.code, judged.detail or outcome.detail)
            )
        if task is not None:
            return outcome.judged("unverified", Code.REFRESH_PENDING, "its first refresh has not ended yet")
        if outcome.connection_id in waiting:
            return outcome.judged("unverified", Code.REFRESH_PENDING, "no worker has installed it yet")
        return outcome

    def _left(self) -> float:
        return self._ends - asyncio.get_running_loop().time()
