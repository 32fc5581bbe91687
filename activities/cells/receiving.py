"""The target's part: copy while the source serves, compare while it spends nothing, take over.

Nothing of the tenant is spent here before the source has closed, and nothing there after it has paused: at no
moment two cells refresh a connection. Until the tenant is activated here, the way back is open.
"""

import asyncio
from collections.abc import Collection
from typing import Any

from activities.cells.copying import Copied, Copier, OtherCell
from activities.support.transactions import commit_with_retries
from evergrant_server import audit
from evergrant_server.core.access import MovePhase, TenantStanding
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.cells.moves import MoveState, TenantMove
from evergrant_server.core.clock import Clock
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.store import Store, Transaction
from evergrant_server.store.cells.rows import is_large, moved_tables
from evergrant_server.temporal_link.reconcile import Reconciler, gather_bounded

_MOST_LIVE_PASSES = 6  # while the source serves; each finds what has changed during the one before
_FEW = 5  # ranges that differed: the pause can begin
_POLL_S = 0.2
_KEPT = ("tenant_move",)
_SMALL = frozenset(name for name in moved_tables() if not is_large(name))


class Receiving:
    """One move, as this worker carries it out."""

    def __init__(
        self, store: Store, clock: Clock, reconciler: Reconciler, cell: OtherCell, copier: Copier
    ) -> None:
        self._store, self._clock, self._reconciler = store, clock, reconciler
        self._cell, self._copier = cell, copier

    async def step(self, move: TenantMove, context: RequestContext) -> TenantMove:
        """Do what comes next, and return the row as it is then. Raises Failure."""
        match move.state:
            case MoveState.COPYING:
                await self._copy_while_served()
                return await self._to(move, MoveState.PAUSING)
            case MoveState.PAUSING:
                while (await self._cell.ask("pause"))["spending"]:
                    await asyncio.sleep(_POLL_S)
                paused = move.__replace__(paused_at=self._clock.now())
                return await self._to(paused, MoveState.COMPARING)
            case MoveState.COMPARING | MoveState.CLOSING:
                return await self._take_over(move, context)
            case MoveState.ACTIVATING:
                await self._start_workflows(move)
                await self._cell.ask("leave", root=move.root, counts=dict(move.counts))
                return await self._to(move, MoveState.DONE)
            case MoveState.UNDOING:
                await self._undo(move, context)
                return await self._to(move, MoveState.UNDONE)
            case _:
                return move

    async def _copy_while_served(self) -> None:
        before = -1
        for _ in range(_MOST_LIVE_PASSES):
            differed = (await self._copier.copy(moved_tables())).differed
            if differed <= _FEW or differed == before:
                return
            before = differed

    async def _take_over(self, move: TenantMove, context: RequestContext) -> TenantMove:
        """Close the source, compare what may have changed since the last pass, and activate the tenant."""
        seen = (await self._cell.ask("versions"))["versions"]
        copied = await self._same()
        if move.state is MoveState.COMPARING:
            move = await self._to(move, MoveState.CLOSING)
        if move.state is not MoveState.CLOSING:  # undone meanwhile
            return move
        closed = await self._cell.ask("close")
        large_are_same = closed["versions"] == seen
        while True:
            copied = copied.replaced_by(await self._copier.copy(_SMALL if large_are_same else moved_tables()))
            if not copied.differed:
                break
        return await self._activate(move, copied, closed["log"], context)

    async def _same(self) -> Copied:
        while True:
            copied = await self._copier.copy(moved_tables())
            if not copied.differed:
                return copied

    async def _activate(
        self, move: TenantMove, copied: Copied, log: str, context: RequestContext
    ) -> TenantMove:
        counts = copied.counts
        taken = move.__replace__(
            state=MoveState.ACTIVATING, closed_at=self._clock.now(), root=copied.root, counts=counts, log=log
        )
        detail = {"from": move.peer, "root": copied.root, "rows": sum(counts.values()), "log": log}
        reason = f"moved from {move.peer}"

        async def write(tx: Transaction) -> TenantMove:
            current = await tx.tenant_moves.get(move.tenant, move.id)
            if current is None or current.state is not MoveState.CLOSING:  # undone meanwhile
                raise Failure(ErrorCode.NOT_FOUND, "The move was undone.")
            now = self._clock.now()
            await put_phase(tx, await tx.tenants.standing(move.tenant), MovePhase.HERE, reason=reason, at=now)
            for action, facts in (
                (AuditAction.TENANT_ARRIVED, {**detail, "move_id": move.id}),
                (AuditAction.TENANT_ENABLED, {"reason": reason}),
            ):
                await _record(tx, move, context, action, now, facts)
            return await tx.tenant_moves.replace(
                taken.__replace__(revision=current.revision, problem=""), expected=current.revision
            )

        return await commit_with_retries(self._store, write)

    async def _start_workflows(self, move: TenantMove) -> None:
        """Those first whose tokens end first. A connection whose lease comes before waits for its turn."""
        async with self._store.read() as tx:
            ids = await tx.moved_rows.live_by_expiry(move.tenant)
        await gather_bounded(self._reconciler.start_workflow(move.tenant, ConnectionId(id)) for id in ids)

    async def _undo(self, move: TenantMove, context: RequestContext) -> None:
        await erase_all(self._store, move, _KEPT)

        async def write(tx: Transaction) -> None:
            now, standing = self._clock.now(), await tx.tenants.standing(move.tenant)
            if standing.phase is MovePhase.ARRIVING:
                reason = f"the move from {move.peer} was undone"
                moved = MovePhase.MOVED
                await put_phase(tx, standing, moved, moved_to=move.peer, reason=reason, at=now)
                await _record(tx, move, context, AuditAction.MOVE_UNDONE, now, {"from": move.peer})

        await commit_with_retries(self._store, write)
        await self._cell.ask("resume")

    async def _to(self, move: TenantMove, state: MoveState) -> TenantMove:
        """The row in its next state, unless an operator undid the move meanwhile: then as it is."""
        ended = state in (MoveState.DONE, MoveState.UNDONE)

        async def write(tx: Transaction) -> TenantMove:
            current = await tx.tenant_moves.get(move.tenant, move.id)
            if current is None or current.state is not move.state:
                return move if current is None else current
            after = move.__replace__(state=state, revision=current.revision, problem="")
            if ended:
                after = after.__replace__(ended_at=self._clock.now())
                return await tx.tenant_moves.end(after, expected=current.revision)
            return await tx.tenant_moves.replace(after, expected=current.revision)

        return await commit_with_retries(self._store, write)


