"""The two transports: a call becomes HTTP attempts within a deadline, a list is fetched page by page.

`Transport` blocks, `AsyncTransport` awaits.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any, ParamSpec, TypedDict, TypeVar, Unpack

import httpx2

from evergrant.api.attempts import (
    call_arguments,
    explained,
    require_open,
    require_same_loop,
    token_arguments,
    transport_error,
)
from evergrant.api.call import Call, Page, Result, check_version, moved_address, next_page, seconds_or_none
from evergrant.api.models import Connection
from evergrant.auth import ReportedTokens
from evergrant.errors import EvergrantError
from evergrant.identity import Certificate, Identity
from evergrant.identity.access_tokens import TokenHolder
from evergrant.identity.certificate import CertificateTls
from evergrant.lease import Lease
from evergrant.lease_cache import CACHE_LEASES_FOR, Clock, LeaseCache, utc_now
from evergrant.models import ConsentRequired
from evergrant.origins import ServerAddress
from evergrant.retries import DEADLINE, Deadline
from evergrant.single_flight import AsyncSingleFlight, SingleFlight

_MAX_REPORTED = 10_000

Params = ParamSpec("Params")
Item = TypeVar("Item")


class ClientOptions(TypedDict, total=False):
    """Optional arguments of both clients.

    `deadline` bounds each call with all its attempts (thirty seconds). Plain http is for this machine
    only, unless `allow_plain_http`. `cache_leases_for` (thirty seconds) bounds how long a lease is
    served again from this process, and so how long it can outlive a revocation made elsewhere; with
    zero each lease is a request to Evergrant. `clock` is for tests.

    With an `identity` (`evergrant.identity`) in place of an API key the client gets access tokens for it, and
    renews them. `issuer` is Evergrant's public URL, where `url` is another address of it.
    """

    identity: Identity | None
    issuer: str | None
    deadline: timedelta
    tls: ssl.SSLContext | None
    allow_plain_http: bool
    cache_leases_for: timedelta
    clock: Clock


class ClientState:
    """The server's address, the deadline, the lease cache and the reported tokens of one client."""

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        identity: Identity | None = None,
        issuer: str | None = None,
        deadline: timedelta = DEADLINE,
        tls: ssl.SSLContext | None = None,
        allow_plain_http: bool = False,
        cache_leases_for: timedelta = CACHE_LEASES_FOR,
        clock: Clock = utc_now,
    ) -> None:
        self._server = ServerAddress.from_settings(
            url, api_key, identity=identity, issuer=issuer, allow_plain_http=allow_plain_http
        )
        self._allow_plain_http = allow_plain_http
        self._tokens = TokenHolder()
        for time in (deadline, cache_leases_for):
            seconds_or_none(time)  # raises TypeError for a number
        self._deadline = deadline
        identity = self._server.identity
        self._certificate = CertificateTls(identity, tls) if isinstance(identity, Certificate) else None
        self._tls = self._certificate.context if self._certificate else tls or True
        self._cache = LeaseCache(cache_leases_for, clock)
        self._reported = ReportedTokens(_MAX_REPORTED)

    def _follow(self, response: httpx2.Response) -> bool:
        """Whether the tenant has moved to another cell, to which every later request goes then.

        Raises BadRequest for an address that the settings don't allow.
        """
        moved_to = moved_address(response)
        if moved_to is None:
            return False
        if moved_to != self._server.url:  # or another thread has followed already
            self._server = self._server.moved_to(moved_to)
            self._tokens = TokenHolder()
        return True


