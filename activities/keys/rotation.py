"""The activities of rotations. A worker that dies leaves whole pages; the next goes on where it was."""

from collections.abc import Sequence
from datetime import timedelta

from temporalio import activity

from activities.keys.roots import RootRotation
from activities.keys.steps import KeyRotation
from activities.keys.tenants import ConnectionRotation, TenantRotation
from activities.support.temporal import heartbeating, last_heartbeat
from activities.support.transactions import commit_with_retries
from evergrant_server.core.clock import Clock, seconds_since_boot
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import KeyRotationId, new_id
from evergrant_server.core.key_rotation import RotationCommand, RotationKind
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
from evergrant_server.crypto.key_services.bound import BoundKeyService
from evergrant_server.store import Store, Transaction

# keys and values in one transaction: on SQLite no other writer comes in between, for some 35 ms
_PAGE_ROWS = 400
_WORK_S = 10.0  # of one try; then the workflow can be paused
_MOST_BEGUN = 20  # rotations of one pass


class KeyRotationActivities:
    def __init__(
        self,
        store: Store,
        clock: Clock,
        oldest: timedelta | None,
        services: Sequence[BoundKeyService] = (),
        *,
        page_rows: int = _PAGE_ROWS,
    ) -> None:
        """`oldest`: how old a tenant's key may become; None: as old as it does."""
        self._store, self._clock, self._oldest = store, clock, oldest
        self._services, self._page_rows = services, page_rows

    @activity.defn(name=jobs.ADVANCE_KEY_ROTATION.name)
    async def advance_key_rotation(self, call: KeyRotationCall) -> KeyRotationProgress:
        """Move pages for a while, or until a pass has to be waited for.

        Raises Failure INVALID_REQUEST for a rotation that no caller is proven to have requested.
        """
        if call.context.by.startswith(CLAIMED):
            raise Failure(ErrorCode.INVALID_REQUEST, "nothing proves who requested this rotation")
        progress = (last_heartbeat(KeyRotationProgress) or call.progress).__replace__(wait_s=0)
        ends_at = seconds_since_boot() + _WORK_S
        rotation = self._rotation(call)
        async with heartbeating(lambda: progress):
            while not progress.done:
                progress = await rotation.advance(progress)
                activity.heartbeat(progress)
                if progress.wait_s or seconds_since_boot() >= ends_at:
                    break
        return progress

    def _rotation(self, call: KeyRotationCall) -> KeyRotation:
        if call.kind is RotationKind.ROOT:
            return RootRotation(self._store, call, self._page_rows, self._services)
        kind = TenantRotation if call.kind is RotationKind.TENANT else ConnectionRotation
        return kind(self._store, call, self._page_rows)

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
