"""Reads and pins an issuer's metadata (RFC 8414), and registers the client there."""

from temporalio import activity

from activities.integrations.change_records import current_if_same_issuer, record_change
from activities.integrations.registration import ClientRegistrations, RegistrationAttempt
from activities.single_use.attempt import SingleUseAttempt
from activities.single_use.journaled_reply import JournaledReply
from activities.support.transactions import commit_with_retries
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.clock import Clock
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import Endpoints, Integration, IntegrationState, RegistrationMethod
from evergrant_server.core.messages.base import ActivityName
from evergrant_server.core.messages.integrations import DiscoverEndpoints, DiscoveryResult
from evergrant_server.egress import Egress
from evergrant_server.store import Store, Transaction, UnwrappedKeys
from providers.definition.registry import Registry
from providers.definition.templates import definition_endpoints
from providers.registration.client_metadata import RegisteredClient, read_registration
from providers.registration.discovery import discover
from providers.responses.raw_reply import RawReply


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
    async def discover_endpoints(self, request: DiscoverEndpoints) -> DiscoveryResult:
        """Write READY with the endpoints (and the client id), or FAILED with the reason."""
        async with self._store.read() as tx:
            integration = await tx.integrations.get(request.tenant, request.integration_id)
        if integration is None or (integration.issuer is None and integration.registration is None):
            return DiscoveryResult(
                failure=ErrorCode.NOT_FOUND, detail="the integration was deleted, or has no issuer"
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
                    request, integration, endpoints, redirect_uri, self._commit_registration, quirks
                )
        except Failure as failure:
            return await self._write_failed(request, integration, failure)
        return await self._write_ready(request, integration, _endpoints_to_pin(integration, endpoints), None)

    async def _host_endpoints(self, integration: Integration) -> tuple[Endpoints, tuple[str, ...]]:
        """The endpoints and quirks of a definition with `client_registration: per_host`."""
        async with self._store.read() as tx:
            versions = await tx.definitions.serving(integration.tenant, integration.provider)
        spec = self._registry.serving(integration.provider, versions)
        endpoints = definition_endpoints(spec, integration.params)
        return endpoints.model_copy(update={"token_auth_methods": (spec.client_auth.value,)}), spec.quirks

    def _must_register(self, integration: Integration, endpoints: Endpoints) -> bool:
        """Whether a registration is configured and missing. Raises Failure when the server has none."""
        if (
            integration.registration is RegistrationMethod.METADATA_DOCUMENT
            and not endpoints.takes_metadata_documents
        ):
            raise _cannot_register("it doesn't support client metadata documents")
        if integration.registration is not RegistrationMethod.DYNAMIC or integration.client_id:
            return False
        if endpoints.registration_endpoint is None:
            raise _cannot_register("it has no registration endpoint")
        return True

    async def replay_answer(self, use: SingleUseAttempt, answer: JournaledReply) -> DiscoveryResult:
        """Commit a registration's journaled reply."""
        return await self._commit_registration(
            RegistrationAttempt.model_validate(answer.request), answer.reply, use.keys
        )

    async def _commit_registration(
        self, attempt: RegistrationAttempt, reply: RawReply, keys: UnwrappedKeys
    ) -> DiscoveryResult:
        """Write the registered client, unless the integration was changed meanwhile."""
        async with self._store.read() as tx:
            seen = await tx.integrations.get(attempt.request.tenant, attempt.request.integration_id)
            initial = await tx.integrations.initial_access_token(seen) if seen else None
        if seen is None or seen.client_id or seen.registration_sent_at != attempt.sent_at:
            return DiscoveryResult()
        try:
            registered = read_registration(reply, asked_auth=attempt.auth)
        except Failure as failure:
            await self._registrations.close_intent(seen, attempt.sent_at, spent=initial is not None)
            return await self._write_failed(attempt.request, seen, failure)
        return await self._write_ready(
            attempt.request, seen, _endpoints_to_pin(seen, attempt.endpoints), registered, keys
        )

    async def _write_ready(
        self,
        request: DiscoverEndpoints,
        seen: Integration,
        endpoints: Endpoints | None,
        registered: RegisteredClient | None,
        keys: UnwrappedKeys | None = None,
    ) -> DiscoveryResult:
        async def pin(tx: Transaction) -> None:
            now = self._clock.now()
            current = await current_if_same_issuer(tx, seen)
            if current is None:
                return
            if registered and (
                current.client_id or current.registration_sent_at != seen.registration_sent_at
            ):
                return  # committed already, or changed meanwhile
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
                await record_change(
                    tx,
                    now,
                    AuditAction.CLIENT_REGISTERED,
                    after,
                    request.context,
                    client_id=registered.client_id,
                )
            await record_change(
                tx, now, AuditAction.INTEGRATION_DISCOVERED, after, request.context, problem=None
            )

        await commit_with_retries(self._store, pin, keys)
        return DiscoveryResult()

    async def _write_failed(
        self, request: DiscoverEndpoints, seen: Integration, failure: Failure
    ) -> DiscoveryResult:
        async def write(tx: Transaction) -> None:
            now = self._clock.now()
            current = await current_if_same_issuer(tx, seen)
            if current is None:
                return
            after = current.model_copy(
                update={
                    "state": IntegrationState.FAILED,
                    "problem": failure.detail,
                    "changed_at": now,
                }
            )
            await tx.integrations.replace(after, expected=current.revision)
            await record_change(
                tx, now, AuditAction.INTEGRATION_DISCOVERED, after, request.context, problem=failure.code
            )

        await commit_with_retries(self._store, write)
        return DiscoveryResult(failure=failure.code, detail=failure.detail)


def _cannot_register(why: str) -> Failure:
    return Failure(
        ErrorCode.CLIENT_REJECTED, f"the server can't register the client: {why}", field="registration"
    )


def _endpoints_to_pin(integration: Integration, endpoints: Endpoints) -> Endpoints | None:
    """The discovered endpoints, or None where the definition has them."""
    return endpoints if integration.issuer is not None else None
