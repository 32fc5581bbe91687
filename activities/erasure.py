"""Erases for good what was ordered: connections one by one, then the other rows and what audit records say.

The row of the erasure says how far it has come, and is written in the transaction of each step: a worker that
is killed anywhere is followed by another, which goes on there. A legal hold that comes meanwhile ends it.
"""

import functools
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from temporalio import activity

from activities.support.temporal import heartbeating
from activities.support.transactions import commit_with_retries
from evergrant_server import audit
from evergrant_server.audit.erasing import Place, erase_naming, erase_object
from evergrant_server.audit.erasure_orders import request_revocation
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.clock import Clock, seconds_since_boot
from evergrant_server.core.connections.connection import Connection, RevocationOutcome
from evergrant_server.core.connections.erasure import Erasure, ErasureState, TargetKind, under_hold
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId
from evergrant_server.core.messages import jobs
from evergrant_server.core.messages.erasure import ErasureCall, ErasureProgress
from evergrant_server.core.messages.names import connection_workflow_id
from evergrant_server.store import Store, Transaction
from evergrant_server.temporal_link.link import TemporalLink
from evergrant_server.temporal_link.runs import WorkflowNotRunning

_PAGE = 50  # connections of a step
_STEP_S = 30.0  # of one activity, in transactions of their own; the workflow calls again
_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 600.0


