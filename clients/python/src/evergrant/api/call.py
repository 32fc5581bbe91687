"""`Call`: one request of the API, and what its response is: an object, a page or the error to raise. Pure."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Generic, TypeVar
from urllib.parse import quote
from uuid import uuid4

from httpx2 import Response

from evergrant.api.fields import Fields, Model, words
from evergrant.api.models import Incident
from evergrant.errors import (
    KINDS,
    BadRequest,
    ClientMisconfigured,
    Denied,
    EvergrantError,
    PlatformUnavailable,
    ProtocolError,
    ProviderUnavailable,
    Unreachable,
)

Result = TypeVar("Result")
Item = TypeVar("Item")
SERVER_MAJOR = 0  # the server's major version, which this client's follows
# A newer server may name a kind that this client doesn't know: the status decides then.
_BY_STATUS: Mapping[int, type[EvergrantError]] = {
    403: Denied,
    424: ClientMisconfigured,
    429: ProviderUnavailable,
}
_GATEWAY = frozenset({429, 502, 503, 504})
_STANDARD_MEMBERS = frozenset(
    {"type", "title", "status", "detail", "instance", "code", "kind", "retry_after", "repair"}
)


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """One page of a list; `next_cursor` is None on the last."""

    items: tuple[Item, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class LinesPage:
    """A page of JSON Lines, as it came. `next` is where they go on; None: that was all."""

    content: bytes
    next: str | None


@dataclass(frozen=True, slots=True)
class Call(Generic[Result]):
    """One request and its parser. Each call may be sent again: it only reads, is idempotent, or has a key.

    `form`: of a token request, to which the client adds what proves the app; its resources are paths.
    """

    method: str
    path: str
    parse: Callable[[Response], Result]
    query: Mapping[str, str] | None = None
    body: Mapping[str, object] | None = None
    idempotency_key: str | None = None
    form: Mapping[str, str | list[str]] | None = None
    accept: str = "application/json"


def post(path: str, parse: Callable[[Response], Result], body: Mapping[str, object] | None) -> Call[Result]:
    """A POST with an Idempotency-Key, made once for all attempts: that makes a retry safe."""
    return Call("POST", path, parse, body=body, idempotency_key=new_key())


def new_key() -> str:
    return str(uuid4())


def next_page(call: Call[Page[Result]], page: Page[Result]) -> Call[Page[Result]] | None:
    """The call for the page after `page`, None after the last."""
    if page.next_cursor is None:
        return None
    return replace(call, query={**(call.query or {}), "cursor": page.next_cursor})


def path_of(*segments: str) -> str:
    """A path below /v1; each segment is escaped, so that an id can't leave its place."""
    return "/".join(("/v1", *(quote(segment, safe="") for segment in segments)))


def without_none(**members: Item | None) -> Mapping[str, Item]:
    return {name: value for name, value in members.items() if value is not None}


def list_or_none(values: Iterable[str] | None) -> list[str] | None:
    """Raises TypeError for one text, whose letters would be the values."""
    if isinstance(values, str):
        parts = ", ".join(map(repr, values.split()))
        raise TypeError(f"several texts are expected here, and not one: write ({parts},)")
    return None if values is None else list(values)


def seconds_or_none(time: timedelta | float | None) -> float | None:
    """Raises TypeError for a number, which has no unit."""
    if isinstance(time, int | float):
        raise TypeError(f"a time is a timedelta, and no number: write timedelta(seconds={time})")
    return None if time is None else time.total_seconds()


def bytes_of(response: Response) -> bytes:
    return response.content


def parse_audit_page(response: Response) -> LinesPage:
    """The page with its last line's cursor. A page that was cut on its way has no last line."""
    *_, last = response.content.splitlines() or [b""]
    end = Fields.of(Fields.of_json(last, "page's last line").members.get("page"), "page's end")
    return LinesPage(response.content, end.text_or_none("next"))


def parse_report_page(response: Response) -> Incident | LinesPage:
    """A page of an incident's report, or how far the incident is."""
    if response.status_code != 200:
        return object_parser(Incident)(response)
    return LinesPage(response.content, response.headers.get("x-evergrant-next"))


