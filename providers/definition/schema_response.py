"""A provider's replies and the life of its grants: tokens, accounts, refresh, revocation."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.connections.replaced import RevocationReach
from providers.definition.patterns import matches
from providers.definition.schema_base import (
    MAX_SECONDS,
    AnchoredPattern,
    HeaderName,
    HeaderValue,
    JsonPath,
    OneGroupPattern,
    ParamName,
    Params,
    Renames,
    Seconds,
    SpecPart,
    UrlTemplate,
)
from providers.definition.schema_errors import FieldTest

DownScoping = Literal["refresh", "unsupported", "unknown"]


class MetadataPattern(SpecPart):
    """Metadata cut out of a field: the pattern's one capturing group."""

    path: JsonPath
    pattern: OneGroupPattern


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
    unwrap_path: JsonPath | None = None  # where some replies have the whole object, such as data.0
    access_token_path: JsonPath = "access_token"
    refresh_token_path: JsonPath | None = "refresh_token"
    bearer_token_types: tuple[str, ...] = ("bearer",)  # names for RFC 6750 tokens; case is ignored
    expires_in_path: JsonPath | None = "expires_in"
    expires_in_unit: Literal["s", "ms"] = "s"
    expires_at_path: JsonPath | None = None  # a date without a time zone is read as UTC
    expires_at_format: Literal["iso8601", "epoch_s", "epoch_ms"] = "iso8601"
    zero_means_no_expiry: bool = False
    refresh_expires_in_path: JsonPath | None = None
    refresh_expires_at_path: JsonPath | None = None
    refresh_expires_at_format: Literal["iso8601", "epoch_s", "epoch_ms"] = "iso8601"
    scope_path: JsonPath | None = "scope"  # of a text or a list
    subject_scope_path: JsonPath | None = None  # where some replies list those of one person's token
    scope_separator: str | None = Field(default=None, min_length=1, max_length=1)  # None: as requested
    metadata_paths: tuple[JsonPath, ...] = ()
    metadata_patterns: dict[str, MetadataPattern] = Field(default_factory=dict)
    additional_tokens: AdditionalTokens | None = None


WHOLE_REPLY = "[]"  # in `choose`: the reply itself is the array


class AccountLookup(SpecPart):
    """A request after consent that finds the account or host of the grant.

    `choose` is the path of an array of which the subject chooses a member, among those for which
    `choose_where` holds. `metadata` is then read from each member; `id` names the metadata that
    identifies a member (by default the first), and `label` is the path of a member's display name.
    """

    method: Literal["GET"] = "GET"
    url: UrlTemplate
    auth_scheme: HeaderValue = "Bearer"
    metadata: dict[str, JsonPath] = Field(min_length=1)
    choose: JsonPath | Literal["[]"] | None = None
    choose_where: FieldTest | None = None
    id: str | None = None
    label: JsonPath | None = None

    @model_validator(mode="after")
    def _check_choice(self) -> Self:
        if self.id is not None and self.id not in self.metadata:
            raise ValueError(f"id names {self.id}, which metadata doesn't have")
        if self.choose is None and any(
            choice is not None for choice in (self.choose_where, self.id, self.label)
        ):
            raise ValueError("has choose_where, id or label without choose")
        return self

    @property
    def id_field(self) -> str:
        return self.id or next(iter(self.metadata))


MethodOverride = Annotated[str, Field(pattern=r"^[!-~]{1,64}$")]


class ApiRequest(SpecPart):
    """The credential of a request to the provider's own API."""

    auth_header: HeaderName = "Authorization"
    auth_scheme: HeaderValue = "Bearer"
    headers: dict[HeaderName, HeaderValue] = Field(default_factory=dict)
    query: dict[ParamName, str] = Field(default_factory=dict)
    encoded_slashes: bool = False  # a segment of its paths may hold %2F
    # names of query parameters, form fields or headers by which it takes another method than the request's,
    # beside those that are usual (`policy.overrides`)
    method_overrides: tuple[MethodOverride, ...] = ()


class ApiFromReply(SpecPart):
    """The base URL of an API whose host each token reply names: `metadata` has the host, or a URL of it."""

    metadata: str  # a name of response.metadata_paths
    pattern: AnchoredPattern  # the vendor's hosts
    path: str = Field("", pattern=r"^(?:/[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*)*$")

    def base_url(self, value: object) -> str | None:
        """The base URL with this value of the reply, or None for one that isn't the vendor's."""
        host = str(value).lower().removeprefix("https://").removesuffix("/")
        return f"https://{host}{self.path}" if matches(self.pattern, host) else None


