"""Reads an issuer's metadata and pins it (RFC 8414), registers us there, and looks again later."""

from datetime import timedelta
from typing import Any

from temporalio import activity

from activities.integrations.registration import ClientRegistrations, RegistrationAttempt
from activities.single_use.journaled_reply import JournaledReply
from activities.single_use.protocol import SingleUseAttempt
from activities.support.heartbeat import heartbeating
from activities.support.transactions import commit_with_retries
from evergrant_server import audit
from evergrant_server.core.access import Endpoints, Integration, IntegrationState, RegistrationMethod
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.clock import Clock
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.integrations import DiscoverEndpoints, DiscoveryResult
from evergrant_server.core.messages.maintenance import RereadMetadata, RereadMetadataResult
from evergrant_server.core.messages.names import ActivityName
from evergrant_server.egress import Egress
from evergrant_server.store import Store, Transaction, UnwrappedKeys
from providers.definition.registry import Registry
from providers.definition.templates import definition_endpoints
from providers.registration.client_metadata import RegisteredClient, read_registration
from providers.registration.discovery import discover, weakening_changes
from providers.responses.raw_reply import RawReply

_SCHEDULE = RequestContext(by="schedule")
_BATCH_SIZE = 20  # documents a pass, so that no issuer's outage makes a pass of hours


