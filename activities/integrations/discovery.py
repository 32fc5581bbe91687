"""Reads and pins an issuer's metadata (RFC 8414), registers the client there, and reads it again.

Changes that weaken the pinned metadata are refused.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from temporalio import activity

from activities.integrations.registration import ClientRegistrations, RegistrationAttempt, must_register
from activities.single_use.attempt import SingleUseAttempt
from activities.single_use.journaled_reply import JournaledReply
from activities.support.provider_replies import log_words
from activities.support.temporal import heartbeating
from activities.support.transactions import commit_with_retries
from evergrant_server import audit
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.clock import Clock
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import Endpoints, Integration, IntegrationState
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.integrations import DiscoverEndpoints, DiscoveryResult
from evergrant_server.core.messages.maintenance import RereadMetadata, RereadMetadataResult
from evergrant_server.core.messages.names import ActivityName
from evergrant_server.egress import Egress
from evergrant_server.store import Store, Transaction, UnwrappedKeys
from evergrant_server.telemetry.alarms import report_broken_authority
from providers.definition.registry import Registry
from providers.definition.templates import definition_endpoints
from providers.registration.client_metadata import RegisteredClient, read_registration
from providers.registration.discovery import discover, weakening_changes
from providers.responses.raw_reply import RawReply

_SCHEDULE = RequestContext(by="schedule")
_BATCH_SIZE = 20  # documents a pass, which bounds its duration when issuers are down


@dataclass(frozen=True)
class DiscoveryActivities:
    store: Store
    registry: Registry
    egress: Egress
    clock: Clock
    public_url: str
    registrations: ClientRegistrations

    @activity.defn(name=ActivityName.DISCOVER_ENDPOINTS)
    async def discover_endpoints(self, request: DiscoverEndpoints) -> DiscoveryResult:
        """Write READY with the endpoints (and the client id), or FAILED with the reason."""
        async with self.store.read() as tx:
            integration = await tx.integrations.get(request.tenant, request.integration_id)
        if integration is None or (integration.issuer is None and integration.registration is None):
            return DiscoveryResult(
                failure=ErrorCode.NOT_FOUND, detail="the integration was deleted, or has no issuer"
            )
        try:
            if integration.issuer is None:
                endpoints, quirks = await self._host_endpoints(integration)
            else:
                endpoints, quirks = await discover(self.egress, integration.issuer), ()
            if must_register(integration, endpoints):
                integration = await self.registrations.await_earlier(integration)
            if must_register(integration, endpoints):
                redirect_uri = f"{self.public_url}/oauth/callback/{integration.id}"
                return await self.registrations.register(
                    request, integration, endpoints, redirect_uri, self._commit_registration, quirks
                )
        except Failure as failure:
            return await self._write_failed(request, integration, failure)
        return await self._write_ready(request, integration, endpoints)

    async def _host_endpoints(self, integration: Integration) -> tuple[Endpoints, tuple[str, ...]]:
        """The endpoints and quirks of a definition with `client_registration: per_host`."""
        async with self.store.read() as tx:
            versions = await tx.definitions.serving(integration.tenant, integration.provider)
        spec = self.registry.serving(integration.provider, versions)
        endpoints = definition_endpoints(spec, integration.params)
        return endpoints.model_copy(update={"token_auth_methods": (spec.client_auth.value,)}), spec.quirks

    async def replay_answer(self, use: SingleUseAttempt, answer: JournaledReply) -> DiscoveryResult:
        """Commit a registration's journaled reply."""
        return await self._commit_registration(
            RegistrationAttempt.model_validate(answer.request), answer.reply, use.keys
        )

    async def _commit_registration(
        self, attempt: RegistrationAttempt, reply: RawReply, keys: UnwrappedKeys
    ) -> DiscoveryResult:
        """Write the registered client, unless the integration was changed meanwhile."""
        async with self.store.read() as tx:
            seen = await tx.integrations.get(attempt.request.tenant, attempt.request.integration_id)
            initial = await tx.integrations.initial_access_token(seen) if seen else None
        if seen is None or seen.client_id or seen.registration_sent_at != attempt.sent_at:
            return DiscoveryResult()
        try:
            registered = read_registration(reply, asked_auth=attempt.auth)
        except Failure as failure:
            await self.registrations.close_intent(seen, attempt.sent_at, spent=initial is not None)
            return await self._write_failed(attempt.request, seen, failure)
        return await self._write_ready(attempt.request, seen, attempt.endpoints, registered, keys)

    async def _write_ready(
        self,
        request: DiscoverEndpoints,
        seen: Integration,
        endpoints: Endpoints,
        registered: RegisteredClient | None = None,
        keys: UnwrappedKeys | None = None,
    ) -> DiscoveryResult:
        async def pin(tx: Transaction) -> None:
            now = self.clock.now()
            current = await _current_if_same_issuer(tx, seen)
            if current is None:
                return
            changes = {
                "state": IntegrationState.READY,
                "problem": None,
                "endpoints": endpoints if seen.issuer is not None else None,  # None: the definition has them
                "changed_at": now,
                "metadata_read_at": now,
            }
            if registered is None:
                after = current.model_copy(update=changes)
                await tx.integrations.replace(after, expected=current.revision)
            elif current.client_id or current.registration_sent_at != seen.registration_sent_at:
                return  # committed already, or changed meanwhile
            else:
                changes |= {
                    "client_id": registered.client_id,
                    "client_auth": registered.client_auth,
                    "client_secret_expires_at": registered.secret_expires_at,
                    "registration_url": registered.management_url,
                }
                after = current.model_copy(update=changes)
                await tx.integrations.store_registration(
                    after, registered.client_secret, registered.management_token
                )
                detail = {"client_id": registered.client_id}
                await _record(tx, now, AuditAction.CLIENT_REGISTERED, after, request.context, detail)
            await _record(
                tx, now, AuditAction.INTEGRATION_DISCOVERED, after, request.context, {"problem": None}
            )

        await commit_with_retries(self.store, pin, keys)
        return DiscoveryResult()

    async def _write_failed(
        self, request: DiscoverEndpoints, seen: Integration, failure: Failure
    ) -> DiscoveryResult:
        detail = {"problem": failure.code, **log_words(failure, seen.id)}

        async def write(tx: Transaction) -> None:
            now = self.clock.now()
            current = await _current_if_same_issuer(tx, seen)
            if current is None:
                return
            changes = {"state": IntegrationState.FAILED, "problem": failure.detail, "changed_at": now}
            after = current.model_copy(update=changes)
            await tx.integrations.replace(after, expected=current.revision)
            await _record(tx, now, AuditAction.INTEGRATION_DISCOVERED, after, request.context, detail)

        await commit_with_retries(self.store, write)
        return DiscoveryResult(failure=failure.code, detail=failure.detail)

    @activity.defn(name=ActivityName.REREAD_METADATA)
    async def reread_metadata(self, request: RereadMetadata) -> RereadMetadataResult:
        """Compare a batch of integrations; refuse and record changes that weaken the pinned metadata."""
        before = self.clock.now() - timedelta(seconds=request.older_than_s)
        changed = refused = 0
        async with heartbeating():
            async with self.store.read() as tx:
                due = await tx.integrations.with_metadata_older_than(before, _BATCH_SIZE)
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
        assert seen.issuer is not None
        reasons: tuple[str, ...] = ()
        published = seen.endpoints
        try:
            published = await discover(self.egress, seen.issuer)
        except Failure as failure:
            if failure.code in (ErrorCode.DISCOVERY_FAILED, ErrorCode.EGRESS_REFUSED):
                reasons = (failure.detail,)
        if seen.endpoints is not None and published is not None and not reasons:
            reasons = weakening_changes(seen.endpoints, published, seen.client_auth)

        async def write(tx: Transaction) -> AuditAction | None:
            now = self.clock.now()
            current = await _current_if_same_issuer(tx, seen)
            if current is None or current.endpoints != seen.endpoints:
                return None
            action, changes = _metadata_change(current, published, reasons)
            after = current.model_copy(update={"metadata_read_at": now, **changes})
            await tx.integrations.replace(after, expected=current.revision)
            if action is not None:
                await _record(tx, now, action, after, _SCHEDULE, {"reasons": list(reasons)})
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


async def _record(
    tx: Transaction,
    at: datetime,
    action: AuditAction,
    integration: Integration,
    context: RequestContext,
    detail: dict[str, Any],
) -> None:
    entry = AuditEntry(
        tenant=integration.tenant,
        at=at,
        action=action,
        object=integration.id,
        context=context,
        detail={"issuer": integration.issuer, **detail},
    )
    await audit.append(tx, entry)


async def _current_if_same_issuer(tx: Transaction, seen: Integration) -> Integration | None:
    """The row, unless its issuer was changed, which starts a discovery of its own."""
    current = await tx.integrations.get(seen.tenant, seen.id)
    return current if current is not None and current.issuer == seen.issuer else None