class Transport(ClientState):
    """Sends calls and blocks until they are answered. Threads may share one."""

    def __init__(
        self, url: str | None = None, api_key: str | None = None, **options: Unpack[ClientOptions]
    ) -> None:
        super().__init__(url, api_key, **options)
        self._http = self._connect()
        self._retired: httpx2.Client | None = None
        self._leases_in_flight = SingleFlight[Lease | ConsentRequired]()
        self._reports_in_flight = SingleFlight[Connection]()
        self._tokens_in_flight = SingleFlight[str]()

    def _retire(self, http: httpx2.Client) -> None:
        """Requests may be under way: it is closed when the next one is retired."""
        if self._retired is not None:
            self._retired.close()
        self._retired = http

    def _connect(self) -> httpx2.Client:
        # trust_env: a proxy or a .netrc of the environment must not see the API key.
        return httpx2.Client(verify=self._tls, trust_env=False)

    def send(self, call: Call[Result], within_s: float | None = None) -> Result:
        """Send a call, again after failures that time may repair. Raises EvergrantError."""
        deadline = _deadline(self._deadline, within_s)
        try:
            return self._send(call, deadline)
        except EvergrantError as error:
            # without the frames of libraries
            raise explained(deadline.last_answer(error), call, self._server).with_traceback(None) from None

    def _send(self, call: Call[Result], deadline: Deadline) -> Result:
        for attempt in deadline.attempts():
            with attempt:
                credential = self._credential(deadline)
                response = self._request(call_arguments(call, self._server, credential, deadline))
                if self._follow(response):
                    credential = self._credential(deadline)
                    response = self._request(call_arguments(call, self._server, credential, deadline))
                if response.status_code == 401 and self._server.identity is not None:
                    self._tokens.drop(credential)  # it was ended early: a credential was replaced
                    credential = self._credential(deadline)
                    response = self._request(call_arguments(call, self._server, credential, deadline))
                return call.parse(response)
        raise AssertionError("an attempt returns or raises")

    def _request(self, arguments: dict[str, Any]) -> httpx2.Response:
        require_open(self._http)
        try:
            response = self._http.request(**arguments)
        except httpx2.RequestError as error:
            raise transport_error(error, self._server.url) from None
        check_version(response)
        return response

    def _credential(self, deadline: Deadline) -> str:
        """The API key, or a token that is good for a while. Callers share one request for a token."""
        server = self._server
        if server.identity is None:
            return server.api_key

        def get_token() -> str:
            if (known := self._tokens.current()) is not None:
                return known
            if self._certificate is not None and self._certificate.renew():
                self._retire(self._http)
                self._http = self._connect()
            asked_at, proof = self._tokens.now(), identity(server.issuer)
            return self._tokens.keep(self._request(token_arguments(server, proof, deadline)), asked_at)

        identity = server.identity
        return self._tokens.current() or self._tokens_in_flight.run(None, get_token)

    def pages(self, call: Call[Page[Item]]) -> Iterator[Item]:
        """The items of a list; the next page is fetched when it is needed."""
        following: Call[Page[Item]] | None = call
        while following is not None:
            page = self.send(following)
            yield from page.items
            following = next_page(following, page)


class AsyncTransport(ClientState):
    """`Transport` for asyncio. Tasks of one event loop may share one."""

    def __init__(
        self, url: str | None = None, api_key: str | None = None, **options: Unpack[ClientOptions]
    ) -> None:
        super().__init__(url, api_key, **options)
        self._http = self._connect()
        self._retired: httpx2.AsyncClient | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._leases_in_flight = AsyncSingleFlight[Lease | ConsentRequired]()
        self._reports_in_flight = AsyncSingleFlight[Connection]()
        self._tokens_in_flight = AsyncSingleFlight[str]()

    async def _retire(self, http: httpx2.AsyncClient) -> None:
        if self._retired is not None:
            await self._retired.aclose()
        self._retired = http

    def _connect(self) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(verify=self._tls, trust_env=False)

    async def send(self, call: Call[Result], within_s: float | None = None) -> Result:
        deadline = _deadline(self._deadline, within_s)
        try:
            return await self._send(call, deadline)
        except EvergrantError as error:
            raise explained(deadline.last_answer(error), call, self._server).with_traceback(None) from None

    async def _send(self, call: Call[Result], deadline: Deadline) -> Result:
        async for attempt in deadline.attempts():
            with attempt:
                credential = await self._credential(deadline)
                response = await self._request(call_arguments(call, self._server, credential, deadline))
                if self._follow(response):
                    credential = await self._credential(deadline)
                    response = await self._request(call_arguments(call, self._server, credential, deadline))
                if response.status_code == 401 and self._server.identity is not None:
                    self._tokens.drop(credential)
                    credential = await self._credential(deadline)
                    response = await self._request(call_arguments(call, self._server, credential, deadline))
                return call.parse(response)
        raise AssertionError("an attempt returns or raises")

    async def _request(self, arguments: dict[str, Any]) -> httpx2.Response:
        require_open(self._http)
        self._loop = require_same_loop(self._loop)
        try:
            response = await self._http.request(**arguments)
        except httpx2.RequestError as error:
            raise transport_error(error, self._server.url) from None
        check_version(response)
        return response

    async def _credential(self, deadline: Deadline) -> str:
        server = self._server
        if server.identity is None:
            return server.api_key

        async def get_token() -> str:
            if (known := self._tokens.current()) is not None:
                return known
            if self._certificate is not None and await asyncio.to_thread(self._certificate.renew):
                await self._retire(self._http)
                self._http = self._connect()
            asked_at = self._tokens.now()
            proof = await asyncio.to_thread(identity, server.issuer)  # it may read a file or call a service
            return self._tokens.keep(await self._request(token_arguments(server, proof, deadline)), asked_at)

        identity = server.identity
        return self._tokens.current() or await self._tokens_in_flight.run(None, get_token)

    async def pages(self, call: Call[Page[Item]]) -> AsyncIterator[Item]:
        following: Call[Page[Item]] | None = call
        while following is not None:
            page = await self.send(following)
            for item in page.items:
                yield item
            following = next_page(following, page)


def _deadline(total: timedelta, within_s: float | None) -> Deadline:
    return Deadline(total if within_s is None else min(total, timedelta(seconds=within_s)))
