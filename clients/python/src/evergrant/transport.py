"""The two transports: a call becomes HTTP attempts within a deadline, a list is fetched page by page.

`Transport` blocks, `AsyncTransport` awaits. `Sends` and `Lists` make a method of both clients from a
function that builds a call.
"""

import inspect
import json
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from datetime import timedelta
from types import MethodType
from typing import Any, Generic, ParamSpec, TypedDict, TypeVar, Unpack, overload

import httpx2

from evergrant.auth import ReportedTokens
from evergrant.calls.call import Call, Page, Result, check_version, next_page
from evergrant.errors import EvergrantError, ProtocolError, Unreachable
from evergrant.lease import Lease
from evergrant.lease_cache import CACHE_LEASES_FOR, Clock, LeaseCache, utc_now
from evergrant.models import Connection, ConsentRequired
from evergrant.origins import ServerAddress
from evergrant.retries import ATTEMPT_LIMIT_S, CONNECT_LIMIT_S, DEADLINE, Deadline
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
    """

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
        deadline: timedelta = DEADLINE,
        tls: ssl.SSLContext | None = None,
        allow_plain_http: bool = False,
        cache_leases_for: timedelta = CACHE_LEASES_FOR,
        clock: Clock = utc_now,
    ) -> None:
        self._server = ServerAddress.from_settings(url, api_key, allow_plain_http=allow_plain_http)
        self._deadline = deadline
        self._tls = tls or True
        self._cache = LeaseCache(cache_leases_for, clock)
        self._reported = ReportedTokens(_MAX_REPORTED)


class Transport(ClientState):
    """Sends calls and blocks until they are answered. Threads may share one."""

    def __init__(
        self, url: str | None = None, api_key: str | None = None, **options: Unpack[ClientOptions]
    ) -> None:
        super().__init__(url, api_key, **options)
        # trust_env: a proxy or a .netrc of the environment must not see the API key.
        self._http = httpx2.Client(verify=self._tls, trust_env=False)
        self._leases_in_flight = SingleFlight[Lease | ConsentRequired]()
        self._reports_in_flight = SingleFlight[Connection]()

    def send(self, call: Call[Result], within_s: float | None = None) -> Result:
        """Send a call, again after failures that time may repair. Raises EvergrantError."""
        deadline = _deadline(self._deadline, within_s)
        for attempt in deadline.attempts():
            with attempt:
                try:
                    response = self._http.request(**_arguments(call, self._server, deadline))
                except httpx2.RequestError as error:
                    raise _transport_error(error) from error
                check_version(response)
                return call.parse(response)
        raise AssertionError("an attempt returns or raises")

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
        self._http = httpx2.AsyncClient(verify=self._tls, trust_env=False)
        self._leases_in_flight = AsyncSingleFlight[Lease | ConsentRequired]()
        self._reports_in_flight = AsyncSingleFlight[Connection]()

    async def send(self, call: Call[Result], within_s: float | None = None) -> Result:
        deadline = _deadline(self._deadline, within_s)
        async for attempt in deadline.attempts():
            with attempt:
                try:
                    response = await self._http.request(**_arguments(call, self._server, deadline))
                except httpx2.RequestError as error:
                    raise _transport_error(error) from error
                check_version(response)
                return call.parse(response)
        raise AssertionError("an attempt returns or raises")

    async def pages(self, call: Call[Page[Item]]) -> AsyncIterator[Item]:
        following: Call[Page[Item]] | None = call
        while following is not None:
            page = await self.send(following)
            for item in page.items:
                yield item
            following = next_page(following, page)


class Sends(Generic[Params, Result]):
    """A method of both clients that sends the call of `build`, with its parameters and docstring."""

    def __init__(self, build: Callable[Params, Call[Result]]) -> None:
        def send(client: Transport, /, *args: Params.args, **kwargs: Params.kwargs) -> Result:
            return client.send(build(*args, **kwargs))

        async def send_async(
            client: AsyncTransport, /, *args: Params.args, **kwargs: Params.kwargs
        ) -> Result:
            return await client.send(build(*args, **kwargs))

        self._methods = (_described(send, build), _described(send_async, build))

    @overload
    def __get__(self, client: Transport, owner: type) -> Callable[Params, Result]: ...
    @overload
    def __get__(
        self, client: AsyncTransport, owner: type
    ) -> Callable[Params, Coroutine[Any, Any, Result]]: ...
    @overload
    def __get__(self, client: None, owner: type) -> Callable[..., Any]: ...
    def __get__(self, client: object, owner: type) -> Callable[..., Any]:
        method = self._methods[issubclass(owner, AsyncTransport)]
        return method if client is None else MethodType(method, client)


class Lists(Generic[Params, Item]):
    """A method of both clients that iterates over the list of `build`."""

    def __init__(self, build: Callable[Params, Call[Page[Item]]]) -> None:
        def pages(client: Any, /, *args: Params.args, **kwargs: Params.kwargs) -> Any:
            return client.pages(build(*args, **kwargs))

        self._method = _described(pages, build)

    @overload
    def __get__(self, client: Transport, owner: type) -> Callable[Params, Iterator[Item]]: ...
    @overload
    def __get__(self, client: AsyncTransport, owner: type) -> Callable[Params, AsyncIterator[Item]]: ...
    @overload
    def __get__(self, client: None, owner: type) -> Callable[..., Any]: ...
    def __get__(self, client: object, owner: type) -> Callable[..., Any]:
        return self._method if client is None else MethodType(self._method, client)


def _described(method: Callable[..., Any], build: Callable[..., object]) -> Callable[..., Any]:
    """The method with the name, docstring and parameters of its call, for `help` and for mocks."""
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    parameters = [own, *inspect.signature(build).parameters.values()]
    vars(method).update(__signature__=inspect.Signature(parameters))
    method.__name__ = build.__name__
    method.__doc__ = build.__doc__
    return method


def _deadline(total: timedelta, within_s: float | None) -> Deadline:
    return Deadline(total if within_s is None else min(total, timedelta(seconds=within_s)))


def _arguments(call: Call[Result], server: ServerAddress, deadline: Deadline) -> dict[str, Any]:
    """The arguments of one attempt. Its timeout is what is left of the deadline."""
    headers = {"authorization": f"Bearer {server.api_key}", "accept": "application/json"}
    if call.body is not None:
        headers["content-type"] = "application/json"
    if call.idempotency_key is not None:
        headers["idempotency-key"] = call.idempotency_key
    left = deadline.seconds_left()
    return dict(
        method=call.method,
        url=server.url + call.path,
        params=dict(call.query) if call.query else None,
        content=None if call.body is None else json.dumps(call.body).encode(),
        headers=headers,
        timeout=httpx2.Timeout(min(ATTEMPT_LIMIT_S, left), connect=min(CONNECT_LIMIT_S, left)),
    )


def _transport_error(error: httpx2.RequestError) -> EvergrantError:
    """Names the exception's class and not its message, which may quote received data."""
    if isinstance(error, httpx2.TransportError):
        return Unreachable(f"no answer ({type(error).__name__})")
    return ProtocolError(f"the answer can't be read ({type(error).__name__})")
