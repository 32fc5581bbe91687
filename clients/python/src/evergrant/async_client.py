"""`AsyncEvergrant`: the asyncio client."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from datetime import timedelta
from types import TracebackType
from typing import Self, Unpack

from evergrant.auth import AsyncLeaseAuth
from evergrant.calls import connections as connection_calls
from evergrant.calls import integrations as integration_calls
from evergrant.calls import leases as lease_calls
from evergrant.calls import transfer as transfer_calls
from evergrant.calls import webhooks as webhook_calls
from evergrant.calls.leases import LeaseOptions, LeaseRequest
from evergrant.calls.transfer import ImportItem, ImportOutcome
from evergrant.dpop import MAX_PROOF_ATTEMPTS, LeaseWithProof, generation_keeps_changing
from evergrant.models import Connection, ConsentRequired, Lease
from evergrant.options import ClientOptions
from evergrant.origins import AllowedOrigins
from evergrant.retries import Deadline, is_consent_complete
from evergrant.single_flight import AsyncSingleFlight
from evergrant.transport import AsyncTransport, lists_async, sends_async


class AsyncEvergrant(AsyncTransport):
    """Evergrant over HTTP, for asyncio. An async context manager; tasks of one event loop may share one.

    Takes the arguments of `Evergrant` and has the same methods, awaited.
    """

    def __init__(
        self, url: str | None = None, api_key: str | None = None, **options: Unpack[ClientOptions]
    ) -> None:
        super().__init__(url, api_key, **options)
        self._leases_in_flight = AsyncSingleFlight[Lease | ConsentRequired]()
        self._reports_in_flight = AsyncSingleFlight[Connection]()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._leases_in_flight.cancel_all()
        await self._reports_in_flight.cancel_all()
        await self._http.aclose()

    async def lease(
        self, integration: str, subject: str, **options: Unpack[LeaseOptions]
    ) -> Lease | ConsentRequired:
        """See `Evergrant.lease`."""
        return await self._lease(LeaseRequest(integration, subject, **options))

    async def token(self, integration: str, subject: str, **options: Unpack[LeaseOptions]) -> str:
        """See `Evergrant.token`."""
        leased = await self._require_lease(LeaseRequest(integration, subject, **options))
        return leased.access_token

    def auth(
        self, integration: str, subject: str, *, origins: str | Iterable[str], **options: Unpack[LeaseOptions]
    ) -> AsyncLeaseAuth:
        """See `Evergrant.auth`."""
        request = LeaseRequest(integration, subject, **options)

        async def take() -> Lease:
            return await self._require_lease(request)

        async def report(refused: Lease) -> Lease:
            self._cache.invalidate(refused.connection_id, refused.generation)
            if not self._reported.contains(refused.connection_id, refused.generation):
                await self.report_refused(refused.connection_id, refused.generation)
            return await take()

        async def prove(lease: Lease, method: str, url: str, nonce: str | None) -> LeaseWithProof:
            for _ in range(MAX_PROOF_ATTEMPTS):
                proof = await self.proof(lease.connection_id, method, url, nonce=nonce)
                if proof.generation == lease.generation:
                    return LeaseWithProof(lease, proof)
                self._cache.invalidate(lease.connection_id, lease.generation)  # it was refreshed meanwhile
                lease = await take()
            raise generation_keeps_changing(lease)

        return AsyncLeaseAuth(AllowedOrigins.of(origins), self._reported, take, report, prove)

    proof = sends_async(lease_calls.proof)
    sign = sends_async(lease_calls.sign)

    async def refresh(self, connection_id: str, *, seen_generation: int | None = None) -> Connection:
        """See `Evergrant.refresh`."""
        self._cache.invalidate(connection_id)
        return await self.send(connection_calls.refresh(connection_id, seen_generation=seen_generation))

    async def report_refused(self, connection_id: str, generation: int) -> Connection:
        """See `Evergrant.report_refused`."""
        call = connection_calls.report_refused(connection_id, generation)

        async def report() -> Connection:
            # Before the shared call ends: later callers must see both changes.
            try:
                connection = await self.send(call)
            finally:
                self._cache.invalidate(connection_id, generation)  # also a lease cached meanwhile
            self._reported.add(connection_id, generation)
            return connection

        return await self._reports_in_flight.run((connection_id, generation), report)

    async def revoke(self, connection_id: str, reason: str) -> Connection:
        """See `Evergrant.revoke`."""
        try:
            return await self.send(connection_calls.revoke(connection_id, reason))
        finally:
            self._cache.invalidate(connection_id)  # also without an answer: the server may have revoked

    async def wait_for_consent(
        self,
        connection_id: str,
        timeout: timedelta,
        *,
        newer_than: int = 0,
        every: timedelta = timedelta(seconds=2),
    ) -> Connection:
        """See `Evergrant.wait_for_consent`."""
        deadline = Deadline(timeout)
        while True:
            found = await self.send(connection_calls.connection(connection_id), deadline.poll_timeout_s())
            if is_consent_complete(found, newer_than):
                return found
            await asyncio.sleep(deadline.poll_pause_s(every))

    connect = sends_async(connection_calls.connect)
    connection = sends_async(connection_calls.connection)
    connections = lists_async(connection_calls.connections)
    reauthorize = sends_async(connection_calls.reauthorize)
    choose = sends_async(connection_calls.choose)
    audit = lists_async(connection_calls.audit)
    providers = lists_async(connection_calls.providers)
    apps = lists_async(connection_calls.apps)

    integrations = lists_async(integration_calls.integrations)
    integration = sends_async(integration_calls.integration)
    put_integration = sends_async(integration_calls.put_integration)
    delete_integration = sends_async(integration_calls.delete_integration)
    rotate_client_secret = sends_async(integration_calls.rotate_client_secret)
    roll_client_secret_back = sends_async(integration_calls.roll_client_secret_back)
    propose_provider = sends_async(integration_calls.propose_provider)
    provider_versions = lists_async(integration_calls.provider_versions)
    approve_provider = sends_async(integration_calls.approve_provider)
    reject_provider = sends_async(integration_calls.reject_provider)
    roll_provider_back = sends_async(integration_calls.roll_provider_back)

    webhooks = lists_async(webhook_calls.webhooks)
    webhook = sends_async(webhook_calls.webhook)
    put_webhook = sends_async(webhook_calls.put_webhook)
    delete_webhook = sends_async(webhook_calls.delete_webhook)
    rotate_webhook_secret = sends_async(webhook_calls.rotate_webhook_secret)
    webhook_deliveries = lists_async(webhook_calls.webhook_deliveries)
    replay_webhook = sends_async(webhook_calls.replay_webhook)
    test_webhook = sends_async(webhook_calls.test_webhook)

    async def import_connections(
        self, items: Iterable[ImportItem], *, dry_run: bool = False, verify: bool = True
    ) -> AsyncIterator[ImportOutcome]:
        """See `Evergrant.import_connections`."""
        for call in transfer_calls.import_calls(items, dry_run=dry_run, verify=verify):
            for outcome in await self.send(call):
                yield outcome

    start_export = sends_async(transfer_calls.start_export)
    export_lines = sends_async(transfer_calls.export_lines)
    drop_export = sends_async(transfer_calls.drop_export)

    async def _lease(self, request: LeaseRequest) -> Lease | ConsentRequired:
        if (cached := self._cache.get(request)) is not None:
            return cached

        async def request_lease() -> Lease | ConsentRequired:
            ticket = self._cache.begin_request()
            response = await self.send(lease_calls.lease(request))
            self._cache.store(request, response, ticket)
            return response.result

        return await self._leases_in_flight.run(request, request_lease)

    async def _require_lease(self, request: LeaseRequest) -> Lease:
        answer = await self._lease(request)
        if isinstance(answer, ConsentRequired):
            raise answer.as_error()
        return answer
