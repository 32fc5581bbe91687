"""`Evergrant`: the blocking client."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any, Self, Unpack

import httpx2

from evergrant.api.commands import ApiMethods, confirm_call, refresh_call, report_call, revoke_call
from evergrant.api.imports import ImportItem, ImportOutcome, import_calls
from evergrant.api.leases import LeaseOptions, LeaseRequest, lease_call
from evergrant.api.models import CallApproval, Connection
from evergrant.auth import LeaseAuth
from evergrant.gateway.clients import GatewayAuth, client_options, gateway_address, raise_own_error
from evergrant.lease import Lease
from evergrant.models import ConsentRequired
from evergrant.origins import allowed_origins
from evergrant.retries import Deadline, is_consent_complete, telling_whose_turn
from evergrant.transport import Transport


class Evergrant(ApiMethods, Transport):
    """Evergrant over HTTP, for code that blocks. A context manager; threads may share one.

    `url` and `api_key` default to EVERGRANT_URL and EVERGRANT_API_KEY (or the file named by
    EVERGRANT_API_KEY_FILE), or the app proves its identity with EVERGRANT_APP_ID and
    EVERGRANT_PRIVATE_KEY_FILE, EVERGRANT_CERTIFICATE_FILE or EVERGRANT_WORKLOAD_TOKEN_FILE; `ClientOptions`
    describes the options. Every method raises `EvergrantError`.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        for http in (self._http, self._retired):
            if http is not None:
                http.close()

    def lease(
        self, integration: str, subject: str, **options: Unpack[LeaseOptions]
    ) -> Lease | ConsentRequired:
        """A token that is valid for at least `min_ttl`, or the link to send the subject to.

        `label` (default `default`) selects among a subject's connections; `scopes` narrows the scopes.
        Answered from this process's cache where possible; simultaneous callers with the same
        arguments share one request.
        """
        return self._lease(LeaseRequest(integration, subject, **options))

    def token(self, integration: str, subject: str, **options: Unpack[LeaseOptions]) -> str:
        """The bare access token. Raises ReconnectNeeded, with `connect_url`, for `ConsentRequired`."""
        return self._require_lease(LeaseRequest(integration, subject, **options)).access_token

    def auth(
        self, integration: str, subject: str, *, origins: str | Iterable[str], **options: Unpack[LeaseOptions]
    ) -> LeaseAuth:
        """For httpx2: puts a token on each request to `origins` (`https://api.example.com`), no others.

        A 401 is reported to Evergrant, once per grant, and the request is sent once more with the
        newer token. Requests raise ReconnectNeeded while a consent is missing, also for the scopes that
        a 403 demands (`insufficient_scope`, RFC 6750 section 3.1).
        """
        request = LeaseRequest(integration, subject, **options)
        return LeaseAuth(
            allowed_origins(origins),
            self._cache,
            self._reported,
            take=partial(self._require_lease, request),
            step_up=partial(self._step_up, request),
            report=self.report_refused,
            prove=self.proof,
        )

    def proxy(self, connection_id: str, *, gateway_url: str | None = None) -> httpx2.Client:
        """An HTTP client to the connection's API through Evergrant's gateway: no token reaches this process.

        Its paths begin at the API's base URL: `client.proxy(id).get("/user")`. `gateway_url` is
        EVERGRANT_GATEWAY_URL by default. An answer of the provider's API is a response, of any status;
        one of Evergrant's own is raised as EvergrantError. Close it, or use it as a context manager.
        """
        options: dict[str, Any] = client_options(connection_id, self.gateway_auth(gateway_url=gateway_url))
        return httpx2.Client(**options, verify=self._tls, event_hooks={"response": [raise_own_error]})

    def gateway_auth(self, *, gateway_url: str | None = None) -> GatewayAuth:
        """For httpx2: the app's own credential for requests to the gateway, such as those of an MCP client.

        `mcp_url(connection_id)` of it is the address of a connection's MCP server there.
        """
        gateway = gateway_address(gateway_url, allow_plain_http=self._allow_plain_http)
        return GatewayAuth(gateway, lambda: self._credential(Deadline(self._deadline)))

    def refresh(self, connection_id: str, *, seen_generation: int | None = None) -> Connection:
        """Refresh the grant, unless it is newer than `seen_generation` (None: than it is now)."""
        self._cache.invalidate(connection_id)
        return self.send(refresh_call(connection_id, seen_generation))

    def report_refused(self, connection_id: str, generation: int) -> Connection:
        """Report that the provider's API answered 401 to the token of a lease that should be valid.

        Both arguments are the lease's. However many callers report one generation, it is refreshed once.
        Where the answer's `generation` is newer, lease again (RFC 6750 section 3.1). Where it is the same,
        another refresh would not help: this grant can't be refreshed, or the provider's API also refused a
        token that came from a report. Evergrant then accepts the next report after five minutes; each
        refresh that didn't help doubles that time, to six hours at most. `auth` reports by itself.

        Raises ProviderUnavailable, with `retry_after` in seconds, while refreshes fail; ReconnectNeeded
        where the subject has to consent again; any other EvergrantError.
        """
        call = report_call(connection_id, generation)

        def report() -> Connection:
            # Before the shared call ends: later callers must see both changes.
            try:
                connection = self.send(call)
            finally:
                self._cache.invalidate(connection_id, generation)  # also a lease cached meanwhile
            self._reported.put((connection_id, generation), True)
            return connection

        return self._reports_in_flight.run((connection_id, generation), report)

    def revoke(self, connection_id: str, reason: str) -> Connection:
        """Revoke. From the answer on no lease leaves; `revoked` once the provider has confirmed."""
        try:
            return self.send(revoke_call(connection_id, reason))
        finally:
            self._cache.invalidate(connection_id)  # also without an answer: the server may have revoked

    def confirm(self, connection_id: str, code: str, subject: str, verifier: str | None = None) -> Connection:
        """Confirm that the person who finished a consent is `subject`; the code is then exchanged.

        `code` came with the browser to `return_to` (`evergrant_code`, with `connection_id`). `subject` is
        who is logged in **in that browser's session with your app**, and `verifier` the one that this
        session keeps: take neither from the query. Waits for the exchange, fifteen seconds at most.

        Raises BadRequest `not_found` for a code that isn't this consent's, ReconnectNeeded
        `subject_mismatch` for another person (nothing was stored: start again), `confirm_expired` after two
        minutes (the connect link works again), any other EvergrantError.
        """
        try:
            return self.send(confirm_call(connection_id, code, subject, verifier))
        finally:
            self._cache.invalidate(connection_id)  # a new grant may reach more than the last one

    def wait_for_consent(
        self,
        connection_id: str,
        timeout: timedelta,
        *,
        newer_than: int = 0,
        every: timedelta = timedelta(seconds=2),
    ) -> Connection:
        """The connection, once the subject has consented.

        After `reauthorize`, pass the connection's `generation` as `newer_than`. Raises ConsentTimeout
        after `timeout`, ReconnectNeeded when the consent was denied, expired or the connection revoked, and
        the error of a consent that has failed; PlatformUnavailable when no worker exchanges the code.
        """
        deadline = Deadline(timeout)
        while True:
            connection = self.send(ApiMethods.connection.call(connection_id), deadline.poll_timeout_s())
            if is_consent_complete(connection, newer_than):
                return connection
            with telling_whose_turn(connection):
                time.sleep(deadline.poll_pause_s(every))

    def wait_for_approval(
        self, approval_id: str, timeout: timedelta, *, every: timedelta = timedelta(seconds=2)
    ) -> CallApproval:
        """The call's approval once it is decided or over; after `timeout` as it is: the request goes on."""
        deadline = Deadline(timeout)
        call = ApiMethods.call_approval.call(approval_id)
        while True:
            approval = self.send(call, deadline.poll_timeout_s())
            if not approval.is_waiting or deadline.seconds_left() <= 0:
                return approval
            time.sleep(deadline.poll_pause_s(every))

    def import_connections(
        self, items: Iterable[ImportItem], *, dry_run: bool = False, verify: bool = True
    ) -> Iterator[ImportOutcome]:
        """Import existing grants, in requests of 50, and yield the outcome of each, in order.

        `docs/guide/moving-in.md` lists an item's members. With `verify` the server refreshes each grant
        once: stop every other system that refreshes it first. Sending an item again changes nothing, so
        an interrupted import is simply run again.
        """
        for call in import_calls(items, dry_run=dry_run, verify=verify):
            yield from self.send(call)

    def _lease(self, request: LeaseRequest) -> Lease | ConsentRequired:
        if (cached := self._cache.get(request)) is not None:
            return cached

        def request_lease() -> Lease | ConsentRequired:
            ticket = self._cache.begin_request()
            response = self.send(lease_call(request))
            self._cache.store(request, response, ticket)
            return response.result

        return self._leases_in_flight.run(request, request_lease)

    def _step_up(self, request: LeaseRequest, challenge: str) -> Lease:
        return self._require_lease(replace(request, www_authenticate=challenge))

    def _require_lease(self, request: LeaseRequest) -> Lease:
        answer = self._lease(request)
        if isinstance(answer, ConsentRequired):
            raise answer.as_error()
        return answer