class RefreshSpec(SpecPart):
    """How the provider issues new access tokens. `refresh_token` is RFC 6749 section 6.

    With `access_token_exchange` there is no refresh token: the request sends the current access
    token. The other fields belong to that kind.
    """

    kind: Literal["refresh_token", "access_token_exchange"] = "refresh_token"
    grant_type: str | None = None
    method: Literal["POST", "GET"] = "POST"
    url: UrlTemplate | None = None  # None: the token endpoint
    token_param: ParamName = "access_token"
    client: Literal["client_auth", "secret", "none"] = "client_auth"  # `secret`: without the client id
    params: Params = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        exchange = self.kind == "access_token_exchange"
        if exchange and self.grant_type is None:
            raise ValueError("an access_token_exchange needs its grant_type")
        if not exchange and self != type(self).model_construct():
            raise ValueError("url, method, grant_type and the like belong to kind: access_token_exchange")
        return self


class RefreshPart(SpecPart):
    """RFC 6749 section 6, and providers' additions to it. Lifetimes are in seconds."""

    refresh_supported: bool = True
    refresh_endpoint: UrlTemplate | None = None
    refresh_params: Params = Field(default_factory=dict)
    refresh_param_names: Renames = Field(default_factory=dict)
    refresh_params_include: tuple[Literal["redirect_uri"], ...] = ()
    refresh_token_in: Literal["body", "header"] = "body"
    refresh: RefreshSpec = RefreshSpec()
    post_token_exchange: RefreshSpec | None = None  # exchanges the first token for a long-lived one, once
    refresh_rotates: bool | None = None  # None: unknown
    rotation_grace_s: Annotated[float, Field(ge=0, le=MAX_SECONDS)] | Literal["unlimited"] | None = None
    on_reuse: Literal["family_revoked"] | None = None
    refresh_token_lifetime_s: Seconds | None = None  # since it was issued
    refresh_token_idle_s: Seconds | None = None  # since it was used
    access_token_lifetime_s: Seconds | None = None  # for the provider's page; the reply decides
    assumed_lifetime_s: Seconds | None = None  # used when a reply has no expiry
    min_refresh_age_s: Seconds | None = None  # a younger access token is not refreshed
    refresh_buffer_s: Seconds | None = None  # an earlier refresh before the expiry is refused
    # False: refused refreshes are limited or punished, so none is made to compare its answer (ADR 0093)
    control_request: bool = True
    # `refresh`: a refresh may request fewer scopes, and access tokens from before it stay valid
    down_scoping: DownScoping = "unknown"

    def narrows_tokens(self, flow: Flow) -> bool:
        """True when a refresh may bring a narrower access token beside the one that there is."""
        spends_refresh_token = flow.may_refresh and not flow.is_client_grant
        return (
            self.down_scoping == "refresh"
            and self.refresh_supported
            and self.refresh.kind == "refresh_token"
            and self.post_token_exchange is None
            and spends_refresh_token
        )


class RevocationSpec(SpecPart):
    """What a revocation ends, and a request that differs from RFC 7009.

    `url` and `params` may hold `{client_id}`; `url` may also hold `{token}`.
    """

    reach: RevocationReach = RevocationReach.UNKNOWN  # what ends with a token: its own grant, or all of them

    method: Literal["POST", "DELETE", "GET"] = "POST"
    url: UrlTemplate | None = None  # None: the revocation endpoint
    format: Literal["form", "json", "query", "none"] = "form"
    auth: Literal["client", "client_secret_basic", "client_secret_post", "bearer", "header", "none"] = (
        "client"
    )
    auth_header: HeaderName = "Authorization"
    auth_template: HeaderValue | None = None  # for `header`: "Client {client_secret}"
    token: Literal["refresh_token", "access_token"] = "refresh_token"  # which token ends the grant
    token_param: ParamName | None = "token"
    hint_param: ParamName | None = "token_type_hint"  # null: none is sent
    params: Params = Field(default_factory=dict)
    param_names: Renames = Field(default_factory=dict)  # of the client's parameters: {client_id: clientId}
    headers: dict[HeaderName, HeaderValue] = Field(default_factory=dict)
    success_statuses: tuple[int, ...] = (200, 204)
    gone_error_codes: tuple[str, ...] = ()  # the token is unknown or ended already


class RevocationPart(SpecPart):
    """Revocation and introspection. Without an endpoint or a template, the provider has no revocation."""

    revocation_endpoint: UrlTemplate | None = None
    revocation: RevocationSpec | None = None
    introspection_endpoint: UrlTemplate | None = None

    @property
    def revocation_reach(self) -> RevocationReach:
        return RevocationReach.UNKNOWN if self.revocation is None else self.revocation.reach

    @property
    def own_revocation(self) -> RevocationSpec | None:
        """The definition's own request; None: as RFC 7009 says."""
        rule = self.revocation
        return None if rule == RevocationSpec(reach=self.revocation_reach) else rule
