"""Methods of both clients from descriptions of calls; `Evergrant`'s block, `AsyncEvergrant`'s are awaited.

`sends` and `lists` make one of an operation of the API, `built` and `built_list` of a function that builds
a call.
"""

import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from enum import Enum
from types import MethodType
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, cast, overload

from evergrant.api.call import (
    Call,
    Page,
    Result,
    new_key,
    object_parser,
    page_parser,
    path_of,
    require_success,
    seconds_or_none,
)
from evergrant.api.fields import Model
from evergrant.transport import AsyncTransport, Transport

Params = ParamSpec("Params")
Item = TypeVar("Item")
Texts = Sequence[str]
Facts = Mapping[str, Any]


class Sends(Generic[Params, Result]):
    """A method of both clients that sends the call of `build`."""

    def __init__(self, build: Callable[Concatenate[Any, Params], Call[Result]], declared: Any) -> None:
        def send(client: Transport, /, *args: Params.args, **kwargs: Params.kwargs) -> Result:
            return client.send(build(client, *args, **kwargs))

        async def send_async(
            client: AsyncTransport, /, *args: Params.args, **kwargs: Params.kwargs
        ) -> Result:
            return await client.send(build(client, *args, **kwargs))

        self._build = build
        self._methods = (_described(send, declared), _described(send_async, declared))

    def call(self, *args: Params.args, **kwargs: Params.kwargs) -> Call[Result]:
        """The call, unsent."""
        return self._build(None, *args, **kwargs)

    @overload
    def __get__(self, client: Transport, owner: type) -> Callable[Params, Result]: ...
    @overload
    def __get__(
        self, client: AsyncTransport, owner: type
    ) -> Callable[Params, Coroutine[Any, Any, Result]]: ...
    @overload
    def __get__(self, client: None, owner: type) -> "Sends[Params, Result]": ...
    def __get__(self, client: object, owner: type) -> Any:
        if client is None and not issubclass(owner, Transport | AsyncTransport):
            return self
        method = self._methods[issubclass(owner, AsyncTransport)]
        return method if client is None else MethodType(method, client)


class Lists(Generic[Params, Item]):
    """A method of both clients that iterates over the list of `build`."""

    def __init__(self, build: Callable[Concatenate[Any, Params], Call[Page[Item]]], declared: Any) -> None:
        def pages(client: Any, /, *args: Params.args, **kwargs: Params.kwargs) -> Any:
            return client.pages(build(client, *args, **kwargs))

        self._method = _described(pages, declared)

    @overload
    def __get__(self, client: Transport, owner: type) -> Callable[Params, Iterator[Item]]: ...
    @overload
    def __get__(self, client: AsyncTransport, owner: type) -> Callable[Params, AsyncIterator[Item]]: ...
    @overload
    def __get__(self, client: None, owner: type) -> Callable[..., Any]: ...
    def __get__(self, client: object, owner: type) -> Callable[..., Any]:
        return self._method if client is None else MethodType(self._method, client)


def built(declared: Callable[Concatenate[Any, Params], Call[Result]]) -> Sends[Params, Result]:
    """A method that sends the call which the function builds."""
    return Sends(declared, declared)


def built_list(declared: Callable[Concatenate[Any, Params], Call[Page[Item]]]) -> Lists[Params, Item]:
    """A method that iterates over the list whose first page is the function's call."""
    return Lists(declared, declared)


@overload
def sends(
    method: str, path: str, model: None, *, once: bool = False
) -> Callable[[Callable[Concatenate[Any, Params], None]], Sends[Params, None]]: ...
@overload
def sends(
    method: str, path: str, model: type[Model], *, once: bool = False
) -> Callable[[Callable[Concatenate[Any, Params], None]], Sends[Params, Model]]: ...
def sends(method: str, path: str, model: Any, *, once: bool = False) -> Callable[..., Any]:
    """A method that sends an operation of the API, with the parameters and docstring of what it decorates.

    A parameter that `path` names is a part of it; those of a GET and a DELETE are the query, others the JSON
    body. None is left out: the server's default. `once`: with an Idempotency-Key.
    """
    parse: Callable[..., Any] = require_success if model is None else object_parser(model)

    def decorate(declared: Callable[..., None]) -> Any:
        return Sends(_builder(declared, method, path, parse, once), declared)

    return decorate


def lists(
    path: str, model: type[Model]
) -> Callable[[Callable[Concatenate[Any, Params], None]], Lists[Params, Model]]:
    """A method that iterates over a list of the API, page by page."""
    return lambda declared: Lists(_builder(declared, "GET", path, page_parser(model), False), declared)


def _builder(
    declared: Callable[..., None], method: str, path: str, parse: Callable[..., Any], once: bool
) -> Callable[..., Call[Any]]:
    parameters: Mapping[str, str] = declared.__annotations__  # as they are written
    segments = path.removeprefix("/v1/").split("/")
    in_path = {segment[1:-1] for segment in segments if segment.startswith("{")}
    has_members = len(parameters) - 1 > len(in_path)

    def build(*args: Any, **kwargs: Any) -> Call[Any]:
        arguments = inspect.signature(declared).bind(*args, **kwargs).arguments
        values = {
            name: _json_value(arguments[name], kind)
            for name, kind in parameters.items()
            if arguments.get(name) is not None
        }
        named = [str(values.pop(part[1:-1])) if part.startswith("{") else part for part in segments]
        if method in ("GET", "DELETE"):
            query = {name: _query_value(value) for name, value in values.items()}
            return Call(method, path_of(*named), parse, query=query)
        body = values if has_members else None
        return Call(method, path_of(*named), parse, body=body, idempotency_key=new_key() if once else None)

    return build


def _json_value(value: object, kind: str = "") -> object:
    """An argument as JSON. Raises TypeError for a number in place of a time, a text in place of several."""
    if kind.startswith("timedelta"):
        return seconds_or_none(cast(timedelta, value))
    if kind.startswith("Texts") and isinstance(value, str):
        parts = ", ".join(map(repr, value.split()))
        raise TypeError(f"several texts are expected here, and not one: write ({parts},)")
    match value:
        case Enum():
            return value.value
        case datetime():
            if value.tzinfo is None:
                raise ValueError(f"{value} needs a time zone")
            return value.isoformat()
        case Mapping():
            members = cast(Mapping[str, object], value)
            return {name: _json_value(member) for name, member in members.items()}
        case list() | tuple() | set() | frozenset():
            return [_json_value(member) for member in cast(Sequence[object], value)]
        case _:
            return value


def _query_value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return " ".join(cast(list[str], value)) if isinstance(value, list) else str(value)


def _described(method: Callable[..., Any], declared: Callable[..., object]) -> Callable[..., Any]:
    """The method with the name, docstring and parameters of what it was declared by, for `help` and mocks."""
    method.__name__, method.__doc__ = declared.__name__, declared.__doc__
    vars(method)["__wrapped__"] = declared
    return method
