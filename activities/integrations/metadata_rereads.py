"""Reads metadata again that was pinned, and refuses changes that weaken it."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from temporalio import activity

from activities.integrations.integration_records import current_if_same_place, record_change
from activities.integrations.published import PublishedEndpoints
from activities.support.temporal import heartbeating
from activities.support.transactions import commit_with_retries
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.clock import Clock
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import Endpoints, Integration
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.maintenance import RereadMetadata, RereadMetadataResult
from evergrant_server.core.messages.names import ActivityName
from evergrant_server.store import Store, Transaction
from evergrant_server.telemetry.alarms import report_broken_authority
from providers.registration.discovery import weakening_changes

_SCHEDULE = RequestContext(by="schedule")
_BATCH_SIZE = 20  # documents a pass, which bounds its duration when issuers are down


@dataclass(frozen=True)
class MetadataRereads:
    store: Store
    published: PublishedEndpoints
    clock: Clock

    @activity.defn(name=ActivityName.REREAD_METADATA)
    async def reread_metadata(self, request: RereadMetadata) -> RereadMetadataResult:
        """Compare a batch of integrations; refuse and record changes that weaken the pinned metadata."""
        before = self.clock.now() - timedelta(seconds=request.older_than_s)
        resources = self.published.resource_providers
        changed = refused = 0
        async with heartbeating():
            async with self.store.read() as tx:
                due = await tx.integrations.with_metadata_older_than(before, _BATCH_SIZE, resources)
            for integration in due:
                try:
                    action = await self._compare_metadata(integration)
                except Failure as failure:
                    if failure.code is not ErrorCode.AUTHORITY_BROKEN:
                        raise
                    report_broken_authority(failure)  # and on to the next one
                    continue
                changed += action is AuditAction.METADATA_CHANGED
                refused += action is AuditAction.METADATA_REFUSED
        return RereadMetadataResult(read=len(due), changed=changed, refused=refused)

    async def _compare_metadata(self, seen: Integration) -> AuditAction | None:
        """Compare one integration. An unreachable issuer changes nothing; an invalid document is recorded."""
        reasons: tuple[str, ...] = ()
        published = seen.endpoints
        try:
            published, _ = await self.published.read(seen)
        except Failure as failure:
            if failure.code in (ErrorCode.DISCOVERY_FAILED, ErrorCode.EGRESS_REFUSED):
                reasons = (failure.detail,)
        if seen.endpoints is not None and published is not None and not reasons:
            reasons = weakening_changes(seen.endpoints, published, seen.client_auth)

        async def write(tx: Transaction) -> AuditAction | None:
            now = self.clock.now()
            current = await current_if_same_place(tx, seen)
            if current is None or current.endpoints != seen.endpoints:
                return None
            action, changes = _metadata_change(current, published, reasons)
            after = current.__replace__(metadata_read_at=now, **changes)
            await tx.integrations.replace(after, expected=current.revision)
            if action is not None:
                await record_change(tx, now, action, after, _SCHEDULE, {"reasons": list(reasons)})
            return action

        return await commit_with_retries(self.store, write)


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
