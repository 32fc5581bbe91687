"""Compares pinned metadata with what the issuers publish now, and refuses changes that weaken it."""

from datetime import timedelta
from typing import Any

from temporalio import activity

from activities.integrations.change_records import current_if_same_issuer, record_change
from activities.support.heartbeat import heartbeating
from activities.support.transactions import commit_with_retries
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.clock import Clock
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import Endpoints, Integration
from evergrant_server.core.messages.base import ActivityName, RequestContext
from evergrant_server.core.messages.maintenance import RereadMetadata, RereadMetadataResult
from evergrant_server.egress import Egress
from evergrant_server.store import Store, Transaction
from providers.registration.discovery import discover, weakening_changes

_SCHEDULE = RequestContext(by="schedule")
_BATCH_SIZE = 20  # documents a pass, which bounds its duration when issuers are down


class MetadataRereadingActivities:
    def __init__(self, store: Store, egress: Egress, clock: Clock) -> None:
        self._store = store
        self._egress = egress
        self._clock = clock

    @activity.defn(name=ActivityName.REREAD_METADATA)
    async def reread_metadata(self, request: RereadMetadata) -> RereadMetadataResult:
        """Compare a batch of integrations; refuse and record changes that weaken the pinned metadata."""
        before = self._clock.now() - timedelta(seconds=request.older_than_s)
        changed = refused = 0
        async with heartbeating():
            async with self._store.read() as tx:
                due = await tx.integrations.with_metadata_older_than(before, _BATCH_SIZE)
            for integration in due:
                action = await self._compare_metadata(integration)
                changed += action is AuditAction.METADATA_CHANGED
                refused += action is AuditAction.METADATA_REFUSED
        return RereadMetadataResult(read=len(due), changed=changed, refused=refused)

    async def _compare_metadata(self, seen: Integration) -> AuditAction | None:
        """Compare one integration. An unreachable issuer changes nothing; an invalid document is recorded."""
        assert seen.issuer is not None
        reasons: tuple[str, ...] = ()
        published = seen.endpoints
        try:
            published = await discover(self._egress, seen.issuer)
        except Failure as failure:
            if failure.code in (ErrorCode.DISCOVERY_FAILED, ErrorCode.EGRESS_REFUSED):
                reasons = (failure.detail,)
        if seen.endpoints is not None and published is not None and not reasons:
            reasons = weakening_changes(seen.endpoints, published, seen.client_auth)

        async def write(tx: Transaction) -> AuditAction | None:
            now = self._clock.now()
            current = await current_if_same_issuer(tx, seen)
            if current is None or current.endpoints != seen.endpoints:
                return None
            action, changes = _metadata_change(current, published, reasons)
            after = current.model_copy(update={"metadata_read_at": now, **changes})
            await tx.integrations.replace(after, expected=current.revision)
            if action is not None:
                await record_change(tx, now, action, after, _SCHEDULE, reasons=list(reasons))
            return action

        return await commit_with_retries(self._store, write)


def _metadata_change(
    current: Integration, published: Endpoints | None, reasons: tuple[str, ...]
) -> tuple[AuditAction | None, dict[str, Any]]:
    """The audit action and the changes to write. A refusal is recorded once, not every day."""
    if reasons:
        problem = "the issuer's metadata was refused, the pinned endpoints stay: " + "; ".join(reasons)
        recorded = current.problem == problem
        return (None if recorded else AuditAction.METADATA_REFUSED), {"problem": problem}
    if published != current.endpoints:
        return AuditAction.METADATA_CHANGED, {"endpoints": published, "problem": None}
    return None, {"problem": None}
