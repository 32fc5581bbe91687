"""The flow by which a connection gets its tokens, and what follows from it.

The lifecycle is the same in every flow. Flows differ in what replaces the subject's consent, and
in what a new access token is made from.
"""

from enum import StrEnum

from evergrant_server.core.model import FrozenModel


class Flow(StrEnum):
    """Names as in a definition's `auth_modes`. A column, and part of histories: add, never rename."""

    AUTHORIZATION_CODE = "authorization_code"  # RFC 6749 section 4.1
    CLIENT_CREDENTIALS = "client_credentials"  # RFC 6749 section 4.4
    JWT_BEARER = "jwt_bearer"  # RFC 7523 section 2.1: service accounts
    DEVICE_CODE = "device_code"  # RFC 8628
    TOKEN_EXCHANGE = "token_exchange"  # RFC 8693
    ID_JAG = "id_jag"  # draft-ietf-oauth-identity-assertion-authz-grant: the identity provider consents
    OAUTH1 = "oauth1"  # RFC 5849
    API_KEY = "api_key"
    BASIC = "basic"  # RFC 7617
    IMPLICIT = "implicit"  # RFC 6749 section 4.2, where an operator allows it

    @property
    def is_client_grant(self) -> bool:
        """True for flows in which our own credentials get a token without the subject; they aren't spent."""
        return self in (Flow.CLIENT_CREDENTIALS, Flow.JWT_BEARER, Flow.TOKEN_EXCHANGE, Flow.ID_JAG)

    @property
    def is_static(self) -> bool:
        """The app supplies the credential, which is valid until the app supplies another."""
        return self in (Flow.API_KEY, Flow.BASIC)

    @property
    def uses_browser(self) -> bool:
        """The subject's browser carries a code to the callback, or the token itself."""
        return self in (Flow.AUTHORIZATION_CODE, Flow.OAUTH1, Flow.IMPLICIT)

    @property
    def may_refresh(self) -> bool:
        """Its first grant may hold what the next one is made from, as the provider's definition says."""
        return self in (Flow.AUTHORIZATION_CODE, Flow.DEVICE_CODE)

    @property
    def is_bearer(self) -> bool:
        """Its token is leased and sent as it is; otherwise the worker signs each request with it."""
        return self is not Flow.OAUTH1

    @property
    def may_be_revoked(self) -> bool:
        """Its tokens are the provider's to revoke (RFC 7009): not the app's credential, nor our own grant."""
        return self.is_bearer and not self.is_static and not self.is_client_grant


class TokenTarget(FrozenModel):
    """What a connection's tokens are for, passed on to the provider as requested.

    `resources` are absolute URIs (RFC 8707 section 2); `audience` is the parameter that some
    servers had before it.
    """

    resources: tuple[str, ...] = ()
    audience: str | None = None
    subject_token_type: str | None = None  # of an imported token that is exchanged (RFC 8693 section 3)

    def __bool__(self) -> bool:
        return bool(self.resources or self.audience)
