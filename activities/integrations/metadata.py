"""What an integration's issuer publishes, read for discovery and again later.

A later reading is refused when it weakens what is pinned.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from temporalio import activity

from activities.support.temporal import heartbeating
from activities.support.transactions import commit_with_retries
from evergrant_server import audit
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.clock import Clock
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import Endpoints, Integration
from evergrant_server.core.messages import jobs
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.maintenance import RereadMetadata, RereadMetadataResult
from evergrant_server.egress import Egress
from evergrant_server.store import Store, Transaction
from evergrant_server.telemetry.alarms import report_broken_authority
from providers.definition.registry import Registry
from providers.definition.schema import ProviderSpec
from providers.definition.templates import definition_endpoints, protected_resource_url
from providers.registration.discovery import discover, weakening_changes
from providers.registration.protected_resource import ProtectedResource, discover_resource


async def record_change(
    tx: Transaction,
    at: datetime,
    action: AuditAction,
    integration: Integration,
    context: RequestContext,
    detail: dict[str, Any],
) -> None:
    """Add the audit record of what a worker has found out about an integration."""
    entry = AuditEntry(
        tenant=integration.tenant,
        at=at,
        action=action,
        object=integration.id,
        context=context,
        detail={"issuer": integration.authorization_server, **detail},
    )
    await audit.append(tx, entry)


async def current_if_same_place(tx: Transaction, seen: Integration) -> Integration | None:
    """The row, unless its issuer or its parameters were changed, which starts a discovery of its own."""
    current = await tx.integrations.get(seen.tenant, seen.id)
    if current is None or (current.issuer, current.params) != (seen.issuer, seen.params):
        return None
    return current


class IssuerMoved(Failure):
    """The resource takes tokens of other issuers than the pinned one, whose client and tokens stay there."""

    def __init__(self, resource: ProtectedResource, pinned: str) -> None:
        detail = f"{resource.resource} takes tokens of {resource.issuers[0]}, and not of {pinned}"
        super().__init__(ErrorCode.DISCOVERY_FAILED, detail[:500], issuer=pinned)


@dataclass(frozen=True)
class PublishedEndpoints:
    """What is at the issuer, or in the definition of a provider whose host an integration names."""

    store: Store
    registry: Registry
    egress: Egress

    @property
    def resource_providers(self) -> tuple[str, ...]:
        """The catalogue's providers whose integrations name a protected resource."""
        return tuple(spec.name for spec in self.registry.all() if spec.protected_resource is not None)

    async def read(self, integration: Integration) -> tuple[Endpoints, tuple[str, ...]]:
        """The endpoints, and the definition's quirks of a registration there.

        Raises the Failure of `discover` and `discover_resource`, IssuerMoved, and DISCOVERY_FAILED for an
        issuer where an identity provider can grant no access.
        """
        endpoints, quirks = await self._read(integration)
        if integration.identity_provider is not None and endpoints.takes_id_jags is False:
            why = f"{endpoints.issuer} takes no grants of identity providers (ID-JAG)"
            raise Failure(ErrorCode.DISCOVERY_FAILED, why)
        return endpoints, quirks

    async def _read(self, integration: Integration) -> tuple[Endpoints, tuple[str, ...]]:
        spec = await self._spec(integration)
        if (url := protected_resource_url(spec, integration.params)) is not None:
            return await self._of_resource(url, integration), ()
        if integration.issuer is not None:
            return await discover(self.egress, integration.issuer), ()
        endpoints = definition_endpoints(spec, integration.params)
        return endpoints.__replace__(token_auth_methods=(spec.client_auth.value,)), spec.quirks

    async def _of_resource(self, url: str, integration: Integration) -> Endpoints:
        """The endpoints of the issuer whose tokens the resource takes; the pinned one while it is listed."""
        resource = await discover_resource(self.egress, url)
        pinned = integration.authorization_server
        if pinned is not None and pinned not in resource.issuers:
            raise IssuerMoved(resource, pinned)
        issuer = pinned or resource.issuers[0]
        endpoints = await discover(self.egress, issuer, require_pkce=True)
        scopes = tuple(
            scope for scope in resource.scopes if scope != "offline_access" or endpoints.offline_access
        )
        return endpoints.__replace__(resource=resource.resource, resource_scopes=scopes)

    async def _spec(self, integration: Integration) -> ProviderSpec:
        async with self.store.read() as tx:
            versions = await tx.definitions.serving(integration.tenant, integration.provider)
        return self.registry.serving(integration.provider, versions)


_SCHEDULE = RequestContext(by="schedule")
_BATCH_SIZE = 20  # documents a pass, which bounds its duration when issuers are down


@dataclass(frozen=True)
class MetadataRereads:
    store: Store
    published: PublishedEndpoints
    clock: Clock

    @activity.defn(name=jobs.REREAD_METADATA.name)
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
    pinned = current.endpoints
    if published is not None and pinned is not None and published.__replace__(scopes=pinned.scopes) == pinned:
        return None, {"endpoints": published, "problem": None}  # what the issuer lists for people alone
    if published != current.endpoints:
        return AuditAction.METADATA_CHANGED, {"endpoints": published, "problem": None}
    return None, {"problem": None}
