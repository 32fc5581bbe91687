"""The base model of a definition's parts, the types of its fields, and template parameters.

Template parameters are the parts of a provider's URLs that an integration or a callback fills in. They
decide which host gets a client secret, so each has a closed list or an anchored pattern.
"""

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from evergrant_server.core.clock import MAX_LIFETIME
from evergrant_server.core.model import CheckedModel
from providers.definition.patterns import check_pattern, matches

PLACEHOLDER = re.compile(r"\{([a-z][a-z0-9_]*(?:\.[a-zA-Z0-9_-]+)?)\}")
_PATH = re.compile(r"^[A-Za-z0-9_\-:@/]+(?:\.[A-Za-z0-9_\-:@/]+)*\Z")
_PARAM = re.compile(r"^[A-Za-z0-9_.\-\[\]]{1,64}\Z")
_AUTHORITY = re.compile(r"^(?:[A-Za-z0-9.-]|\{[a-z][a-z0-9_]*\})+(?::[0-9]{1,5})?\Z")
_HEADER = re.compile(r"^[A-Za-z0-9_-]{1,64}\Z")


class SpecPart(CheckedModel):
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


def _matching(pattern: re.Pattern[str], problem: str) -> AfterValidator:
    def check(value: str) -> str:
        if not pattern.match(value):
            raise ValueError(f"is not {problem}")
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


def _check_one_group(value: str) -> str:
    check_pattern(value, groups=1, anchored_end=False)
    return value


OneGroupPattern = Annotated[str, AfterValidator(_check_one_group)]
"""A regular expression that begins with `^` and has one capturing group, which is what is read."""


def placeholders(*texts: str | None) -> set[str]:
    """The names of the placeholders in these templates."""
    return {name for text in texts if text for name in PLACEHOLDER.findall(text)}


_SHORTER = "must be the part before the first dot alone"
_HOST = re.compile(r"(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]{2,63}(?::[0-9]{1,5})?")


class TemplateParam(SpecPart):
    """One `{name}`: exactly one of `pattern`, `enum`, or `kind: arbitrary_host`.

    `normalise` is applied before the check; `host_of_origin` makes `https://host/` a host. A value
    from a callback is untrusted: it is checked before any use, may not name an arbitrary host, and
    takes precedence over the integration's.
    """

    pattern: AnchoredPattern | None = None
    enum: tuple[str, ...] | None = None
    kind: Literal["text", "arbitrary_host"] = "text"
    default: str | None = None
    optional: bool = False  # without a value, the request's parameters that hold it are left out
    normalise: tuple[Literal["lower", "underscore_to_hyphen", "host_of_origin"], ...] = ()
    source: Literal["integration", "callback", "post_auth_lookup"] = "integration"
    callback_param: ParamName | None = None  # its name in the callback, if it is another
    description: str = ""

    @model_validator(mode="after")
    def _check_rule(self) -> Self:
        rules = [self.pattern is not None, self.enum is not None, self.kind == "arbitrary_host"]
        if sum(rules) != 1:
            raise ValueError("needs exactly one of pattern, enum, kind: arbitrary_host")
        if self.default is not None and self.problem(self.default):
            raise ValueError("its default doesn't meet its own rule")
        if self.optional and (self.default is not None or self.source != "integration"):
            raise ValueError("is optional, and has a default or comes later")
        if self.source != "integration" and self.kind == "arbitrary_host":
            raise ValueError("may not name an arbitrary host, since the callback is untrusted")
        if self.callback_param is not None and self.source != "callback":
            raise ValueError("has a callback_param, and its source is not the callback")
        return self

    def normalised(self, value: str) -> str:
        """The value as it goes into the URL."""
        if "host_of_origin" in self.normalise and value.startswith("https://"):
            value = value.removeprefix("https://").removesuffix("/")
        if "lower" in self.normalise or self.kind == "arbitrary_host":
            value = value.lower()
        return value.replace("_", "-") if "underscore_to_hyphen" in self.normalise else value

    def allows(self, char: str) -> bool:
        """Whether the pattern names this character literally."""
        return self.pattern is not None and char in self.pattern

    def problem(self, value: str) -> str | None:
        """Why a normalised value may not go into the URL, or None."""
        if "://" in value and "://" not in (self.pattern or ""):
            return "must stand alone: without https:// and without what follows the host"
        if not value or len(value) > 253 or not value.isascii() or not value.isprintable():
            return "must be 1 to 253 printable ASCII characters"
        if any(bad in value for bad in "\\?#@%{}") or any(c in value and not self.allows(c) for c in "/ "):
            return "must not hold \\ ? # @ % { }, nor a / or a space that its pattern doesn't name"
        if self.enum is not None:
            return None if value in self.enum else f"must be one of {', '.join(self.enum)}"
        if self.pattern is not None:
            first = value.partition(".")[0]
            shorter = first != value and matches(self.pattern, first)
            return (
                None
                if matches(self.pattern, value)
                else _SHORTER
                if shorter
                else f"must match {self.pattern}{f': {self.description}' if self.description else ''}"
            )
        return None if _HOST.fullmatch(value) else "must be a host name"
