"""The authorization request, the callback and the token request of a provider."""

from enum import StrEnum
from typing import Literal

from pydantic import Field

from evergrant_server.core.single_use.pacing import Share
from providers.definition.schema_base import (
    AnchoredPattern,
    HeaderName,
    HeaderValue,
    ParamName,
    Params,
    Renames,
    Seconds,
    SpecPart,
    UrlTemplate,
)


class ClientAuth(StrEnum):
    """Client authentication (RFC 6749 section 2.3, OpenID Connect Core section 9)."""

    BASIC = "client_secret_basic"
    POST = "client_secret_post"
    NONE = "none"
    PRIVATE_KEY_JWT = "private_key_jwt"
    SECRET_JWT = "client_secret_jwt"
    TLS = "tls_client_auth"
    SELF_SIGNED_TLS = "self_signed_tls_client_auth"


MUTUAL_TLS = frozenset({ClientAuth.TLS, ClientAuth.SELF_SIGNED_TLS})  # RFC 8705 section 2


class Pkce(StrEnum):
    """RFC 7636. The challenge is always S256; the member says how the provider treats it."""

    REQUIRED = "required"
    S256 = "S256"
    SUPPORTED = "supported"
    OFF = "off"  # the provider refuses its parameters


class BodyFormat(StrEnum):
    FORM = "form"
    JSON = "json"
    QUERY = "query"  # a POST with parameters in the URL and an empty body


class AuthorizationPart(SpecPart):
    """The request that takes the subject's browser to the provider (RFC 6749 section 4.1.1)."""

    authorization_endpoint: UrlTemplate | None = None
    pushed_authorization_request_endpoint: UrlTemplate | None = None  # RFC 9126
    require_pushed_authorization_requests: bool = False  # section 5
    authorization_params: Params = Field(default_factory=dict)
    authorization_params_from_request: tuple[ParamName, ...] = ()  # an app may set these
    authorization_param_names: Renames = Field(default_factory=dict)
    authorization_client_id_param: ParamName | None = None
    authorization_param_order: tuple[ParamName, ...] = ()
    authorization_url_fragment: str | None = Field(None, pattern=r"^[A-Za-z0-9_]+$")
    authorization_url_fragment_route: str | None = Field(None, pattern=r"^/[A-Za-z0-9_/\-]*$")
    redirect_uri_override: str | None = None  # a template, sent instead of the callback URL
    scopes_supported: bool = True
    default_scopes: tuple[str, ...] = ()
    offline_scope: str | None = None  # yields a refresh token; always requested, where offered
    # another name -> the scope that it is, as replies and consents may have either
    scope_aliases: dict[str, str] = Field(default_factory=dict)
    scope_separator: str = Field(" ", min_length=1, max_length=1)
    scope_raw_encoding: bool = False  # the separator is sent unescaped
    scope_param_name: ParamName = "scope"
    scope_params: dict[str, ParamName] = Field(default_factory=dict)  # token slot -> its scope parameter
    id_token_nonce: bool = True  # false: its id tokens repeat no nonce, so none is sent
    pkce: Pkce = Pkce.SUPPORTED
    pkce_challenge_encoding: Literal["base64url", "hex"] = "base64url"


class CallbackSignature(SpecPart):
    """A signature over the query of the callback."""

    kind: Literal["hmac_sha256_query"]
    param: ParamName
    secret: Literal["client_secret"]


class CallbackPart(SpecPart):
    """The redirect back to Evergrant (RFC 6749 section 4.1.2)."""

    # install: it may begin at the provider too, whose callback then has no state, and is led to our own flow
    flow: Literal["redirect", "install"] = "redirect"
    install_start_url: UrlTemplate | None = None  # the app's page that begins our own flow
    callback_code_param: ParamName = "code"
    callback_error_params: tuple[ParamName, ...] = ("error",)
    callback_missing_code_is_denial: bool = False
    callback_metadata_params: tuple[ParamName, ...] = ()  # kept as metadata, sent in no request
    callback_patterns: dict[ParamName, AnchoredPattern] = Field(default_factory=dict)  # of that metadata
    # templates that the parameter must equal
    callback_expected: dict[ParamName, str] = Field(default_factory=dict)
    callback_verify: CallbackSignature | None = None
    scope_from_callback: bool = False
    callback_scope_param: ParamName = "scope"
    decode_code: bool = False
    code_lifetime_s: Seconds | None = None  # None: not documented; RFC 6749 recommends at most ten minutes


