"""The refresh and the end of a provider's grants: rotation, lifetimes, revocation."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from providers.definition.schema_base import (
    MAX_SECONDS,
    HeaderName,
    HeaderValue,
    ParamName,
    Params,
    Renames,
    Seconds,
    SpecPart,
    UrlTemplate,
)


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
    refresh_token_lifetime_s: Seconds | None = None
    refresh_token_idle_s: Seconds | None = None
    access_token_lifetime_s: Seconds | None = None  # informational; the reply decides
    assumed_lifetime_s: Seconds | None = None  # used when a reply has no expiry
    min_refresh_age_s: Seconds | None = None  # a younger access token is not refreshed
    refresh_buffer_s: Seconds | None = None  # an earlier refresh before the expiry is refused


class RevocationSpec(SpecPart):
    """A revocation request that differs from RFC 7009.

    `url` and `params` may hold `{client_id}`; `url` may also hold `{token}`.
    """

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
    hint_param: ParamName | None = "token_type_hint"
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
