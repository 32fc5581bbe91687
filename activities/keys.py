"""Rotations of keys: page after page until a step is done, and which keys are due by their age.

A worker that dies leaves whole pages. The next one goes on where the last heartbeat was, and finds done what
was done.
"""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TypeVar

from temporalio import activity

from activities.support.temporal import heartbeating, last_heartbeat
from activities.support.transactions import commit_with_retries
from evergrant_server import audit
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.clock import Clock, seconds_since_boot
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import KeyRotationId, new_id
from evergrant_server.core.key_rotation import (
    PASSES_WITHOUT_END_S,
    STEPS,
    ZEROS,
    RotationCommand,
    RotationKind,
    RotationStep,
    next_step,
    wait_before_pass,
)
from evergrant_server.core.messages import jobs
from evergrant_server.core.messages.base import CLAIMED, SCHEDULE, RequestContext
from evergrant_server.core.messages.keys import (
    KeyRotationCall,
    KeyRotationProgress,
    KeyRotationStart,
    RotateDueKeys,
    RotateDueKeysResult,
)
from evergrant_server.core.outbox import key_rotation_message
from evergrant_server.crypto import KeyPurpose
from evergrant_server.store import Store, Transaction
from evergrant_server.store.rotation.resealing import Moved, purposes_of_connections, under_way
from evergrant_server.store.rotation.tenant_keys import Destroyed
from evergrant_server.telemetry.logs import LogEvent, log_event

log = logging.getLogger("evergrant.activities")

T = TypeVar("T")

_PAGE_ROWS = 100  # keys and values in one transaction: on SQLite no other writer comes in between
_KEYS_OF_CONNECTION = 4  # and values
_WORK_S = 10.0  # of one try; then the workflow can be paused
_POLL_S = 0.1
_MOST_BEGUN = 20  # rotations of one pass


class KeyRotationActivities:
    def __init__(
        self, store: Store, clock: Clock, oldest: timedelta | None, *, page_rows: int = _PAGE_ROWS
    ) -> None:
        """`oldest`: how old a tenant's key may become; None: as old as it does."""
        self._store, self._clock, self._oldest, self._page_rows = store, clock, oldest, page_rows

    @activity.defn(name=jobs.ADVANCE_KEY_ROTATION.name)
    async def advance_key_rotation(self, call: KeyRotationCall) -> KeyRotationProgress:
        """Move pages for a while, or until a pass has to be waited for.

        Raises Failure INVALID_REQUEST for a rotation that nobody is proven to have requested.
        """
        if call.context.by.startswith(CLAIMED):
            raise Failure(ErrorCode.INVALID_REQUEST, "nothing proves who requested this rotation")
        progress = (last_heartbeat(KeyRotationProgress) or call.progress).__replace__(wait_s=0)
        ends_at = seconds_since_boot() + _WORK_S
        kind = TenantRotation if call.kind is RotationKind.TENANT else ConnectionRotation
        rotation = kind(self._store, call, self._page_rows)
        async with heartbeating(lambda: progress):
            while not progress.done:
                progress = await rotation.advance(progress)
                activity.heartbeat(progress)
                if progress.wait_s or seconds_since_boot() >= ends_at:
                    break
        return progress

    @activity.defn(name=jobs.ROTATE_DUE_KEYS.name)
    async def rotate_due_keys(self, _: RotateDueKeys) -> RotateDueKeysResult:
        """Begin rotations of the tenants whose keys are too old, the oldest first, a few in a pass."""
        if self._oldest is None:
            return RotateDueKeysResult()
        now = self._clock.now()
        async with self._store.read() as tx:
            due = await tx.tenant_keys.older_than(now - self._oldest, _MOST_BEGUN + 1)

        async def begin(tx: Transaction) -> None:
            for tenant, purposes in due[:_MOST_BEGUN]:
                start = KeyRotationStart(
                    tenant=tenant,
                    rotation_id=KeyRotationId(new_id("rot")),
                    kind=RotationKind.TENANT,
                    command=RotationCommand.ROTATE,
                    purposes=purposes,
                    begun_at=now,
                    context=RequestContext(by=SCHEDULE),
                )
                await tx.outbox.add(key_rotation_message(start, now))

        await commit_with_retries(self._store, begin)
        return RotateDueKeysResult(begun=len(due[:_MOST_BEGUN]), left=len(due[_MOST_BEGUN:]))


