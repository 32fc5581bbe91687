"""Verifies imported grants: waits for their installation and refreshes each once."""

import asyncio

from evergrant_server.api.http.call import ApiCall
from evergrant_server.api.transfer.models import ImportOutcome
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.errors import ErrorCode, Failure, FailureKind
from evergrant_server.core.ids import ConnectionId
from evergrant_server.core.messages.connection import EnsureFresh

WAIT_S = 15.0  # per request: shorter than the client's timeout
MIN_WAIT_S = 3.0  # left for verification after a slow import
MAX_CONCURRENT = 16  # refreshes of one request at a time
_POLL_S = 0.1
_FIRST_GENERATION = 1  # the generation that an import installs
_REFUSED_KINDS = (FailureKind.RECONNECT_NEEDED, FailureKind.CLIENT_MISCONFIGURED)


class ImportVerification:
    """Verifies the outcomes of one request within `WAIT_S` of its creation."""

    def __init__(self, call: ApiCall) -> None:
        self._api = call.api
        self._tenant = call.tenant
        self._context = call.context
        self._gate = asyncio.Semaphore(MAX_CONCURRENT)
        self._ends = asyncio.get_running_loop().time() + WAIT_S

    async def verify(self, outcomes: list[ImportOutcome]) -> list[ImportOutcome]:
        """The outcomes in the same order, imported ones with their verification."""
        self._ends = max(self._ends, asyncio.get_running_loop().time() + MIN_WAIT_S)
        waiting = await self._unverified(outcomes)
        running: dict[str, asyncio.Task[ImportOutcome]] = {}
        try:
            while waiting and self._seconds_left() > 0:
                for connection, refreshable in await self._installed_connections(list(waiting)):
                    outcome = waiting.pop(connection.id)
                    judging = self._verify_one(outcome, connection, refreshable)
                    running[connection.id] = asyncio.create_task(judging)
                if waiting:
                    await asyncio.sleep(_POLL_S)
            if running:
                await asyncio.wait(running.values(), timeout=max(self._seconds_left(), 0.0))
            return [self._final_outcome(outcome, waiting, running) for outcome in outcomes]
        finally:
            for task in running.values():
                task.cancel()
            await asyncio.gather(*running.values(), return_exceptions=True)

    async def _unverified(self, outcomes: list[ImportOutcome]) -> dict[str, ImportOutcome]:
        """Outcomes to verify: imported now, or by an earlier request and not refreshed yet."""
        found = {it.connection_id: it for it in outcomes if it.connection_id and it.status == "imported"}
        async with self._api.store.read() as tx:
            for outcome in outcomes:
                if outcome.status != "exists" or not outcome.connection_id or outcome.connection_id in found:
                    continue
                connection = await tx.connections.get(self._tenant, ConnectionId(outcome.connection_id))
                if connection is None or connection.generation > _FIRST_GENERATION:
                    continue
                if await tx.consents.import_consent(self._tenant, connection.id) is not None:
                    found[connection.id] = outcome
        return found

    async def _installed_connections(self, ids: list[str]) -> list[tuple[Connection, bool]]:
        """The connections whose grant is installed, and whether it can be refreshed."""
        ready: list[tuple[Connection, bool]] = []
        async with self._api.store.read() as tx:
            for connection_id in ids:
                connection = await tx.connections.get(self._tenant, ConnectionId(connection_id))
                if connection is None or connection.state is LifecycleState.PENDING_CONSENT:
                    continue
                grant = await tx.grants.get(self._tenant, connection.id)
                ready.append((connection, grant is not None and grant.refreshable))
        return ready

    async def _verify_one(
        self, outcome: ImportOutcome, connection: Connection, refreshable: bool
    ) -> ImportOutcome:
        if connection.state is not LifecycleState.ACTIVE:
            return outcome.with_verification("failed", connection.reason or ErrorCode.CONSENT_REQUIRED)
        if connection.generation > _FIRST_GENERATION:
            return outcome.with_verification("verified")
        if not refreshable:
            return outcome.with_verification("unverified", detail="there is no refresh token to verify")
        async with self._gate:
            return await self._verify_by_refresh(outcome, connection)

    async def _verify_by_refresh(self, outcome: ImportOutcome, connection: Connection) -> ImportOutcome:
        ask = EnsureFresh(seen_generation=_FIRST_GENERATION, context=self._context)
        left = max(self._seconds_left(), 0.5)
        try:
            result = await self._api.link.ensure_fresh(self._tenant, connection.id, ask, timeout=left)
        except Failure as failure:
            return outcome.with_verification("unverified", failure.code, failure.detail)
        if result.generation > _FIRST_GENERATION:
            return outcome.with_verification("verified")
        failure = Failure(result.problem or ErrorCode.REFRESH_PENDING)
        how = "failed" if failure.kind in _REFUSED_KINDS else "unverified"
        return outcome.with_verification(how, failure.code, failure.detail)

    def _final_outcome(
        self,
        outcome: ImportOutcome,
        waiting: dict[str, ImportOutcome],
        running: dict[str, asyncio.Task[ImportOutcome]],
    ) -> ImportOutcome:
        task = running.get(outcome.connection_id or "")
        if task is not None and task.done():
            judged = task.result()
            if judged.verification is None:
                return outcome
            detail = judged.detail or outcome.detail
            return outcome.with_verification(judged.verification, judged.code, detail)
        if task is None and outcome.connection_id not in waiting:
            return outcome
        why = "no worker has installed it yet" if task is None else "its first refresh has not ended yet"
        return outcome.with_verification("unverified", ErrorCode.REFRESH_PENDING, why)

    def _seconds_left(self) -> float:
        return self._ends - asyncio.get_running_loop().time()
