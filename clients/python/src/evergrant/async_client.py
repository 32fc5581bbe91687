"""`AsyncEvergrant`: the asyncio client."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any, Self, Unpack

import httpx2

from evergrant.api.commands import ApiMethods, confirm_call, refresh_call, report_call, revoke_call
from evergrant.api.imports import ImportItem, ImportOutcome, import_calls
from evergrant.api.leases import LeaseOptions, LeaseRequest, lease_call
from evergrant.api.models import CallApproval, Connection
from evergrant.auth import AsyncLeaseAuth
from evergrant.gateway.clients import GatewayAuth, client_options, gateway_address, raise_own_error_async
from evergrant.lease import Lease
from evergrant.models import ConsentRequired
from evergrant.origins import allowed_origins
from evergrant.retries import Deadline, is_consent_complete, telling_whose_turn
from evergrant.transport import AsyncTransport


class AsyncEvergrant(ApiMethods, AsyncTransport):
    """Evergrant over HTTP, for asyncio. An async context manager; tasks of one event loop may share one.

    Takes the arguments of `Evergrant` and has the same methods, awaited.
    """

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._leases_in_flight.cancel_all()
        await self._reports_in_flight.cancel_all()
        await self._tokens_in_flight.cancel_all()
        for http in (self._http, self._retired):
            if http is not None:
                await http.aclose()

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
        return AsyncLeaseAuth(
            allowed_origins(origins),
            self._cache,
            self._reported,
            take=partial(self._require_lease, request),
            step_up=partial(self._step_up, request),
            report=self.report_refused,
            prove=self.proof,
        )

    def proxy(self, connection_id: str, *, gateway_url: str | None = None) -> httpx2.AsyncClient:
        """See `Evergrant.proxy`."""
        options: dict[str, Any] = client_options(connection_id, self.gateway_auth(gateway_url=gateway_url))
        hooks = {"response": [raise_own_error_async]}
        return httpx2.AsyncClient(**options, verify=self._tls, event_hooks=hooks)

    def gateway_auth(self, *, gateway_url: str | None = None) -> GatewayAuth:
        """See `Evergrant.gateway_auth`."""
        gateway = gateway_address(gateway_url, allow_plain_http=self._allow_plain_http)
        return GatewayAuth(gateway, lambda: self._credential(Deadline(self._deadline)))

    async def refresh(self, connection_id: str, *, seen_generation: int | None = None) -> Connection:
        """See `Evergrant.refresh`."""
        self._cache.invalidate(connection_id)
        return await self.send(refresh_call(connection_id, seen_generation))

    async def report_refused(self, connection_id: str, generation: int) -> Connection:
        """See `Evergrant.report_refused`."""
        call = report_call(connection_id, generation)

        async def report() -> Connection:
            # Before the shared call ends: later callers must see both changes.
            try:
                connection = await self.send(call)
            finally:
                self._cache.invalidate(connection_id, generation)  # also a lease cached meanwhile
            self._reported.put((connection_id, generation), True)
            return connection

        return await self._reports_in_flight.run((connection_id, generation), report)

    async def revoke(self, connection_id: str, reason: str) -> Connection:
        """See `Evergrant.revoke`."""
        try:
            return await self.send(revoke_call(connection_id, reason))
        finally:
            self._cache.invalidate(connection_id)  # also without an answer: the server may have revoked

    async def confirm(
        self, connection_id: str, code: str, subject: str, verifier: str | None = None
    ) -> Connection:
        """See `Evergrant.confirm`."""
        try:
            return await self.send(confirm_call(connection_id, code, subject, verifier))
        finally:
            self._cache.invalidate(connection_id)

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
            connection = await self.send(ApiMethods.connection.call(connection_id), deadline.poll_timeout_s())
            if is_consent_complete(connection, newer_than):
                return connection
            with telling_whose_turn(connection):
                await asyncio.sleep(deadline.poll_pause_s(every))

    async def wait_for_approval(
        self, approval_id: str, timeout: timedelta, *, every: timedelta = timedelta(seconds=2)
    ) -> CallApproval:
        """See `Evergrant.wait_for_approval`."""
        deadline = Deadline(timeout)
        call = ApiMethods.call_approval.call(approval_id)
        while True:
            approval = await self.send(call, deadline.poll_timeout_s())
            if not approval.is_waiting or deadline.seconds_left() <= 0:
                return approval
            await asyncio.sleep(deadline.poll_pause_s(every))

    async def import_connections(
        self, items: Iterable[ImportItem], *, dry_run: bool = False, verify: bool = True
    ) -> AsyncIterator[ImportOutcome]:
        """See `Evergrant.import_connections`."""
        for call in import_calls(items, dry_run=dry_run, verify=verify):
            for outcome in await self.send(call):
                yield outcome

    async def _lease(self, request: LeaseRequest) -> Lease | ConsentRequired:
        if (cached := self._cache.get(request)) is not None:
            return cached

        async def request_lease() -> Lease | ConsentRequired:
            ticket = self._cache.begin_request()
            response = await self.send(lease_call(request))
            self._cache.store(request, response, ticket)
            return response.result

        return await self._leases_in_flight.run(request, request_lease)

    async def _step_up(self, request: LeaseRequest, challenge: str) -> Lease:
        return await self._require_lease(replace(request, www_authenticate=challenge))

    async def _require_lease(self, request: LeaseRequest) -> Lease:
        answer = await self._lease(request)
        if isinstance(answer, ConsentRequired):
            raise answer.as_error()
        return answer