async def erase_all(store: Store, move: TenantMove, keep: Collection[str]) -> None:
    """Delete the tenant's rows, part by part, while the move is in this state.

    Raises Failure NOT_FOUND in another one, ALREADY_EXISTS for a tenant that is served here, or arrives.
    """

    async def erase(tx: Transaction) -> bool:
        await tx.tenant_moves.require_state(move, move.state)
        phase = (await tx.tenants.standing(move.tenant)).phase
        if phase is not MovePhase.MOVED and (phase, move.state) != (MovePhase.ARRIVING, MoveState.UNDOING):
            raise Failure(ErrorCode.ALREADY_EXISTS, f"{move.tenant} is in this cell: its rows stay.")
        erased = await tx.personal_rows.erase_of_tenant(move.tenant, keep=keep)
        return bool(erased.keys or erased.rows)

    while await commit_with_retries(store, erase):
        pass


async def put_phase(
    tx: Transaction, standing: TenantStanding, phase: MovePhase, *, at: Any, reason: str, moved_to: str = ""
) -> None:
    """Write where the tenant stands; it is served where it is HERE."""
    disabled = phase is not MovePhase.HERE
    after = standing.__replace__(
        phase=phase, moved_to=moved_to, reason=reason, disabled=disabled, changed_at=at
    )
    await tx.tenants.put(after, expected=standing.revision)


async def _record(
    tx: Transaction,
    move: TenantMove,
    context: RequestContext,
    action: AuditAction,
    at: Any,
    detail: dict[str, Any],
) -> None:
    entry = AuditEntry(
        tenant=move.tenant, at=at, action=action, object=move.tenant, context=context, detail=detail
    )
    await audit.append(tx, entry)
