"""Template parameters: the parts of a provider's URLs that an integration or a callback fills in.

They decide which host gets a client secret, so each has a closed list or an anchored pattern.
"""

import re
from typing import Literal, Self

from pydantic import model_validator

from providers.definition.patterns import matches
from providers.definition.schema_base import AnchoredPattern, ParamName, SpecPart

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
        if not value or len(value) > 253 or not value.isascii() or not value.isprintable():
            return "must be 1 to 253 printable ASCII characters"
        if any(bad in value for bad in "\\?#@%{}") or any(c in value and not self.allows(c) for c in "/ "):
            return "must not hold \\ ? # @ % { }, nor a / or a space that its pattern doesn't name"
        if self.enum is not None:
            return None if value in self.enum else f"must be one of {', '.join(self.enum)}"
        if self.pattern is not None:
            return None if matches(self.pattern, value) else f"must match {self.pattern}"
        return None if _HOST.fullmatch(value) else "must be a host name"
