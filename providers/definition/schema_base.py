"""The base model of a definition's parts, and the types of its fields."""

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from evergrant_server.core.clock import MAX_LIFETIME
from providers.definition.patterns import check_pattern

PLACEHOLDER = re.compile(r"\{([a-z][a-z0-9_]*(?:\.[a-zA-Z0-9_-]+)?)\}")
_PATH = re.compile(r"^[A-Za-z0-9_\-:@/]+(?:\.[A-Za-z0-9_\-:@/]+)*\Z")
_PARAM = re.compile(r"^[A-Za-z0-9_.\-\[\]]{1,64}\Z")
_AUTHORITY = re.compile(r"^(?:[A-Za-z0-9.-]|\{[a-z][a-z0-9_]*\})+(?::[0-9]{1,5})?\Z")
_HEADER = re.compile(r"^[A-Za-z0-9_-]{1,64}\Z")


class SpecPart(BaseModel):
    """A frozen part of a definition. An unknown field is an error, since nothing would read it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _check_url(value: str) -> str:
    if not value.startswith("https://"):
        raise ValueError("must start with https://")
    if "{" in PLACEHOLDER.sub("", value) or "}" in PLACEHOLDER.sub("", value):
        raise ValueError("has a brace that is not a {placeholder}")
    authority = value.removeprefix("https://").split("/", 1)[0]
    plain = value.isascii() and value.isprintable() and not any(bad in value for bad in (" ", "\\"))
    if not plain or not _AUTHORITY.match(authority):
        raise ValueError("must be a plain https URL: a host in ASCII, no user name, spaces or backslashes")
    return value


def _matching(pattern: re.Pattern[str], what: str) -> AfterValidator:
    def check(value: str) -> str:
        if not pattern.match(value):
            raise ValueError(f"is not {what}")
        return value

    return AfterValidator(check)


UrlTemplate = Annotated[str, AfterValidator(_check_url)]
"""An https URL, with `{name}` where a template parameter goes."""

JsonPath = Annotated[str, _matching(_PATH, "a dotted path such as data.access_token")]
"""Names joined by dots, from the top of the reply. A number picks an element of an array."""


def _check_printable(value: str) -> str:
    if not value.isprintable():
        raise ValueError("must be one line of printable characters")
    return value


def _check_header_value(value: str) -> str:
    if not value.isascii() or not value.isprintable():
        raise ValueError("must be printable ASCII: it becomes a header")
    return value


TextLine = Annotated[str, AfterValidator(_check_printable), Field(min_length=1, max_length=600)]
"""One line of text without control characters."""

HeaderValue = Annotated[str, AfterValidator(_check_header_value), Field(max_length=1024)]

MAX_SECONDS = MAX_LIFETIME.total_seconds()

Seconds = Annotated[float, Field(gt=0, le=MAX_SECONDS)]
"""A duration of at most a century, so that adding it to a date can't overflow."""

ParamName = Annotated[str, _matching(_PARAM, "a parameter name")]
HeaderName = Annotated[str, _matching(_HEADER, "a header name")]

Params = dict[ParamName, str]
Renames = dict[ParamName, ParamName | None]
"""Standard parameter name to the provider's own. Null leaves the parameter out."""


def _check_anchored(value: str) -> str:
    check_pattern(value)
    return value


AnchoredPattern = Annotated[str, AfterValidator(_check_anchored)]
"""A regular expression for a whole text: `^…$`, without capturing groups."""


def placeholders(*texts: str | None) -> set[str]:
    """The names of the placeholders in these templates."""
    return {name for text in texts if text for name in PLACEHOLDER.findall(text)}