class _Rotation(ABC):
    """The steps of one rotation, each a page or a wait."""

    def __init__(self, store: Store, call: KeyRotationCall, page_rows: int) -> None:
        self._store, self._call, self._page_rows = store, call, page_rows
        self._tenant = call.tenant
        self._purposes = tuple(map(KeyPurpose, call.purposes)) or tuple(KeyPurpose)
        self._steps = STEPS[call.command]

    async def advance(self, progress: KeyRotationProgress) -> KeyRotationProgress:
        """The progress after one more page or wait."""
        match progress.step:
            case None:
                return progress.__replace__(step=self._steps[0], total=await self.total())
            case RotationStep.REPLACE:
                return await self.replace(progress)
            case RotationStep.MOVE:
                return await self.move(progress)
            case RotationStep.COUNT:
                return await self.count(progress)
            case RotationStep.DESTROY:
                return await self.destroy(progress)

    @abstractmethod
    async def total(self) -> int:
        """How much there is to move."""

    @abstractmethod
    async def replace(self, progress: KeyRotationProgress) -> KeyRotationProgress: ...

    @abstractmethod
    async def move(self, progress: KeyRotationProgress) -> KeyRotationProgress: ...

    @abstractmethod
    async def count(self, progress: KeyRotationProgress) -> KeyRotationProgress: ...

    @abstractmethod
    async def destroy(self, progress: KeyRotationProgress) -> KeyRotationProgress: ...

    async def write(self, work: Callable[[Transaction], Awaitable[T]]) -> T:
        return await commit_with_retries(self._store, work)

    async def settled(self) -> None:
        """Wait until every transaction has ended that may have read what stood there before."""
        async with self._store.read() as tx:
            before = await under_way(tx.connection)
        while before:
            await asyncio.sleep(_POLL_S)
            async with self._store.read() as tx:
                before &= await under_way(tx.connection)

    async def counted(self, progress: KeyRotationProgress, left: int) -> KeyRotationProgress:
        """What follows from a whole count: one more, the step behind it, or a pass over what is left."""
        progress = progress.__replace__(after=(), left=left)
        if left:
            return self.repeated(progress.__replace__(zeros=0, step=RotationStep.MOVE))
        await self.settled()
        zeros = progress.zeros + 1
        progress = progress.__replace__(zeros=zeros)
        return progress if zeros < ZEROS else await self.following(progress)

    async def following(self, progress: KeyRotationProgress) -> KeyRotationProgress:
        """The next step, or the end of the rotation with its audit record."""
        assert progress.step is not None
        step = next_step(self._steps, progress.step)
        if step is not None:
            return progress.__replace__(step=step, after=(), passes=0, waited_s=0.0, skipped=0)
        ended = progress.__replace__(done=True, after=(), wait_s=0.0)
        names = ("replaced", "moved", "destroyed", "kept", "broken")
        detail = {
            "rotation": self._call.rotation_id,
            "kind": self._call.kind,
            "purposes": list(self._purposes),
            **{name: getattr(ended, name) for name in names},
        }
        await self.write(lambda tx: _record(tx, self._call, detail))
        return ended

    @staticmethod
    def repeated(progress: KeyRotationProgress) -> KeyRotationProgress:
        """The step once more, after a wait."""
        wait_s = wait_before_pass(progress.passes)
        return progress.__replace__(
            passes=progress.passes + 1,
            waited_s=progress.waited_s + wait_s,
            wait_s=wait_s,
            after=(),
            skipped=0,
        )

    async def destroyed(self, progress: KeyRotationProgress, page: Destroyed) -> KeyRotationProgress:
        """What follows from a page of destroyed keys. Those that are kept are tried again for an hour."""
        progress = progress.__replace__(
            destroyed=progress.destroyed + page.keys, kept=progress.kept + page.kept
        )
        if page.after is not None:
            return progress.__replace__(after=(page.after,))
        if progress.kept and progress.waited_s < PASSES_WITHOUT_END_S:
            return self.repeated(progress)
        return await self.following(progress)