def object_parser(model: type[Model]) -> Callable[[Response], Model]:
    """A parser of a response that is one JSON object."""
    return lambda response: parse_body(response, words(model)).build(model)


def page_parser(model: type[Model]) -> Callable[[Response], Page[Model]]:
    """A parser of a response that is one page of a list."""

    def parse(response: Response) -> Page[Model]:
        body = parse_body(response, f"{words(model)} list")
        items = tuple(Fields.of(item, words(model)).build(model) for item in body.array("items"))
        return Page(items, body.text_or_none("next_cursor"))

    return parse


def parse_body(response: Response, name: str) -> Fields:
    """The JSON object of a 2xx response; errors call it `name`. Raises EvergrantError."""
    require_success(response)
    return Fields.of_json(response.content, name)


def require_success(response: Response) -> None:
    """Accept any 2xx response. Raises the EvergrantError that another status stands for."""
    if not 200 <= response.status_code < 300:
        raise error_from(response)


def check_version(response: Response) -> None:
    """Raises ProtocolError for a server of another major version, with any status."""
    version = response.headers.get("evergrant-version", "").strip()
    major = version.partition(".")[0]
    if major.isascii() and major.isdigit() and int(major) != SERVER_MAJOR:
        raise ProtocolError(
            f"the server is Evergrant {version[:20]}, this client speaks to version {SERVER_MAJOR}",
            code="version_mismatch",
            repair=f"Install the client of the server's version: pip install 'evergrant=={int(major)}.*'",
            status=response.status_code,
        )


def error_from(response: Response) -> EvergrantError:
    """The error that a response outside 2xx stands for (RFC 9457 section 3)."""
    status, problem = response.status_code, parse_problem(response)
    retry_after = _retry_after(response, problem)
    if problem is None or not isinstance(problem.get("code"), str):
        if status in _GATEWAY:
            return Unreachable(f"a gateway answered HTTP {status}", status=status, retry_after=retry_after)
        return ProtocolError(f"HTTP {status} without a problem document", status=status)
    by_status = _BY_STATUS.get(status) or (PlatformUnavailable if status >= 500 else BadRequest)
    return (KINDS.get(str(problem.get("kind"))) or by_status)(
        _text(problem, "detail") or _text(problem, "title") or "",
        code=_text(problem, "code"),
        repair=_text(problem, "repair"),
        status=status,
        retry_after=retry_after,
        context={name: value for name, value in problem.items() if name not in _STANDARD_MEMBERS},
    )


def moved_address(response: Response) -> str | None:
    """Where the tenant lives, as the cell says that it has left (RFC 9110 section 15.5.20), or None."""
    if response.status_code != 421:
        return None
    problem = parse_problem(response) or {}
    return _text(problem, "moved_to") if problem.get("code") == "tenant_moved" else None


def parse_problem(response: Response) -> Mapping[str, object] | None:
    """The problem document (RFC 9457), or None when the body isn't one."""
    if response.headers.get("content-type", "").partition(";")[0].strip() != "application/problem+json":
        return None
    try:
        return Fields.of_json(response.content, "problem document").members
    except ProtocolError:
        return None


def _retry_after(response: Response, problem: Mapping[str, object] | None) -> float | None:
    """Seconds to wait: the problem document's `retry_after`, else the header (RFC 9110 section 10.2.3)."""
    seconds = (problem or {}).get("retry_after")
    if isinstance(seconds, int | float) and not isinstance(seconds, bool) and seconds >= 0:
        return float(seconds)
    header = response.headers.get("retry-after", "").strip()
    if header.isascii() and header.isdigit():
        return float(header)
    at = http_date(header)
    return None if at is None else max(0.0, (at - datetime.now(UTC)).total_seconds())


def http_date(text: str) -> datetime | None:
    """RFC 9110 section 5.6.7; None for any other text."""
    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return None
    return at.replace(tzinfo=at.tzinfo or UTC)


def _text(members: Mapping[str, object], name: str) -> str | None:
    value = members.get(name)
    return value if isinstance(value, str) else None
