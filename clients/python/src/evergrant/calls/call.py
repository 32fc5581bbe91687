"""`Call`: one request of the API and the parser of its response. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Generic, TypeVar
from urllib.parse import quote
from uuid import uuid4

from evergrant.responses import Page, Response

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Call(Generic[Result]):
    """One request and its parser. Each call may be sent again: it only reads, is idempotent, or has a key."""

    method: str
    path: str
    parse: Callable[[Response], Result]
    query: Mapping[str, str] | None = None
    body: Mapping[str, object] | None = None
    idempotency_key: str | None = None


def post(path: str, parse: Callable[[Response], Result], body: Mapping[str, object] | None) -> Call[Result]:
    """A POST with an Idempotency-Key, made once for all attempts: that makes a retry safe."""
    return Call("POST", path, parse, body=body, idempotency_key=str(uuid4()))


def next_page(call: Call[Page[Result]], page: Page[Result]) -> Call[Page[Result]] | None:
    """The call for the page after `page`, None after the last."""
    if page.next_cursor is None:
        return None
    return replace(call, query={**(call.query or {}), "cursor": page.next_cursor})


def path_of(*segments: str) -> str:
    """A path below /v1; each segment is escaped, so that an id can't leave its place."""
    return "/".join(("/v1", *(quote(segment, safe="") for segment in segments)))


def without_none(**members: object) -> Mapping[str, object]:
    return {name: value for name, value in members.items() if value is not None}


def query_of(**members: str | None) -> Mapping[str, str]:
    return {name: value for name, value in members.items() if value is not None}


def list_or_none(values: tuple[str, ...] | None) -> list[str] | None:
    return None if values is None else list(values)


def seconds_or_none(time: timedelta | None) -> float | None:
    return None if time is None else time.total_seconds()
