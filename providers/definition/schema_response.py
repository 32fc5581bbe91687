"""A provider's replies: the place of the tokens, the meaning of errors, accounts."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from providers.definition.patterns import check_pattern
from providers.definition.schema_base import (
    HeaderName,
    HeaderValue,
    JsonPath,
    ParamName,
    SpecPart,
    UrlTemplate,
)


def _check_one_group(value: str) -> str:
    check_pattern(value, groups=1, anchored_end=False)
    return value


class MetadataPattern(SpecPart):
    """Metadata cut out of a field: the pattern's one capturing group."""

    path: JsonPath
    pattern: Annotated[str, AfterValidator(_check_one_group)]


class AdditionalTokens(SpecPart):
    """Tokens of further slots beside `main`, each with its own refresh token, expiry and scopes.

    At `path` is one object, whose slot is `name`, or an array of objects, whose field `key` names the slot.
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
    """A token reply (RFC 6749 section 5.1). A path that a reply lacks reads as absent."""

    strip_body_prefix: str | None = None
    access_token_path: JsonPath = "access_token"
    refresh_token_path: JsonPath | None = "refresh_token"
    bearer_token_types: tuple[str, ...] = ("bearer",)  # names for RFC 6750 tokens; case is ignored
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
    """A field that makes a reply an error, with any HTTP status.

    The field at `path` is compared as JSON. With `not_in` the rule applies when the field is
    present with another value, with `values` when it has one of these, with neither when it is present.
    """

    path: JsonPath
    not_in: tuple[Any, ...] | None = None
    values: tuple[Any, ...] | None = None
    code_path: JsonPath | None = None  # of the error's name; None: `path`

    @model_validator(mode="after")
    def _one_test(self) -> Self:
        if self.not_in is not None and self.values is not None:
            raise ValueError("has both not_in and values")
        return self


class ErrorPart(SpecPart):
    """Replies that mean success, errors that end the grant, and errors that are retried."""

    success_statuses: tuple[int, ...] = (200,)
    status_field: JsonPath | None = None  # any value but `ok_values` is an error
    ok_values: tuple[Any, ...] = ()
    error_rules: tuple[ErrorRule, ...] = ()
    terminal_error_codes: tuple[str, ...] = ()
    retryable_error_codes: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _field_and_values(self) -> Self:
        if (self.status_field is None) != (not self.ok_values):
            raise ValueError("status_field and ok_values go together")
        both = set(self.terminal_error_codes) & set(self.retryable_error_codes)
        if both:
            raise ValueError(f"terminal_error_codes has codes that are retryable as well: {sorted(both)}")
        return self


WHOLE_REPLY = "[]"  # in `choose`: the reply itself is the array


class AccountLookup(SpecPart):
    """A request after consent that finds the account or host of the grant.

    `choose` is the path of an array of which the subject chooses a member. `metadata` is then read
    from each member; `id` names the metadata that identifies a member (by default the first), and
    `label` is the path of a member's display name.
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
            raise ValueError("has id or label without choose")
        return self

    @property
    def id_field(self) -> str:
        return self.id or next(iter(self.metadata))


class ApiRequest(SpecPart):
    """The credential of a request to the provider's own API."""

    auth_header: HeaderName = "Authorization"
    auth_scheme: HeaderValue = "Bearer"
    headers: dict[HeaderName, HeaderValue] = Field(default_factory=dict)
    query: dict[ParamName, str] = Field(default_factory=dict)
