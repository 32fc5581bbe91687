"""What a provider answers: where a reply keeps its tokens, and what its errors mean."""

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from providers.definition.patterns import BadPattern, check_pattern
from providers.definition.schema_base import (
    HeaderName,
    HeaderValue,
    JsonPath,
    ParamName,
    SpecPart,
    UrlTemplate,
)


class MetadataPattern(SpecPart):
    """A fact cut out of a field: the pattern's first group."""

    path: JsonPath
    pattern: str

    @field_validator("pattern")
    @classmethod
    def _one_group(cls, value: str) -> str:
        try:
            check_pattern(value, groups=1, anchored_end=False)
        except BadPattern as error:
            raise ValueError(str(error)) from None
        return value


class AdditionalTokens(SpecPart):
    """Further chains of tokens beside the main one, each with a refresh token, expiry and scopes of its own.

    At `path` is one object, whose chain is called `name`, or an array of them, each called what its
    field `key` says.
    """

    path: JsonPath
    key: str | None = None
    name: str | None = Field(default=None, pattern=r"^[a-z][a-z0-9_.-]{0,62}$")

    @model_validator(mode="after")
    def _one_or_many(self) -> Self:
        if (self.key is None) == (self.name is None):
            raise ValueError("has one of key and name")
        return self


class ResponseSpec(SpecPart):
    """A token reply (RFC 6749 section 5.1). Paths that a reply lacks are simply absent."""

    format: Literal["sniff", "json", "form"] = "sniff"  # what it is, whatever Content-Type says
    strip_body_prefix: str | None = None
    access_token_path: JsonPath = "access_token"
    alternate_access_token_path: JsonPath | None = None
    refresh_token_path: JsonPath | None = "refresh_token"
    id_token_path: JsonPath | None = "id_token"
    id_token: Literal["keep", "verify"] = "keep"
    token_type_path: JsonPath | None = "token_type"
    bearer_token_types: tuple[str, ...] = ("bearer",)  # names for RFC 6750, case ignored
    expires_in_path: JsonPath | None = "expires_in"
    expires_in_unit: Literal["s", "ms"] = "s"
    expires_at_path: JsonPath | None = None
    expires_at_format: Literal["iso8601", "epoch_s", "epoch_ms"] = "iso8601"
    zero_means_no_expiry: bool = False
    refresh_expires_in_path: JsonPath | None = None
    refresh_expires_at_path: JsonPath | None = None
    refresh_expires_at_format: Literal["iso8601", "epoch_s", "epoch_ms"] = "iso8601"
    scope_path: JsonPath | None = "scope"
    scope_format: Literal["string", "array"] = "string"
    scope_separator: str | None = Field(default=None, min_length=1, max_length=1)  # None: as requested
    metadata_paths: tuple[JsonPath, ...] = ()
    metadata_patterns: dict[str, MetadataPattern] = Field(default_factory=dict)
    additional_tokens: AdditionalTokens | None = None


class ErrorRule(SpecPart):
    """When a reply is an error whatever its HTTP status says.

    The field at `path` is compared as JSON: a rule with `not_in` fires when the field is
    there and has another value, one with `values` when it has one of these, one with neither
    when the field is there at all.
    """

    path: JsonPath
    not_in: tuple[Any, ...] | None = None
    values: tuple[Any, ...] | None = None
    code_path: JsonPath | None = None  # where the error's name is; None: at `path`

    @model_validator(mode="after")
    def _one_test(self) -> Self:
        if self.not_in is not None and self.values is not None:
            raise ValueError("has both not_in and values")
        return self


class ErrorPart(SpecPart):
    """Which answers mean success, which end the grant, and which only need time."""

    success_statuses: tuple[int, ...] = (200,)
    status_field: JsonPath | None = None  # with ok_values: anything else in it is an error
    ok_values: tuple[Any, ...] = ()
    error_rules: tuple[ErrorRule, ...] = ()
    terminal_error_codes: tuple[str, ...] = ()
    retryable_error_codes: tuple[str, ...] = ()
    rate_limit_reset_header: HeaderName | None = None  # read where a reply has no Retry-After
    rate_limit_reset_format: Literal["seconds", "epoch_s", "epoch_ms", "iso8601"] = "epoch_s"

    @model_validator(mode="after")
    def _field_and_values(self) -> Self:
        if (self.status_field is None) != (not self.ok_values):
            raise ValueError("status_field and ok_values go together")
        both = set(self.terminal_error_codes) & set(self.retryable_error_codes)
        if both:
            raise ValueError(f"terminal_error_codes has codes that are retryable as well: {sorted(both)}")
        return self


WHOLE_REPLY = "[]"  # as `choose`: the reply itself is the array


class AccountLookup(SpecPart):
    """A question asked after consent: which account, which host.

    `choose` is where the array is among whose members somebody chooses; `metadata` is then read from
    each member, `id` names the fact that tells them apart (the first one, if nothing is said), and
    `label` is where a member has its name for people.
    """

    method: Literal["GET"] = "GET"
    url: UrlTemplate
    auth_scheme: HeaderValue = "Bearer"
    metadata: dict[str, JsonPath] = Field(min_length=1)
    choose: JsonPath | Literal["[]"] | None = None
    id: str | None = None
    label: JsonPath | None = None

    @model_validator(mode="after")
    def _check_choice(self) -> Self:
        if self.id is not None and self.id not in self.metadata:
            raise ValueError(f"id names {self.id}, which metadata doesn't have")
        if self.choose is None and (self.id is not None or self.label is not None):
            raise ValueError("id and label speak of a choice, and there is none")
        return self

    @property
    def id_field(self) -> str:
        return self.id or next(iter(self.metadata))


class ApiRequest(SpecPart):
    """How the provider's own API wants its credential."""

    auth_header: HeaderName = "Authorization"
    auth_scheme: HeaderValue = "Bearer"
    headers: dict[HeaderName, HeaderValue] = Field(default_factory=dict)
    query: dict[ParamName, str] = Field(default_factory=dict)
