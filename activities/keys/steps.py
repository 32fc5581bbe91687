"""What every rotation of keys has in common: its steps, what follows from a count, and its audit record."""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import TypeVar

from activities.support.transactions import commit_with_retries
from evergrant_server import audit
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.key_rotation import (
    PASSES_WITHOUT_END_S,
    ZEROS,
    RotationStep,
    next_step,
    steps_of,
    wait_before_pass,
)
from evergrant_server.core.messages.keys import KeyRotationCall, KeyRotationProgress
from evergrant_server.crypto import KeyPurpose
from evergrant_server.store import Store, Transaction
from evergrant_server.store.rotation.resealing import Moved, under_way
from evergrant_server.store.rotation.tenant_keys import Destroyed
from evergrant_server.telemetry.logs import LogEvent, log_event

log = logging.getLogger("evergrant.activities")

T = TypeVar("T")

_POLL_S = 0.1


class KeyRotation(ABC):
    """The steps of one rotation, each a page or a wait."""

    def __init__(self, store: Store, call: KeyRotationCall, page_rows: int) -> None:
        self._store, self._call, self._page_rows = store, call, page_rows
        self._tenant = call.tenant
        self._steps = steps_of(call.command, call.kind)

    async def advance(self, progress: KeyRotationProgress) -> KeyRotationProgress:
        """The progress after one more page or wait."""
        progress = progress.__replace__(waits_for=())
        match progress.step:
            case None:
                return progress.__replace__(step=self._steps[0], total=await self.total())
            case RotationStep.ANNOUNCE | RotationStep.HOLD:
                return await self.prepare(progress)
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

    async def prepare(self, progress: KeyRotationProgress) -> KeyRotationProgress:
        """What comes before new keys become the current ones."""
        return await self.following(progress)

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
            "purposes": list(self._call.purposes or KeyPurpose),
            **{name: getattr(ended, name) for name in names},
        }
        named = self._call.connection_id or self._tenant
        await self.write(lambda tx: self.record(tx, AuditAction.KEYS_ROTATED, named, detail))
        return ended

    async def record(
        self, tx: Transaction, action: AuditAction, object_id: str, detail: dict[str, object]
    ) -> None:
        call = self._call
        entry = AuditEntry(
            tenant=call.tenant,
            at=tx.now,
            action=action,
            object=object_id,
            context=call.context,
            detail=detail,
            provenance=call.provenance,
        )
        await audit.append(tx, entry)

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


def with_page(progress: KeyRotationProgress, moved: Moved) -> KeyRotationProgress:
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
