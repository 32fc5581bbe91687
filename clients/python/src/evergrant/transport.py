"""The two transports: a call becomes HTTP attempts within a deadline, a list is fetched page by page.

`Transport` blocks, `AsyncTransport` awaits. `sends`, `lists` and their asynchronous twins make a
client's method from a function that builds a call, with its parameters and docstring.
"""

import inspect
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from datetime import timedelta
from typing import Any, Concatenate, ParamSpec, TypedDict, TypeVar, Unpack

import httpx2

from evergrant.calls.call import Call, Result, next_page
from evergrant.errors import EvergrantError, ProtocolError, Unreachable
from evergrant.options import ClientOptions, ClientState
from evergrant.responses import Page, Response, check_version
from evergrant.retries import ATTEMPT_LIMIT_S, CONNECT_LIMIT_S, Deadline
from evergrant.server import ServerAddress

Params = ParamSpec("Params")
Item = TypeVar("Item")


class Transport(ClientState):
    """Sends calls and blocks until they are answered. Threads may share one."""

    def __init__(
        self, url: str | None = None, api_key: str | None = None, **options: Unpack[ClientOptions]
    ) -> None:
        super().__init__(url, api_key, **options)
        # trust_env: a proxy or a .netrc of the environment must not see the API key.
        self._http = httpx2.Client(verify=self._tls, trust_env=False)

    def send(self, call: Call[Result], within_s: float | None = None) -> Result:
        """Send a call, again after failures that time may repair. Raises EvergrantError."""
        deadline = _deadline(self._deadline, within_s)
        for attempt in deadline.attempts():
            with attempt:
                try:
                    response = self._http.request(**_arguments(call, self._server, deadline))
                except httpx2.RequestError as error:
                    raise _transport_error(error) from error
                return call.parse(_read(response))
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

    async def send(self, call: Call[Result], within_s: float | None = None) -> Result:
        """Send a call, again after failures that time may repair. Raises EvergrantError."""
        deadline = _deadline(self._deadline, within_s)
        async for attempt in deadline.attempts():
            with attempt:
                try:
                    response = await self._http.request(**_arguments(call, self._server, deadline))
                except httpx2.RequestError as error:
                    raise _transport_error(error) from error
                return call.parse(_read(response))
        raise AssertionError("an attempt returns or raises")

    async def pages(self, call: Call[Page[Item]]) -> AsyncIterator[Item]:
        """The items of a list; the next page is fetched when it is needed."""
        following: Call[Page[Item]] | None = call
        while following is not None:
            page = await self.send(following)
            for item in page.items:
                yield item
            following = next_page(following, page)


def sends(build: Callable[Params, Call[Result]]) -> Callable[Concatenate[Transport, Params], Result]:
    """A method that sends the call of `build`."""

    def method(self: Transport, /, *args: Params.args, **kwargs: Params.kwargs) -> Result:
        return self.send(build(*args, **kwargs))

    _describe(method, build)
    return method


def lists(
    build: Callable[Params, Call[Page[Item]]],
) -> Callable[Concatenate[Transport, Params], Iterator[Item]]:
    """A method that iterates over the list of `build`."""

    def method(self: Transport, /, *args: Params.args, **kwargs: Params.kwargs) -> Iterator[Item]:
        return self.pages(build(*args, **kwargs))

    _describe(method, build)
    return method


def sends_async(
    build: Callable[Params, Call[Result]],
) -> Callable[Concatenate[AsyncTransport, Params], Coroutine[Any, Any, Result]]:
    """`sends` for `AsyncTransport`."""

    async def method(self: AsyncTransport, /, *args: Params.args, **kwargs: Params.kwargs) -> Result:
        return await self.send(build(*args, **kwargs))

    _describe(method, build)
    return method


def lists_async(
    build: Callable[Params, Call[Page[Item]]],
) -> Callable[Concatenate[AsyncTransport, Params], AsyncIterator[Item]]:
    """`lists` for `AsyncTransport`."""

    def method(self: AsyncTransport, /, *args: Params.args, **kwargs: Params.kwargs) -> AsyncIterator[Item]:
        return self.pages(build(*args, **kwargs))

    _describe(method, build)
    return method


def _describe(method: Callable[..., object], build: Callable[..., object]) -> None:
    """Give a method the name, docstring and parameters of its call, for `help` and for mocks."""
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    parameters = [own, *inspect.signature(build).parameters.values()]
    vars(method).update(__signature__=inspect.Signature(parameters))
    method.__name__ = build.__name__
    method.__doc__ = build.__doc__


class _RequestArguments(TypedDict):
    method: str
    url: str
    params: dict[str, str] | None
    content: bytes | None
    headers: dict[str, str]
    timeout: httpx2.Timeout


def _deadline(total: timedelta, within_s: float | None) -> Deadline:
    return Deadline(total if within_s is None else min(total, timedelta(seconds=within_s)))


def _arguments(call: Call[Result], server: ServerAddress, deadline: Deadline) -> _RequestArguments:
    """The arguments of one attempt. Its timeout is what is left of the deadline."""
    headers = {"authorization": f"Bearer {server.api_key}", "accept": "application/json"}
    if call.body is not None:
        headers["content-type"] = "application/json"
    if call.idempotency_key is not None:
        headers["idempotency-key"] = call.idempotency_key
    left = deadline.seconds_left()
    return _RequestArguments(
        method=call.method,
        url=server.url + call.path,
        params=dict(call.query) if call.query else None,
        content=None if call.body is None else json.dumps(call.body).encode(),
        headers=headers,
        timeout=httpx2.Timeout(min(ATTEMPT_LIMIT_S, left), connect=min(CONNECT_LIMIT_S, left)),
    )


def _read(response: httpx2.Response) -> Response:
    """Raises ProtocolError for a server of another major version."""
    headers = {name.lower(): value for name, value in response.headers.items()}
    read = Response(response.status_code, headers, response.content)
    check_version(read)
    return read


def _transport_error(error: httpx2.RequestError) -> EvergrantError:
    """Names the exception's class and not its message, which may quote received data."""
    if isinstance(error, httpx2.TransportError):
        return Unreachable(f"no answer ({type(error).__name__})")
    return ProtocolError(f"the answer can't be read ({type(error).__name__})")