class SecretGenerator(SpecPart):
    """A client secret that is a signed JWT, generated when it is needed."""

    kind: Literal["jwt"]
    alg: Literal["ES256", "RS256"]
    claims: Params = Field(default_factory=dict)
    headers: Params = Field(default_factory=dict)
    lifetime_s: int = Field(gt=0)


class TokenLimit(SpecPart):
    """How many token requests a provider's documentation allows in a window, and to whom.

    Workers keep refreshes that no caller waits for below a limit of the client. A limit of each user
    needs no pace: the refreshes of a connection follow one another.
    """

    requests: int = Field(ge=1, le=10_000_000)
    window_s: Seconds
    per: Literal["client", "user"]  # `user`: of each user, or of each refresh token

    @property
    def share(self) -> Share | None:
        """What of it refreshes ahead may use."""
        return Share.of(self.requests, self.window_s) if self.per == "client" else None


class TokenRequestPart(SpecPart):
    """The request to the token endpoint (RFC 6749 sections 4.1.3 and 6)."""

    token_endpoint: UrlTemplate | None = None
    token_limit: TokenLimit | None = None
    token_request_method: Literal["POST", "GET"] = "POST"
    token_request_format: BodyFormat = BodyFormat.FORM
    token_request_headers: dict[HeaderName, HeaderValue] = Field(default_factory=dict)
    required_headers: dict[HeaderName, HeaderValue] = Field(default_factory=dict)  # of every request
    token_request_param_names: Renames = Field(default_factory=dict)
    token_params: Params = Field(default_factory=dict)
    token_query_params: Params = Field(default_factory=dict)
    client_auth: ClientAuth = ClientAuth.BASIC
    refresh_client_auth: ClientAuth | None = None
    dpop: bool = False  # tokens are bound to the connection's key (RFC 9449)
    client_assertion_audience: Literal["issuer", "token_endpoint"] = "issuer"  # RFC 7523 section 3
    basic_auth_template: str | None = None  # for example "{client_secret}:"
    client_id_param: ParamName = "client_id"
    client_secret_param: ParamName = "client_secret"
    client_secret_header: HeaderName | None = None
    client_secret_generator: SecretGenerator | None = None
    client_registration: Literal["manual", "per_host"] = "manual"
    registration_endpoint: UrlTemplate | None = None  # with per_host


class ClientCredentialsGrant(SpecPart):
    """RFC 6749 section 4.4, with the provider's own grant type and parameters."""

    grant_type: str = "client_credentials"
    params: Params = Field(default_factory=dict)


class JwtBearerGrant(SpecPart):
    """RFC 7523 section 2.1: a signed assertion is the grant."""

    alg: str | None = None  # None: the algorithm of the key
    # `{client_id}`, `{subject}`, `{scopes}`, `{token_endpoint}`, `{issuer}` and template parameters;
    # a claim that comes out empty is left out
    claims: Params = Field(
        default_factory=lambda: {"iss": "{client_id}", "sub": "{client_id}", "aud": "{token_endpoint}"}
    )
    claims_when: dict[ParamName, Params] = Field(default_factory=dict)  # when this parameter is `yes`
    lifetime_s: int = Field(default=3600, gt=0)


class TokenExchangeGrant(SpecPart):
    """RFC 8693."""

    params: Params = Field(default_factory=dict)


class SignatureMethod(StrEnum):
    """RFC 5849 section 3.4. HMAC-SHA256 is a later addition of some servers."""

    HMAC_SHA1 = "HMAC-SHA1"
    HMAC_SHA256 = "HMAC-SHA256"
    RSA_SHA1 = "RSA-SHA1"
    PLAINTEXT = "PLAINTEXT"


class OAuth1Spec(SpecPart):
    """OAuth 1.0a (RFC 5849). An endpoint that is absent here is the definition's own."""

    authorization_endpoint: UrlTemplate | None = None
    token_endpoint: UrlTemplate | None = None
    method: Literal["POST", "GET"] = "POST"  # of both token requests
    signature_method: SignatureMethod = SignatureMethod.HMAC_SHA1
    realm: str | None = Field(default=None, pattern=r"^[\x20\x21\x23-\x5b\x5d-\x7e]{1,200}$")
    scope_in: Literal["authorization", "none"] = "none"  # RFC 5849 has no scopes


class OtherGrantsPart(SpecPart):
    """Grants other than the authorization code."""

    client_credentials: ClientCredentialsGrant | None = None
    jwt_bearer: JwtBearerGrant | None = None
    token_exchange: TokenExchangeGrant | None = None
    device_authorization_endpoint: UrlTemplate | None = None
    request_token_endpoint: UrlTemplate | None = None  # RFC 5849 section 2.1
    oauth1: OAuth1Spec | None = None