class ErasureActivities:
    def __init__(self, store: Store, link: TemporalLink, clock: Clock) -> None:
        self._store = store
        self._link = link
        self._clock = clock

    @activity.defn(name=jobs.ADVANCE_ERASURE.name)
    async def advance_erasure(self, call: ErasureCall) -> ErasureProgress:
        """Erase the next part. The order in the store says what: without one, nothing is erased."""
        async with heartbeating():
            async with self._store.read() as tx:
                erasure = await tx.erasures.get(call.tenant, call.erasure_id)
            if erasure is None:
                return ErasureProgress(state=ErasureState.DONE)
            wait: float | None = None
            try:
                if erasure.state is ErasureState.REVOKING:
                    erasure, wait = await self._erase_connections(call, erasure)
                elif erasure.state is ErasureState.ERASING:
                    erasure, wait = await self._erase_rest(call, erasure)
            except Failure as failure:
                if failure.code is not ErrorCode.UNDER_LEGAL_HOLD:
                    raise
                erasure = await commit_with_retries(self._store, lambda tx: self._refuse(tx, call))
                wait = None if erasure.finished_at is not None else 0
            if erasure.finished_at is not None:
                await self._store.forget_old_pages()
            counts = {**erasure.counts, "waiting": erasure.waiting}
            return ErasureProgress(state=erasure.state, **counts, next_s=wait)

    # --- connections ---------------------------------------------------------------------

    async def _erase_connections(self, call: ErasureCall, erasure: Erasure) -> tuple[Erasure, float]:
        """Revoke and erase the next connections. Waits once each was looked at and some aren't ready."""
        async with self._store.read() as tx:
            which = (erasure.tenant, erasure.kind, erasure.target)
            page = await tx.personal_rows.connections_of(*which, erasure.after, _PAGE)
        waiting = erasure.waiting if erasure.after else 0
        # what a subject began after the order is its new will
        late = erasure.kind is TargetKind.SUBJECT
        ripe = [row for row in page if not late or row["created_at"] <= erasure.created_at]
        ends = seconds_since_boot() + _STEP_S
        for row in ripe:
            before = erasure.connections
            erasure = await self._erase_connection(call, erasure, ConnectionId(row["id"]))
            waiting += erasure.connections == before
            if seconds_since_boot() >= ends:
                return await self._move(call, after=row["id"], waiting=waiting), 0
        if len(page) == _PAGE:
            return await self._move(call, after=page[-1]["id"], waiting=waiting), 0
        if waiting:
            age = (self._clock.now() - erasure.created_at).total_seconds()
            wait = min(max(age / 10, _FIRST_WAIT_S), _LONGEST_WAIT_S)
            return await self._move(call, after="", waiting=waiting), wait
        if ripe or erasure.after:  # until a round finds none
            return await self._move(call, after="", waiting=0), 0
        return await self._move(call, state=ErasureState.ERASING, after="", waiting=0), 0

    async def _erase_connection(self, call: ErasureCall, erasure: Erasure, id: ConnectionId) -> Erasure:
        """Erase one connection once it is revoked. The erasure as it was: the connection isn't ready."""
        over = self._clock.now() >= erasure.waits_until
        is_open = await self._has_open_run(erasure, id, over=over)
        ready = await commit_with_retries(
            self._store, lambda tx: self._is_ready(tx, call, erasure, id, is_open=is_open, over=over)
        )
        if not ready:
            return erasure
        async with self._store.read() as tx:
            objects = await tx.personal_rows.objects_of_connection(erasure.tenant, id)
        erasure = await self._erase_records(call, (TargetKind.CONNECTION, id), erasure, objects)

        async def write(tx: Transaction) -> Erasure:
            await _require_no_hold(tx, erasure, TargetKind.CONNECTION, id, self._clock.now())
            current = await self._current(tx, call)
            connection = await tx.revocable_rows.connection(erasure.tenant, id, self._clock.now())
            if connection is None or current.finished_at is not None:
                return current
            outcome = connection.revocation
            if connection.state.is_final and outcome is None:  # its consent has ended without a grant
                outcome = RevocationOutcome.NOTHING_HELD
            gone = await tx.personal_rows.erase_connection(erasure.tenant, id)
            after = current.connection_erased(outcome, gone.keys, gone.rows)
            saved = await tx.erasures.replace(after, expected=current.revision)
            detail = {"erasure_id": erasure.id, "revocation": outcome, "keys": gone.keys, "rows": gone.rows}
            await self._record(tx, call, erasure, AuditAction.CONNECTION_ERASED, id, detail)
            return saved

        return await commit_with_retries(self._store, write)

    async def _has_open_run(self, erasure: Erasure, id: ConnectionId, *, over: bool) -> bool:
        """Whether the connection's workflow has still to end; one that is `over` its time is terminated."""
        workflow = connection_workflow_id(erasure.tenant, id)
        run = await self._link.newest_run(workflow)
        if run is None or not run.running:
            return False
        if over:
            try:
                await self._link.terminate_run(workflow, run.run_id, f"erased: {erasure.id}")
            except WorkflowNotRunning:
                return False
        return not over

    async def _is_ready(
        self,
        tx: Transaction,
        call: ErasureCall,
        erasure: Erasure,
        id: ConnectionId,
        *,
        is_open: bool,
        over: bool,
    ) -> bool:
        """Whether the connection may be erased; a live one is told to be revoked."""
        now = self._clock.now()
        await _require_no_hold(tx, erasure, TargetKind.CONNECTION, id, now)
        connection: Connection | None = await tx.revocable_rows.connection(erasure.tenant, id, now)
        if connection is None:
            return False
        await request_revocation(tx, connection, erasure, call.context, now)
        if over:
            return True
        told = not await tx.personal_rows.has_pending_deliveries(erasure.tenant, id)
        return connection.state.is_final and not is_open and told

    # --- everything else -----------------------------------------------------------------

    async def _erase_rest(self, call: ErasureCall, erasure: Erasure) -> tuple[Erasure, float | None]:
        """Erase what is left beside the connections, for a bounded time; None: nothing is left."""
        ends = seconds_since_boot() + _STEP_S
        if erasure.kind is TargetKind.SUBJECT and not erasure.shard:
            async with self._store.read() as tx:
                objects = await tx.personal_rows.objects_of_subject(erasure.tenant, erasure.target)
            erasure = await self._erase_records(call, (erasure.kind, erasure.target), erasure, objects)
        if erasure.kind is not TargetKind.CONNECTION and not erasure.shard:
            while await self._erase_some_rows(call):
                if seconds_since_boot() >= ends:
                    return await self._load(call), 0
            erasure = await self._load(call)
        place: Place | None = _place_of(erasure)
        while erasure.kind is not TargetKind.CONNECTION and place is not None:
            place = await commit_with_retries(self._store, lambda tx: self._erase_part_of_log(tx, call))
            if place is not None and seconds_since_boot() >= ends:
                return await self._load(call), 0
        return await commit_with_retries(self._store, lambda tx: self._finish(tx, call)), None

    async def _erase_some_rows(self, call: ErasureCall) -> bool:
        """Delete rows of a subject, or some of a tenant's; False when none was left."""

        async def write(tx: Transaction) -> bool:
            current = await self._current(tx, call)
            if current.finished_at is not None:
                return False
            await _require_no_hold(tx, current, current.kind, current.target, self._clock.now())
            if current.kind is TargetKind.SUBJECT:
                gone = await tx.personal_rows.erase_subject(current.tenant, current.target)
            else:
                gone = await tx.personal_rows.erase_of_tenant(current.tenant)
            moved = current.__replace__(keys=current.keys + gone.keys, rows=current.rows + gone.rows)
            await tx.erasures.replace(moved, expected=current.revision)
            return current.kind is TargetKind.TENANT and bool(gone.keys or gone.rows)

        return await commit_with_retries(self._store, write)

    async def _erase_part_of_log(self, tx: Transaction, call: ErasureCall) -> Place | None:
        """Erase what the next records say that name the subject, or all of a tenant's."""
        current = await self._current(tx, call)
        if current.finished_at is not None:
            return None
        await _require_no_hold(tx, current, current.kind, current.target, self._clock.now())
        subject = current.target if current.kind is TargetKind.SUBJECT else None
        erased, place = await erase_naming(tx, current.tenant, subject, _place_of(current))
        at = place or _place_of(current)
        moved = current.__replace__(records=current.records + erased, shard=at.shard, after=str(at.seq))
        await tx.erasures.replace(moved, expected=current.revision)
        return place

    async def _erase_records(
        self, call: ErasureCall, of: tuple[TargetKind, str], erasure: Erasure, objects: Iterable[str]
    ) -> Erasure:
        """Erase what the records about these objects `of` a target say, in steps of a transaction each."""
        for object in objects:
            last: datetime | None = None
            while True:
                last, erasure = await commit_with_retries(
                    self._store, functools.partial(self._erase_some_records, call, of, object, last)
                )
                if last is None:
                    break
        return erasure

    async def _erase_some_records(
        self,
        call: ErasureCall,
        of: tuple[TargetKind, str],
        object: str,
        since: datetime | None,
        tx: Transaction,
    ) -> tuple[datetime | None, Erasure]:
        current = await self._current(tx, call)
        if current.finished_at is not None:
            return None, current
        await _require_no_hold(tx, current, *of, self._clock.now())
        erased, last = await erase_object(tx, current.tenant, object, since)
        if erased:
            moved = current.__replace__(records=current.records + erased)
            current = await tx.erasures.replace(moved, expected=current.revision)
        return last, current

    # --- the row -------------------------------------------------------------------------

    async def _load(self, call: ErasureCall) -> Erasure:
        async with self._store.read() as tx:
            return await self._current(tx, call)

    async def _current(self, tx: Transaction, call: ErasureCall) -> Erasure:
        """The row as it is now."""
        erasure = await tx.erasures.get(call.tenant, call.erasure_id)
        if erasure is None:
            raise Failure(ErrorCode.NOT_FOUND, f"the row of {call.erasure_id} is gone")
        return erasure

    async def _move(self, call: ErasureCall, **fields: Any) -> Erasure:
        """Write how far it has come with the connections, unless a later try is done with these."""

        async def write(tx: Transaction) -> Erasure:
            current = await self._current(tx, call)
            if current.state is not ErasureState.REVOKING:
                return current
            return await tx.erasures.replace(current.__replace__(**fields), expected=current.revision)

        return await commit_with_retries(self._store, write)

    async def _finish(self, tx: Transaction, call: ErasureCall) -> Erasure:
        current = await self._current(tx, call)
        if current.finished_at is not None:
            return current
        if current.kind is not TargetKind.CONNECTION:
            await _require_no_hold(tx, current, current.kind, current.target, self._clock.now())
            await tx.erasures.forget_subjects(current)
        done = await tx.erasures.replace(current.done(self._clock.now()), expected=current.revision)
        detail = {"kind": done.kind.value, "target": done.target_hash, **done.counts}
        await self._record(tx, call, done, AuditAction.ERASURE_ENDED, done.id, detail)
        return done

    async def _refuse(self, tx: Transaction, call: ErasureCall) -> Erasure:
        """End it: a hold came after the order. Without one any more, it goes on."""
        current, now = await self._current(tx, call), self._clock.now()
        hold = await tx.legal_holds.against(current.tenant, current.kind, current.target, now)
        if hold is None or current.finished_at is not None:
            return current
        refused = await tx.erasures.replace(current.refused(hold, now), expected=current.revision)
        detail = {
            "kind": refused.kind.value,
            "target": refused.target_hash,
            "hold_id": hold.id,
            **refused.counts,
        }
        await self._record(tx, call, refused, AuditAction.ERASURE_REFUSED, refused.id, detail)
        return refused

    async def _record(
        self,
        tx: Transaction,
        call: ErasureCall,
        erasure: Erasure,
        action: AuditAction,
        object_id: str,
        detail: dict[str, object],
    ) -> None:
        entry = AuditEntry(
            tenant=erasure.tenant,
            at=self._clock.now(),
            action=action,
            object=object_id,
            context=call.context,
            detail=detail,
            provenance=call.provenance,
        )
        await audit.append(tx, entry)


async def _require_no_hold(
    tx: Transaction, erasure: Erasure, kind: TargetKind, target: str, now: datetime
) -> None:
    """Raise Failure UNDER_LEGAL_HOLD when something that is to be erased is held by now."""
    hold = await tx.legal_holds.against(erasure.tenant, kind, target, now)
    if hold is not None:
        raise under_hold(hold)


def _place_of(erasure: Erasure) -> Place:
    return Place(erasure.shard, int(erasure.after)) if erasure.after else Place(erasure.shard)