class DiscoveryActivities:
    def __init__(
        self,
        store: Store,
        registry: Registry,
        egress: Egress,
        clock: Clock,
        public_url: str,
        registrations: ClientRegistrations,
    ) -> None:
        self._store = store
        self._registry = registry
        self._egress = egress
        self._clock = clock
        self._public_url = public_url
        self._registrations = registrations

    @activity.defn(name=ActivityName.DISCOVER_ENDPOINTS)
    async def discover_endpoints(self, order: DiscoverEndpoints) -> DiscoveryResult:
        """Write READY with the endpoints (and our client id), or FAILED with the reason."""
        async with self._store.read() as tx:
            integration = await tx.integrations.get(order.tenant, order.integration_id)
        if integration is None or (integration.issuer is None and integration.registration is None):
            return DiscoveryResult(
                failure=ErrorCode.NOT_FOUND, detail="the integration is gone, or has no issuer"
            )
        try:
            if integration.issuer is None:
                endpoints, quirks = await self._host_endpoints(integration)
            else:
                endpoints, quirks = await discover(self._egress, integration.issuer), ()
            if self._must_register(integration, endpoints):
                integration = await self._registrations.await_earlier(integration)
            if self._must_register(integration, endpoints):
                redirect_uri = f"{self._public_url}/oauth/callback/{integration.id}"
                return await self._registrations.register(
                    order, integration, endpoints, redirect_uri, self._commit_registration, quirks
                )
        except Failure as failure:
            return await self._write_failed(order, integration, failure)
        return await self._write_ready(order, integration, _endpoints_to_pin(integration, endpoints), None)

    async def _host_endpoints(self, integration: Integration) -> tuple[Endpoints, tuple[str, ...]]:
        """The endpoints of a host whose definition says where it registers clients."""
        async with self._store.read() as tx:
            versions = await tx.definitions.serving(integration.tenant, integration.provider)
        spec = self._registry.serving(integration.provider, versions)
        endpoints = definition_endpoints(spec, integration.params)
        return endpoints.model_copy(update={"token_auth_methods": (spec.client_auth.value,)}), spec.quirks

    def _must_register(self, integration: Integration, endpoints: Endpoints) -> bool:
        """Is it wanted and not done? Raises Failure when the server can't."""
        if (
            integration.registration is RegistrationMethod.METADATA_DOCUMENT
            and not endpoints.takes_metadata_documents
        ):
            raise _cannot_register("it reads no client metadata documents")
        if integration.registration is not RegistrationMethod.DYNAMIC or integration.client_id:
            return False
        if endpoints.registration_endpoint is None:
            raise _cannot_register("it has no registration endpoint")
        return True

    async def replay_answer(self, use: SingleUseAttempt, answer: JournaledReply) -> DiscoveryResult:
        """A registration's answer from a journal, through the same judge and commit as a new one."""
        return await self._commit_registration(
            RegistrationAttempt.model_validate(answer.request), answer.reply, use.keys
        )

    async def _commit_registration(
        self, it: RegistrationAttempt, reply: RawReply, keys: UnwrappedKeys
    ) -> DiscoveryResult:
        """What the issuer made of us, unless somebody wants something else by now."""
        async with self._store.read() as tx:
            seen = await tx.integrations.get(it.request.tenant, it.request.integration_id)
            initial = await tx.integrations.initial_access_token(seen) if seen else None
        if seen is None or seen.client_id or seen.registration_sent_at != it.sent_at:
            return DiscoveryResult()
        try:
            registered = read_registration(reply, asked_auth=it.auth)
        except Failure as failure:
            await self._registrations.close_intent(seen, it.sent_at, spent=initial is not None)
            return await self._write_failed(it.request, seen, failure)
        return await self._write_ready(
            it.request, seen, _endpoints_to_pin(seen, it.endpoints), registered, keys
        )

    async def _write_ready(
        self,
        order: DiscoverEndpoints,
        seen: Integration,
        endpoints: Endpoints | None,
        registered: RegisteredClient | None,
        keys: UnwrappedKeys | None = None,
    ) -> DiscoveryResult:
        async def pin(tx: Transaction) -> None:
            now = self._clock.now()
            current = await _current_if_same_issuer(tx, seen)
            if current is None:
                return
            if registered and (
                current.client_id or current.registration_sent_at != seen.registration_sent_at
            ):
                return  # replayed: it is done, or somebody wants another
            changes = {
                "state": IntegrationState.READY,
                "problem": None,
                "endpoints": endpoints,
                "changed_at": now,
                "metadata_read_at": now,
            }
            if registered is not None:
                changes |= {
                    "client_id": registered.client_id,
                    "client_auth": registered.client_auth,
                    "client_secret_expires_at": registered.secret_expires_at,
                    "registration_url": registered.management_url,
                }
            after = current.model_copy(update=changes)
            if registered is None:
                await tx.integrations.replace(after, expected=current.revision)
            else:
                await tx.integrations.store_registration(
                    after, registered.client_secret, registered.management_token
                )
                await self._record(
                    tx, AuditAction.CLIENT_REGISTERED, after, order.context, client_id=registered.client_id
                )
            await self._record(tx, AuditAction.INTEGRATION_DISCOVERED, after, order.context, problem=None)

        await commit_with_retries(self._store, pin, keys)
        return DiscoveryResult()

    async def _write_failed(
        self, order: DiscoverEndpoints, seen: Integration, failure: Failure
    ) -> DiscoveryResult:
        async def write(tx: Transaction) -> None:
            current = await _current_if_same_issuer(tx, seen)
            if current is None:
                return
            after = current.model_copy(
                update={
                    "state": IntegrationState.FAILED,
                    "problem": failure.detail,
                    "changed_at": self._clock.now(),
                }
            )
            await tx.integrations.replace(after, expected=current.revision)
            await self._record(
                tx, AuditAction.INTEGRATION_DISCOVERED, after, order.context, problem=failure.code
            )

        await commit_with_retries(self._store, write)
        return DiscoveryResult(failure=failure.code, detail=failure.detail)

    # --- looking again ------------------------------------------------------------------

    @activity.defn(name=ActivityName.REREAD_METADATA)
    async def reread_metadata(self, order: RereadMetadata) -> RereadMetadataResult:
        """Compare what is pinned with what issuers publish now. What weakens it is refused and told."""
        before = self._clock.now() - timedelta(seconds=order.older_than_s)
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
        """An issuer that is away has changed nothing; one whose document went bad is told of."""
        assert seen.issuer is not None
        reasons: tuple[str, ...] = ()
        now_it_says = seen.endpoints
        try:
            now_it_says = await discover(self._egress, seen.issuer)
        except Failure as failure:
            if failure.code in (ErrorCode.DISCOVERY_FAILED, ErrorCode.EGRESS_REFUSED):
                reasons = (failure.detail,)
        if seen.endpoints is not None and now_it_says is not None and not reasons:
            reasons = weakening_changes(seen.endpoints, now_it_says, seen.client_auth)

        async def write(tx: Transaction) -> AuditAction | None:
            now = self._clock.now()
            current = await _current_if_same_issuer(tx, seen)
            if current is None or current.endpoints != seen.endpoints:
                return None
            action, changes = _metadata_change(current, now_it_says, reasons)
            after = current.model_copy(update={"metadata_read_at": now, **changes})
            await tx.integrations.replace(after, expected=current.revision)
            if action is not None:
                await self._record(tx, action, after, _SCHEDULE, reasons=list(reasons))
            return action

        return await commit_with_retries(self._store, write)

    async def _record(
        self, tx: Transaction, action: AuditAction, it: Integration, asked: RequestContext, **detail: object
    ) -> None:
        entry = AuditEntry(
            tenant=it.tenant,
            at=self._clock.now(),
            action=action,
            object=it.id,
            context=asked,
            detail={"issuer": it.issuer, **detail},
        )
        await audit.append(tx, entry)


def _metadata_change(
    current: Integration, now_it_says: Endpoints | None, reasons: tuple[str, ...]
) -> tuple[AuditAction | None, dict[str, Any]]:
    """What to write. The same refusal is told once, not every day."""
    if reasons:
        problem = "the issuer's metadata was refused, the pinned endpoints stay: " + "; ".join(reasons)
        told = current.problem == problem
        return (None if told else AuditAction.METADATA_REFUSED), {"problem": problem}
    if now_it_says != current.endpoints:
        return AuditAction.METADATA_CHANGED, {"endpoints": now_it_says, "problem": None}
    return None, {"problem": None}


async def _current_if_same_issuer(tx: Transaction, seen: Integration) -> Integration | None:
    """The row, unless it has another issuer by now: its own discovery is under way then."""
    current = await tx.integrations.get(seen.tenant, seen.id)
    return current if current is not None and current.issuer == seen.issuer else None


def _cannot_register(why: str) -> Failure:
    return Failure(ErrorCode.CLIENT_REJECTED, f"the server can't register us: {why}", field="registration")


def _endpoints_to_pin(integration: Integration, endpoints: Endpoints) -> Endpoints | None:
    """What an issuer published is kept with the integration; else its definition says it each time."""
    return endpoints if integration.issuer is not None else None
