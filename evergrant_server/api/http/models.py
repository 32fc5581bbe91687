"""Types that request and response bodies share. Request bodies refuse unknown members."""

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Generic, Self, TypeVar
from urllib.parse import urlsplit

from fastapi import Query
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
)

from evergrant_server.core.connections.binding import is_challenge
from evergrant_server.core.ids import is_slug
from evergrant_server.core.model import CheckedModel
from evergrant_server.core.secret import Secret
from evergrant_server.core.text import is_storable_text

_SCOPE = re.compile(r"^[\x21\x23-\x5b\x5d-\x7e]{1,256}\Z")  # scope-token, RFC 6749 section 3.3
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ]")
# what the OpenAPI document says of texts: patterns of ECMA-262, whose `$` is the end of the text
_SCOPE_PATTERN = r"^[!#-\[\]-~]{1,256}$"
_SLUG_PATTERN = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
_PRINTABLE_PATTERN = r"^\S(.*\S)?$"
_SUBJECT_PATTERN = r"^(?!\*$)\S(.*\S)?$"
_HTTP_PATTERN = r"^https?://[^@#\s]+$"
_CHALLENGE_PATTERN = "^[A-Za-z0-9_-]{43}$"
_PLAIN_HOST = re.compile(r"[a-z0-9._-]+|[0-9a-f:.]+")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")

PageLimit = Annotated[int, Query(ge=1, le=200)]
PageCursor = Annotated[str | None, Query(max_length=2000)]
# the place of an audit record, `SHARD/INDEX`
RecordPlace = Annotated[str, Query(pattern=r"^[a-z0-9][a-z0-9_.-]{0,99}/(0|[1-9][0-9]{0,17})$")]

ItemT = TypeVar("ItemT")

MAX_INTEGER = 2**31 - 1  # of an INTEGER column in PostgreSQL


def checked_slug(value: str) -> str:
    if not is_slug(value):
        raise ValueError("use lower-case letters, digits and hyphens, at most 63")
    return value


def checked_printable(value: str) -> str:
    if not value.isprintable() or value != value.strip():
        raise ValueError("use printable characters, without space at either end")
    return value


def _subject(value: str) -> str:
    if value == "*":
        raise ValueError("* is not a subject: it stands for every subject")
    return value


def checked_scope(value: str) -> str:
    if not _SCOPE.match(value):
        raise ValueError("a scope has visible ASCII characters, without quotes or backslashes")
    return value


def _return_to(value: str) -> str:
    """An absolute https URL (http on loopback only) that all browsers parse alike."""
    if "://" not in value:
        raise ValueError("must be a whole URL: begin it with https://")
    url = urlsplit(absolute_url(value))
    if "*" in url.netloc:
        raise ValueError("has a host with *, which stands for none: name each host by itself")
    if url.scheme != "https" and not (url.scheme == "http" and url.hostname in _LOOPBACK):
        raise ValueError("use https")
    return value


def _challenge(value: str) -> str:
    if not is_challenge(value):
        raise ValueError("use a SHA-256 hash in base64url without padding")
    return value


def _date_text(value: object) -> object:
    """A date as RFC 3339 writes it: pydantic also reads a number of seconds. A copy has its date already."""
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value
    if not isinstance(value, str) or not _DATE.match(value):
        raise ValueError("use a date and time with a zone, such as 2026-01-31T12:00:00Z")
    return value


def _in_utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError("is outside the years 1 to 9999 in UTC") from None


def checked_storable(value: str) -> str:
    if not is_storable_text(value):
        raise ValueError("contains NUL or an unpaired surrogate")
    return value


def _storable_secret(value: Secret) -> Secret:
    checked_storable(value.reveal())
    return value


def checked_resource(value: str) -> str:
    """An absolute URI without a fragment (RFC 8707 section 2)."""
    try:
        uri = urlsplit(value)
    except ValueError:
        raise ValueError("is not a URI") from None
    if not uri.scheme or not (uri.netloc or uri.path) or "#" in value or not value.isascii() or " " in value:
        raise ValueError("must be an absolute URI without a fragment")
    return value


