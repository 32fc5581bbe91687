"""Waits until the grants of an import are installed, and have been refreshed once."""

import asyncio
from collections.abc import Collection, Mapping
from types import MappingProxyType

from evergrant_server.api.http.call import ApiCall
from evergrant_server.api.transfer.models import ImportOutcome
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.errors import ErrorCode, Failure, FailureKind
from evergrant_server.core.ids import ConnectionId
from evergrant_server.core.lifecycle.snapshot import FIRST_GENERATION
from evergrant_server.core.messages.connection import EnsureFresh

WAIT_S = 15.0  # per request: shorter than the client's timeout
MIN_WAIT_S = 3.0  # left for verification after a slow import
_MOST_ASKED = 16  # workflows of one request at a time
_POLL_S = 0.1
_QUIET_S = 2.0  # without a refresh that ended; then workflows are asked
REFUSED_KINDS = (FailureKind.RECONNECT_NEEDED, FailureKind.CLIENT_MISCONFIGURED)


class ImportVerification:
    """Verifies the outcomes of one request within `WAIT_S` of its creation.

    The workflow of a grant that is imported now refreshes it by itself, and one query tells which of all have
    been: an update for each would cost more than the refresh. Workflows are asked one by one about grants of
    an earlier request, and about those of which the store tells nothing for a while.
    """

    def __init__(self, call: ApiCall) -> None:
        self._api = call.api
        self._tenant = call.tenant
        self._context = call.context
        self._gate = asyncio.Semaphore(_MOST_ASKED)
        self._ends = asyncio.get_running_loop().time() + WAIT_S
        self._judged: dict[ConnectionId, asyncio.Future[ImportOutcome]] = {}

    async def verify(
        self, outcomes: list[ImportOutcome], renewed: Mapping[ConnectionId, int] = MappingProxyType({})
    ) -> list[ImportOutcome]:
        """The outcomes in the same order, imported ones with their verification. `renewed` are connections
        that were there, and the generation that a worker installs in them."""
        self._ends = max(self._ends, asyncio.get_running_loop().time() + MIN_WAIT_S)
        waiting = {
            ConnectionId(outcome.connection_id): outcome
            for outcome in outcomes
            if outcome.connection_id and outcome.status == "imported"
        }
        for id, generation in renewed.items():
            judging = self._verify_renewed(waiting.pop(id), id, generation)
            self._judged[id] = asyncio.ensure_future(judging)
        earlier = await self._unverified(outcomes, {*waiting, *renewed})
        try:
            await self._judge(earlier, refreshed=False)
            await self._wait_for_refreshes(waiting)
            if self._judged:
                await asyncio.wait(self._judged.values(), timeout=max(self._seconds_left(), 0.0))
            return [self._final_outcome(outcome, waiting | earlier) for outcome in outcomes]
        finally:
            for judging in self._judged.values():
                judging.cancel()
            await asyncio.gather(*self._judged.values(), return_exceptions=True)

    async def _wait_for_refreshes(self, waiting: dict[ConnectionId, ImportOutcome]) -> None:
        """Judge those whose refresh has ended, until none is left or there is no time left."""
        asks_at = asyncio.get_running_loop().time() + _QUIET_S
        while waiting and self._seconds_left() > 0:
            now = asyncio.get_running_loop().time()
            if await self._judge(waiting, refreshed=now < asks_at) and now < asks_at:
                asks_at = now + _QUIET_S
            if waiting:
                await asyncio.sleep(_POLL_S)

    async def _judge(self, waiting: dict[ConnectionId, ImportOutcome], *, refreshed: bool) -> bool:
        """Begin to judge those that are installed, or only those of them that need no refresh any more."""
        if not waiting:
            return False
        async with self._api.store.read() as tx:
            installed = await tx.connections.past_consent(self._tenant, list(waiting), refreshed=refreshed)
        for connection, refreshable in installed:
            outcome = waiting.pop(connection.id)
            judging = self._verify_one(outcome, connection, refreshable)
            self._judged[connection.id] = asyncio.ensure_future(judging)
        return bool(installed)

    async def _unverified(
        self, outcomes: list[ImportOutcome], imported: Collection[ConnectionId]
    ) -> dict[ConnectionId, ImportOutcome]:
        """Outcomes of grants that an earlier request imported, and that weren't refreshed yet."""
        unverified: dict[ConnectionId, ImportOutcome] = {}
        for outcome in outcomes:
            id = ConnectionId(outcome.connection_id or "")
            if outcome.status != "exists" or not id or id in imported:
                continue
            async with self._api.store.read() as tx:
                connection = await tx.connections.get(self._tenant, id)
                if connection is None or connection.generation > FIRST_GENERATION:
                    continue
                if await tx.consents.import_consent(self._tenant, id) is not None:
                    unverified[id] = outcome
        return unverified

    async def _verify_one(
        self, outcome: ImportOutcome, connection: Connection, refreshable: bool
    ) -> ImportOutcome:
        if connection.state is not LifecycleState.ACTIVE:
            return outcome.with_verification("failed", connection.reason or ErrorCode.CONSENT_REQUIRED)
        if connection.generation > FIRST_GENERATION:
            return outcome.with_verification("verified")
        if not refreshable:
            return outcome.with_verification("unverified", detail="there is no refresh token to verify")
        if connection.last_failure is not None:
            return _not_verified(outcome, connection.last_failure)
        async with self._gate:
            return await self._verify_by_refresh(outcome, connection)

    async def _verify_renewed(
        self, outcome: ImportOutcome, id: ConnectionId, generation: int
    ) -> ImportOutcome:
        """Wait until a worker has installed the tokens, and have them refreshed once."""
        while True:
            await asyncio.sleep(_POLL_S)
            async with self._api.store.read() as tx:
                ((connection, refreshable),) = await tx.connections.past_consent(self._tenant, [id])
            if connection.generation >= generation:
                break
        if not refreshable:
            return outcome.with_verification("unverified", detail="there is no refresh token to verify")
        async with self._gate:
            return await self._verify_by_refresh(outcome, connection, generation)

    async def _verify_by_refresh(
        self, outcome: ImportOutcome, connection: Connection, seen: int = FIRST_GENERATION
    ) -> ImportOutcome:
        ask = EnsureFresh(seen_generation=seen, context=self._context)
        left = max(self._seconds_left(), 0.5)
        try:
            result = await self._api.link.ensure_fresh(self._tenant, connection.id, ask, timeout=left)
        except Failure as failure:
            return outcome.with_verification("unverified", failure.code, failure.detail)
        if result.generation > seen:
            return outcome.with_verification("verified")
        return _not_verified(outcome, result.problem or ErrorCode.REFRESH_PENDING)

    def _final_outcome(
        self, outcome: ImportOutcome, waiting: Mapping[ConnectionId, ImportOutcome]
    ) -> ImportOutcome:
        id = ConnectionId(outcome.connection_id or "")
        judging = self._judged.get(id)
        if judging is not None and judging.done():
            judged = judging.result()
            if judged.verification is None:
                return outcome
            detail = judged.detail or outcome.detail
            return outcome.with_verification(judged.verification, judged.code, detail)
        if judging is None and id not in waiting:
            return outcome
        why = "no worker has installed it yet" if judging is None else "its first refresh has not ended yet"
        return outcome.with_verification("unverified", ErrorCode.REFRESH_PENDING, why)

    def _seconds_left(self) -> float:
        return self._ends - asyncio.get_running_loop().time()


def _not_verified(outcome: ImportOutcome, code: ErrorCode) -> ImportOutcome:
    failure = Failure(code)
    how = "failed" if failure.kind in REFUSED_KINDS else "unverified"
    return outcome.with_verification(how, failure.code, failure.detail)
