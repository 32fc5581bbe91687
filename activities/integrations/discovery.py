"""Reads and pins an issuer's metadata (RFC 8414), and registers the client there (RFC 7591)."""

from dataclasses import dataclass

from temporalio import activity

from activities.integrations.metadata import (
    IssuerMoved,
    PublishedEndpoints,
    current_if_same_place,
    record_change,
)
from activities.integrations.registration import ClientRegistrations, RegistrationAttempt, must_register
from activities.single_use.attempt import JournaledReply, SingleUseAttempt
from activities.support.transactions import commit_with_retries, log_words
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.clock import Clock
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.integrations import (
    NO_CLIENT,
    Endpoints,
    Integration,
    IntegrationState,
    RegistrationMethod,
)
from evergrant_server.core.messages import jobs
from evergrant_server.core.messages.integrations import DiscoverEndpoints, DiscoveryResult
from evergrant_server.store import Store, Transaction, UnwrappedKeys
from providers.registration.client_metadata import (
    RegisteredClient,
    client_metadata_url,
    read_registration,
    with_document_client,
)
from providers.responses.raw_reply import RawReply


@dataclass(frozen=True)
class DiscoveryActivities:
    store: Store
    published: PublishedEndpoints
    clock: Clock
    public_url: str
    client_metadata_url: str  # with the placeholder {integration}
    registrations: ClientRegistrations

    @activity.defn(name=jobs.DISCOVER_ENDPOINTS.name)
    async def discover_endpoints(self, request: DiscoverEndpoints) -> DiscoveryResult:
        """Write READY with the endpoints (and the client id), or FAILED with the reason: an integration
        whose issuer is right, and that has no client yet, has its endpoints too."""
        async with self.store.read() as tx:
            integration = await tx.integrations.get(request.tenant, request.integration_id)
        if integration is None:
            return DiscoveryResult(failure=ErrorCode.NOT_FOUND, detail="the integration was deleted")
        try:
            integration, endpoints, quirks = await self._published(integration)
            redirect_uri = f"{self.public_url}/oauth/callback/{integration.id}"
            if must_register(integration, endpoints, redirect_uri):
                integration = await self.registrations.await_earlier(integration)
            if must_register(integration, endpoints, redirect_uri):
                return await self.registrations.register(
                    request, integration, endpoints, redirect_uri, self._commit_registration, quirks
                )
        except Failure as failure:
            return await self._write_failed(request, integration, failure)
        return await self._write_ready(request, integration, endpoints)

    async def _published(self, seen: Integration) -> tuple[Integration, Endpoints, tuple[str, ...]]:
        """What the issuer publishes, with the client that is used there.

        Raises as `PublishedEndpoints.read`, and Failure CLIENT_REJECTED.
        """
        try:
            endpoints, quirks = await self.published.read(seen)
        except IssuerMoved as moved:
            seen = await self._leave_issuer(seen, moved)
            endpoints, quirks = await self.published.read(seen)
        url = client_metadata_url(self.client_metadata_url, seen.id)
        return with_document_client(seen, endpoints, url), endpoints, quirks

    async def _leave_issuer(self, seen: Integration, moved: IssuerMoved) -> Integration:
        """The integration without its issuer, and without the client that was registered there.

        Client and tokens belong to an issuer: a client that the admin has registered, and live connections,
        stay where they are. Raises IssuerMoved for these.
        """

        async def leave(tx: Transaction) -> Integration:
            current = await current_if_same_place(tx, seen)
            stays = current is None or current.registration is None or current.issuer is not None
            if current is None or stays:
                raise moved
            await tx.integrations.lock_against_use(current)
            if await tx.connections.any_live(seen.tenant, seen.id):
                raise moved
            kept = current.registration is RegistrationMethod.METADATA_DOCUMENT  # portable: it is our URL
            client = {} if kept else {"client_id": "", "client_auth": None}
            after = current.__replace__(endpoints=None, **client)
            left = await tx.integrations.request_registration(after, None)
            await tx.destinations.leave(left)  # with the client that goes: the next one pins its own hosts
            return left

        return await commit_with_retries(self.store, leave)

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
        is_discovered = seen.issuer is not None or endpoints.resource is not None

        async def pin(tx: Transaction) -> None:
            now = self.clock.now()
            current = await current_if_same_place(tx, seen)
            if current is None:
                return
            lacks_client = current.lacks_client and registered is None
            after = current.__replace__(
                state=IntegrationState.FAILED if lacks_client else IntegrationState.READY,
                problem=NO_CLIENT if lacks_client else None,
                endpoints=endpoints if is_discovered else None,  # None: the definition has them
                changed_at=now,
                metadata_read_at=now,
            )
            if registered is None:
                if current.registration is not None and not current.client_id:
                    after = after.__replace__(client_id=seen.client_id, client_auth=seen.client_auth)
                await tx.integrations.replace(after, expected=current.revision)
            elif current.client_id or current.registration_sent_at != seen.registration_sent_at:
                return  # committed already, or changed meanwhile
            else:
                after = await _store_client(tx, after, registered)
                detail = {"client_id": registered.client_id}
                await record_change(tx, now, AuditAction.CLIENT_REGISTERED, after, request.context, detail)
            await record_change(
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
            current = await current_if_same_place(tx, seen)
            if current is None:
                return
            after = current.__replace__(state=IntegrationState.FAILED, problem=failure.detail, changed_at=now)
            await tx.integrations.replace(after, expected=current.revision)
            await record_change(tx, now, AuditAction.INTEGRATION_DISCOVERED, after, request.context, detail)

        await commit_with_retries(self.store, write)
        return DiscoveryResult(failure=failure.code, detail=failure.detail)


async def _store_client(
    tx: Transaction, integration: Integration, registered: RegisteredClient
) -> Integration:
    """The integration with the client that was registered for it, whose secrets are stored."""
    after = integration.__replace__(
        client_id=registered.client_id,
        client_auth=registered.client_auth,
        client_secret_expires_at=registered.secret_expires_at,
        registration_url=registered.management_url,
    )
    await tx.integrations.store_registration(after, registered.client_secret, registered.management_token)
    return after
