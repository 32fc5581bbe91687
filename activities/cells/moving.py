"""The job of a move on either side: step after step, until the row says that it has ended.

A step that fails is tried again, and the row says why meanwhile. What the operator has ordered says what is
done, and no message: who writes to Temporal's namespace can start the job, and nothing else.
"""

import asyncio
import base64
import json
import logging
from typing import Any

from temporalio import activity

from activities.cells.copying import Copier, OtherCell
from activities.cells.receiving import Receiving, erase_all
from activities.support.temporal import heartbeating
from activities.support.transactions import commit_with_retries
from evergrant_server.core.cells.moves import ENDED, MoveSide, MoveState, TenantMove
from evergrant_server.core.clock import Clock
from evergrant_server.core.errors import Failure
from evergrant_server.core.ids import ConnectionId
from evergrant_server.core.messages import jobs
from evergrant_server.core.messages.cells import MoveResult, MoveTenant
from evergrant_server.core.messages.names import connection_workflow_id
from evergrant_server.crypto import KeyRing
from evergrant_server.egress import Egress
from evergrant_server.store import Store, Transaction
from evergrant_server.store.cells.remaking import RemadeRows
from evergrant_server.temporal_link.link import TemporalLink
from evergrant_server.temporal_link.reconcile import Reconciler, gather_bounded
from evergrant_server.temporal_link.runs import WorkflowNotRunning

log = logging.getLogger("evergrant.activities")

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.2, 30.0
_LONGEST_PROBLEM = 500
# stays at the source: where the tenant has gone, and by which keys and tokens its callers are known there
_STAYS = ("tenant_move", "app", "app_key", "app_credential", "trusted_issuer")


class CellActivities:
    def __init__(
        self, store: Store, link: TemporalLink, reconciler: Reconciler, egress: Egress, clock: Clock
    ) -> None:
        self._store, self._link, self._reconciler = store, link, reconciler
        self._egress, self._clock = egress, clock

    @activity.defn(name=jobs.MOVE_TENANT.name)
    async def move_tenant(self, request: MoveTenant) -> MoveResult:
        """Carry out this side's part, from where the row of the move says it is."""
        async with heartbeating():
            wait = _FIRST_WAIT_S
            while True:
                async with self._store.read() as tx:
                    move = await tx.tenant_moves.get(request.tenant, request.move_id)
                if move is None or move.state in ENDED or move.state is MoveState.LEFT:
                    return _result(move)
                try:
                    await self._step(move, request)
                    wait = _FIRST_WAIT_S
                except Failure as failure:
                    await self._note(move, failure)
                    await asyncio.sleep(wait)
                    wait = min(wait * 2, _LONGEST_WAIT_S)

    async def _step(self, move: TenantMove, request: MoveTenant) -> None:
        if move.side is MoveSide.SOURCE:
            await self._leave(move)
            return
        async with self._store.read() as tx:
            access = await tx.tenant_moves.access(move)
        cell = OtherCell(self._egress, move, access["secret"])
        remade = RemadeRows(self._store.ring, _origin(access))
        copier = Copier(self._store, cell, remade, move)
        receiving = Receiving(self._store, self._clock, self._reconciler, cell, copier)
        await receiving.step(move, request.context)

    async def _leave(self, move: TenantMove) -> None:
        """End what runs for the tenant; or delete its rows, once the operator has ordered it."""
        if move.state is MoveState.LEAVING:
            async with self._store.read() as tx:
                ids = await tx.moved_rows.live_by_expiry(move.tenant)
            await gather_bounded(self._terminate(move, ConnectionId(id)) for id in ids)
            await self._to(move, MoveState.LEFT)
        elif move.state is MoveState.ERASING:
            await erase_all(self._store, move, _STAYS)
            await self._store.forget_old_pages()
            await self._to(move, MoveState.DONE)
        else:
            await asyncio.sleep(_LONGEST_WAIT_S)

    async def _terminate(self, move: TenantMove, id: ConnectionId) -> None:
        workflow = connection_workflow_id(move.tenant, id)
        run = await self._link.newest_run(workflow)
        if run is None or not run.running:
            return
        try:
            await self._link.terminate_run(workflow, run.run_id, f"moved to another cell: {move.id}")
        except WorkflowNotRunning:
            return

    async def _to(self, move: TenantMove, state: MoveState) -> None:
        async def write(tx: Transaction) -> None:
            current = await tx.tenant_moves.get(move.tenant, move.id)
            if current is not None and current.state is move.state:
                ended_at = self._clock.now() if state is MoveState.DONE else None
                after = current.__replace__(state=state, ended_at=ended_at, problem="")
                await tx.tenant_moves.replace(after, expected=current.revision)

        await commit_with_retries(self._store, write)

    async def _note(self, move: TenantMove, failure: Failure) -> None:
        problem = str(failure)[:_LONGEST_PROBLEM]

        async def write(tx: Transaction) -> None:
            current = await tx.tenant_moves.get(move.tenant, move.id)
            if current is not None and current.problem != problem:
                await tx.tenant_moves.replace(current.__replace__(problem=problem), expected=current.revision)

        await commit_with_retries(self._store, write)


def _origin(access: dict[str, str]) -> KeyRing:
    def keys(name: str) -> dict[str, bytes]:
        named: dict[str, Any] = json.loads(access[name])
        return {id: base64.b64decode(text) for id, text in named.items()}

    return KeyRing.of_cell(keys("public"), keys("worker_macs"))


def _result(move: TenantMove | None) -> MoveResult:
    if move is None:
        return MoveResult(state=MoveState.UNDONE)
    return MoveResult(state=move.state, root=move.root, rows=sum(move.counts.values()))