def absolute_url(value: str) -> str:
    """An absolute URL that all parsers read alike, without user name and fragment."""
    try:
        url = urlsplit(value)
        host, _ = url.hostname, url.port
    except ValueError:
        raise ValueError("is not a URL") from None
    if not value.isascii() or not value.isprintable() or set(value) & set(' \\<>"'):
        raise ValueError("has a character that a URL can't have")
    if not host or "@" in url.netloc or "#" in value:
        raise ValueError("needs a host, and no user name or fragment")
    return value


def request_url(value: str) -> str:
    """An absolute https URL (http on loopback only) without a fragment.

    Its host has no percent-encoding, which some URL parsers decode and others don't.
    """
    if not _PLAIN_HOST.fullmatch(urlsplit(_return_to(value)).hostname or ""):
        raise ValueError("has a host with characters other than letters, digits, dots and hyphens")
    return value


Slug = Annotated[str, Field(json_schema_extra={"pattern": _SLUG_PATTERN}), AfterValidator(checked_slug)]
Scope = Annotated[str, Field(json_schema_extra={"pattern": _SCOPE_PATTERN}), AfterValidator(checked_scope)]
Scopes = Annotated[tuple[Scope, ...], Field(max_length=200)]
Subject = Annotated[
    str,
    Field(min_length=1, max_length=255, json_schema_extra={"pattern": _SUBJECT_PATTERN}),
    AfterValidator(checked_printable),
    AfterValidator(_subject),
]
_IS_PRINTABLE = Field(json_schema_extra={"pattern": _PRINTABLE_PATTERN})
Label = Annotated[str, Field(min_length=1, max_length=100), _IS_PRINTABLE, AfterValidator(checked_printable)]
_AS_URL: dict[str, Any] = {"format": "uri", "pattern": _HTTP_PATTERN}
ReturnTo = Annotated[str, Field(max_length=2000, json_schema_extra=_AS_URL), AfterValidator(_return_to)]
Challenge = Annotated[
    str, Field(json_schema_extra={"pattern": _CHALLENGE_PATTERN}), AfterValidator(_challenge)
]
Resource = Annotated[
    str,
    Field(min_length=1, max_length=2000, json_schema_extra={"format": "uri"}),
    AfterValidator(checked_resource),
]
Text = Annotated[str, Field(min_length=1, max_length=2000), _IS_PRINTABLE, AfterValidator(checked_printable)]

UtcDatetime = Annotated[AwareDatetime, BeforeValidator(_date_text), AfterValidator(_in_utc)]
StorableText = Annotated[str, AfterValidator(checked_storable)]
StorableSecret = Annotated[Secret, AfterValidator(_storable_secret)]


def _take_json_types(schema: Any) -> None:
    """Have a schema of pydantic-core convert no text, and no boolean, to a number."""
    if isinstance(schema, dict):
        if schema.get("type") in ("int", "float", "bool"):
            schema["strict"] = True
        for name, inner in schema.items():
            if name not in ("serialization", "metadata"):
                _take_json_types(inner)
    elif isinstance(schema, list):
        for inner in schema:
            _take_json_types(inner)


class Body(CheckedModel):
    """A request's body. Its numbers and booleans are JSON's own: `"60"` is no number, and `true` no 1."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> Any:
        schema = handler(source)
        _take_json_types(schema)
        return schema


class View(CheckedModel):
    model_config = ConfigDict(frozen=True)

    @classmethod
    def of(cls, shown: BaseModel, **more: Any) -> Self:
        """The members of `shown` that the view has, and `more`."""
        return cls(**{name: getattr(shown, name) for name in cls.model_fields if hasattr(shown, name)} | more)


class Page(View, Generic[ItemT]):
    """One page of a list; `next_cursor` is null on the last page."""

    items: list[ItemT]
    next_cursor: str | None = None