class TenantRotation(_Rotation):
    """A tenant's own keys, of one purpose after another."""

    async def total(self) -> int:
        async with self._store.read() as tx:
            return sum([await tx.tenant_keys.count_all(self._tenant, purpose) for purpose in self._purposes])

    async def replace(self, progress: KeyRotationProgress) -> KeyRotationProgress:
        async def work(tx: Transaction) -> int:
            id = self._call.rotation_id
            return sum(
                [await tx.tenant_keys.replace(self._tenant, purpose, id) for purpose in self._purposes]
            )

        replaced = await self.write(work)
        await self.settled()  # nobody seals with the older ones from here on
        return await self.following(progress.__replace__(replaced=progress.replaced + replaced))

    async def move(self, progress: KeyRotationProgress) -> KeyRotationProgress:
        if not progress.after:
            progress = progress.__replace__(after=(self._purposes[0],))
        purpose, *behind = progress.after
        of = KeyPurpose(purpose)
        moved = await self.write(
            lambda tx: tx.tenant_keys.move(self._tenant, of, tuple(behind), self._page_rows)
        )
        progress = _moved(progress, moved)
        if moved.after is not None:
            return progress.__replace__(after=(purpose, *moved.after))
        later = self._purposes[self._purposes.index(of) + 1 :]
        return progress.__replace__(after=(later[0],)) if later else await self.following(progress)

    async def count(self, progress: KeyRotationProgress) -> KeyRotationProgress:
        async with self._store.read() as tx:
            left = [await tx.tenant_keys.count_left(self._tenant, purpose) for purpose in self._purposes]
        return await self.counted(progress, sum(left))

    async def destroy(self, progress: KeyRotationProgress) -> KeyRotationProgress:
        async def work(tx: Transaction) -> Destroyed:
            pages = [await tx.tenant_keys.destroy(self._tenant, purpose) for purpose in self._purposes]
            return Destroyed(sum(page.keys for page in pages), sum(page.kept for page in pages))

        return await self.destroyed(progress.__replace__(kept=0), await self.write(work))


class ConnectionRotation(_Rotation):
    """The keys of a tenant's connections, or of one, in the order of their ids."""

    def __init__(self, store: Store, call: KeyRotationCall, page_rows: int) -> None:
        super().__init__(store, call, page_rows)
        self._purposes = tuple(purpose for purpose in self._purposes if purpose in purposes_of_connections())
        self._connections = max(1, page_rows // _KEYS_OF_CONNECTION)

    async def total(self) -> int:
        async with self._store.read() as tx:
            return await tx.connection_keys.count_all(self._tenant, self._purposes, self._call.connection_id)

    async def replace(self, progress: KeyRotationProgress) -> KeyRotationProgress:
        call, only = self._call, self._call.connection_id
        async with self._store.read() as tx:
            after = progress.after[0] if progress.after else ""
            page = await tx.connection_keys.page(self._tenant, after, self._connections)
        ids = page if only is None else [only]

        def work(tx: Transaction) -> Awaitable[Moved]:
            rotation = (call.rotation_id, call.begun_at)
            return tx.connection_keys.replace(self._tenant, ids, self._purposes, *rotation)

        moved = await self.write(work) if ids else Moved()
        progress = _moved(progress, moved)
        progress = progress.__replace__(replaced=progress.replaced + moved.rows)
        if only is None and len(page) == self._connections:
            return progress.__replace__(after=(page[-1],))
        return self.repeated(progress) if progress.skipped else await self.following(progress)

    async def move(self, progress: KeyRotationProgress) -> KeyRotationProgress:
        after = progress.after[0] if progress.after else ""
        moved = await self.write(lambda tx: tx.connection_keys.move(self._tenant, after, self._page_rows))
        progress = _moved(progress, moved)
        if moved.after is not None:
            return progress.__replace__(after=moved.after)
        return await self.following(progress)

    async def count(self, progress: KeyRotationProgress) -> KeyRotationProgress:
        after = progress.after[0] if progress.after else ""
        async with self._store.read() as tx:
            page = await tx.connection_keys.count_left(self._tenant, after, self._page_rows)
        left = page.kept + (progress.left if progress.after else 0)
        if page.after is not None:
            return progress.__replace__(after=(page.after,), left=left)
        return await self.counted(progress, left)

    async def destroy(self, progress: KeyRotationProgress) -> KeyRotationProgress:
        after = progress.after[0] if progress.after else ""
        page = await self.write(lambda tx: tx.connection_keys.destroy(self._tenant, after, self._page_rows))
        return await self.destroyed(progress if after else progress.__replace__(kept=0), page)


def _moved(progress: KeyRotationProgress, moved: Moved) -> KeyRotationProgress:
    """With one more page. What no key opens is named in the log, and holds nothing up."""
    for failure in moved.broken:
        log_event(
            log,
            logging.ERROR,
            LogEvent.ROW_UNREADABLE,
            failure.detail,
            code=failure.code,
            object=failure.context.get("row", ""),
        )
    return progress.__replace__(
        moved=progress.moved + moved.rows,
        skipped=progress.skipped + moved.skipped,
        broken=progress.broken + len(moved.broken),
    )


async def _record(tx: Transaction, call: KeyRotationCall, detail: dict[str, object]) -> None:
    entry = AuditEntry(
        tenant=call.tenant,
        at=tx.now,
        action=AuditAction.KEYS_ROTATED,
        object=call.connection_id or call.tenant,
        context=call.context,
        detail=detail,
        provenance=call.provenance,
    )
    await audit.append(tx, entry)
