"""`Evergrant`: the blocking client. A thin shell around `calls`, `replies` and `patience`."""

import ssl
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from types import TracebackType
from typing import Self

import httpx2

from evergrant import calls
from evergrant.administration import Administration
from evergrant.auth import AllowedOrigins, LeaseAuth, ReportedTokens
from evergrant.caching import CACHE_LEASES_FOR, CacheKey, Clock, LeaseCache, utc_now
from evergrant.calls import Answer, Call
from evergrant.flights import SingleFlight
from evergrant.models import App, AuditRecord, Connection, ConsentRequired, Lease, Proof, Provider, State
from evergrant.patience import DEADLINE, RetryBudget, consent_is_complete
from evergrant.proving import MAX_PROOF_ATTEMPTS, LeaseWithProof, generation_keeps_changing
from evergrant.replies import Page
from evergrant.sending import read_response, request_arguments, transport_error
from evergrant.signatures import Signatures
from evergrant.target import ServerAddress
from evergrant.transfer import Transfers
from evergrant.webhook_calls import Webhooks


class Evergrant(Transfers, Webhooks, Administration, Signatures):
    """Evergrant over HTTP, for code that blocks. A context manager; threads may share one.

    `url` and `api_key` default to EVERGRANT_URL and EVERGRANT_API_KEY (or the file named by
    EVERGRANT_API_KEY_FILE). `deadline` bounds each call with all its attempts. Plain http is
    for this machine only, unless `allow_plain_http`. Every method raises `EvergrantError`.

    `cache_leases_for` bounds how long a lease is served again from this process, and with that how
    long one can outlive a revocation made elsewhere; zero asks Evergrant each time.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        deadline: timedelta = DEADLINE,
        tls: ssl.SSLContext | None = None,
        allow_plain_http: bool = False,
        cache_leases_for: timedelta = CACHE_LEASES_FOR,
        clock: Clock = utc_now,
    ) -> None:
        self._target = ServerAddress.from_settings(url, api_key, allow_plain_http=allow_plain_http)
        self._deadline = deadline
        self._cache = LeaseCache(cache_leases_for, clock)
        self._leasing = SingleFlight[Lease | ConsentRequired]()
        self._reporting = SingleFlight[Connection]()
        self._reports = ReportedTokens()
        # Neither a proxy nor a .netrc of the environment gets to see the API key.
        self._http = httpx2.Client(verify=tls or True, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def lease(
        self,
        integration: str,
        subject: str,
        *,
        label: str = "default",
        min_ttl: timedelta | None = None,
        scopes: tuple[str, ...] | None = None,
    ) -> Lease | ConsentRequired:
        """A token that is valid for at least `min_ttl`, or where to send the subject.

        Answered from this process where it can be; callers who ask for the same at once share a call.
        """
        key = CacheKey(integration, subject, label, scopes)
        if (cached := self._cache.get(key, min_ttl)) is not None:
            return cached
        call = calls.lease(integration, subject, label=label, min_ttl=min_ttl, scopes=scopes)

        def ask() -> Lease | ConsentRequired:
            asked = self._cache.begin_request()
            leased = self._do(call)
            if isinstance(leased.result, Lease):
                self._cache.store(key, leased.result, asked, leased.server_time)
            return leased.result

        return self._leasing.run((key, min_ttl), ask)

    def token(
        self,
        integration: str,
        subject: str,
        *,
        label: str = "default",
        min_ttl: timedelta | None = None,
        scopes: tuple[str, ...] | None = None,
    ) -> str:
        """The bare access token, for code that has no use for the rest.

        Raises ReconnectNeeded, with `connect_url`, where `lease` returns `ConsentRequired`.
        """
        return (self._taken(integration, subject, label, min_ttl, scopes)).access_token

    def proof(self, connection_id: str, method: str, url: str, *, nonce: str | None = None) -> Proof:
        """A `DPoP` header for one request with a token that is bound to a key (RFC 9449 section 7).

        Needed where a lease's `token_type` is `DPoP`; `nonce` is what the resource asked for, if it did.
        Its `generation` must be the lease's: with another, lease again. `auth` does all of this.
        """
        return self._do(calls.proof(connection_id, method, url, nonce=nonce))

    def auth(
        self,
        integration: str,
        subject: str,
        *,
        origins: str | Iterable[str],
        label: str = "default",
        min_ttl: timedelta | None = None,
        scopes: tuple[str, ...] | None = None,
    ) -> LeaseAuth:
        """For httpx2: puts a token on each request to `origins` (`https://api.example.com`), no others.

        A 401 is reported to Evergrant, once per grant, and the request is sent once more with the
        newer token. Requests raise ReconnectNeeded while a consent is missing.
        """

        def take() -> Lease:
            return self._taken(integration, subject, label, min_ttl, scopes)

        def report(refused: Lease) -> Lease:
            self._cache.invalidate(refused.connection_id, refused.generation)
            if not self._reports.contains(refused.connection_id, refused.generation):
                self.report_refused(refused.connection_id, refused.generation)
            return take()

        def prove(lease: Lease, method: str, url: str, nonce: str | None) -> LeaseWithProof:
            for _ in range(MAX_PROOF_ATTEMPTS):
                made = self.proof(lease.connection_id, method, url, nonce=nonce)
                if made.generation == lease.generation:
                    return LeaseWithProof(lease, made)
                self._cache.invalidate(lease.connection_id, lease.generation)  # it was refreshed meanwhile
                lease = take()
            raise generation_keeps_changing(lease)

        return LeaseAuth(AllowedOrigins.of(origins), self._reports, take, report, prove)

    def connect(
        self,
        integration: str,
        subject: str,
        *,
        label: str = "default",
        scopes: tuple[str, ...] | None = None,
        return_to: str | None = None,
        flow: str | None = None,
        resources: tuple[str, ...] = (),
        audience: str | None = None,
        choice: str | None = None,
        chain_scopes: Mapping[str, tuple[str, ...]] | None = None,
    ) -> Connection:
        """Begin a connection. Where its `flow` asks somebody, they finish it at `connect_url`.

        Without `flow` the provider's definition decides; with `client_credentials`, `jwt_bearer` and
        the like nobody is asked, and the connection becomes active by itself. `resources` (RFC 8707)
        and `audience` say what its tokens are for; `choice` which account, where a grant reaches several.
        """
        return self._do(
            calls.connect(
                integration,
                subject,
                label=label,
                scopes=scopes,
                return_to=return_to,
                flow=flow,
                resources=resources,
                audience=audience,
                choice=choice,
                chain_scopes=chain_scopes,
            )
        )

    def connection(self, connection_id: str, *, live: bool = False) -> Connection:
        """The connection as the store has it; with `live` also in its workflow's own words."""
        return self._do(calls.connection(connection_id, live=live))

    def connections(
        self,
        *,
        integration: str | None = None,
        provider: str | None = None,
        subject: str | None = None,
        state: State | None = None,
        expiring_before: datetime | None = None,
    ) -> Iterator[Connection]:
        """Every connection this app may see, page by page as it is read."""
        return self._items(
            calls.connections(
                integration=integration,
                provider=provider,
                subject=subject,
                state=state,
                expiring_before=expiring_before,
            )
        )

    def refresh(self, connection_id: str, *, seen_generation: int | None = None) -> Connection:
        """Make the grant newer than `seen_generation`, by default than it is now."""
        self._cache.invalidate(connection_id)
        return self._do(calls.refresh(connection_id, seen_generation=seen_generation))

    def report_refused(self, connection_id: str, generation: int) -> Connection:
        """Say that the provider's API answered 401 to the token of a lease, which should be good.

        Both arguments are the lease's. However many report one generation, it is refreshed once. Where the
        answer's `generation` is newer, lease again (RFC 6750 section 3.1). Where it is the same, another
        refresh would not help: nothing refreshes this grant, or a token that a report had replaced was
        refused as well. A report is then heard again after five minutes, which each refresh that didn't
        help doubles, to six hours at the most. `auth` reports by itself.

        Raises ProviderUnavailable, with `retry_after` in seconds, while refreshes fail; ReconnectNeeded where
        the subject has to consent again; any other EvergrantError.
        """
        call = calls.report_refused(connection_id, generation)

        def tell() -> Connection:
            # done before the flight lands: who comes later must see it
            try:
                answer = self._do(call)
            finally:
                self._cache.invalidate(connection_id, generation)  # also what was leased again meanwhile
            self._reports.add(connection_id, generation)
            return answer

        return self._reporting.run((connection_id, generation), tell)

    def reauthorize(
        self, connection_id: str, *, scopes: tuple[str, ...] | None = None, return_to: str | None = None
    ) -> Connection:
        """Open a new consent for the same connection; what it holds stays until that is given."""
        return self._do(calls.reauthorize(connection_id, scopes=scopes, return_to=return_to))

    def choose(self, connection_id: str, choice: str) -> Connection:
        """Say which of its `choices` the connection is for, by the choice's id."""
        return self._do(calls.choose(connection_id, choice))

    def revoke(self, connection_id: str, reason: str) -> Connection:
        """Revoke. From the answer on no lease leaves; the state is `revoked` once the provider agrees."""
        try:
            return self._do(calls.revoke(connection_id, reason))
        finally:
            self._cache.invalidate(connection_id)  # also when the answer was lost: it may have been done

    def wait_for_consent(
        self,
        connection_id: str,
        timeout: timedelta,
        *,
        newer_than: int = 0,
        every: timedelta = timedelta(seconds=2),
    ) -> Connection:
        """The connection, once the subject has consented.

        After `reauthorize`, pass its `generation` as `newer_than`. Raises ConsentTimeout
        after `timeout`, ReconnectNeeded when the consent was denied, expired or the connection revoked.
        """
        patience = RetryBudget(timeout)
        while True:
            found = self._do(calls.connection(connection_id), patience.poll_timeout_s())
            if consent_is_complete(found, newer_than):
                return found
            time.sleep(patience.poll_delay_s(every))

    def audit(self, connection_id: str | None = None) -> Iterator[AuditRecord]:
        """A connection's audit records, or the whole tenant's, page by page as they are read."""
        return self._items(calls.audit(connection_id))

    def providers(self) -> Iterator[Provider]:
        return self._items(calls.providers())

    def apps(self) -> Iterator[App]:
        return self._items(calls.apps())

    def _taken(
        self,
        integration: str,
        subject: str,
        label: str,
        min_ttl: timedelta | None,
        scopes: tuple[str, ...] | None,
    ) -> Lease:
        answer = self.lease(integration, subject, label=label, min_ttl=min_ttl, scopes=scopes)
        if isinstance(answer, ConsentRequired):
            raise answer.as_error()
        return answer

    def _do(self, call: Call[Answer], within_s: float | None = None) -> Answer:
        total = self._deadline if within_s is None else min(self._deadline, timedelta(seconds=within_s))
        patience = RetryBudget(total)
        for attempt in patience.attempts():
            with attempt:
                try:
                    response = self._http.request(**request_arguments(call, self._target, patience))
                except httpx2.RequestError as error:
                    raise transport_error(error) from error
                return call.parse(read_response(response))
        raise AssertionError("an attempt returns or raises")

    def _items(self, call: Call[Page[Answer]]) -> Iterator[Answer]:
        following: Call[Page[Answer]] | None = call
        while following is not None:
            page = self._do(following)
            yield from page.items
            following = calls.next_page(following, page)
