"""What callers may send. Every body is strict: an unknown member is refused, not ignored."""

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field

from evergrant_server.core.access import Action, RegistrationMethod
from evergrant_server.core.clock import MAX_LIFETIME
from evergrant_server.core.connections.flow import Flow
from evergrant_server.core.connections.refresh_rules import Rotation
from evergrant_server.core.ids import is_id, is_slug
from evergrant_server.core.secret import Secret
from evergrant_server.core.text import is_storable_text
from providers.requests.dpop import is_nonce

_SCOPE = re.compile(r"^[\x21\x23-\x5b\x5d-\x7e]{1,256}\Z")  # scope-token, RFC 6749 section 3.3
_PLAIN_HOST = re.compile(r"[a-z0-9._-]+|[0-9a-f:.]+")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")

MAX_INTEGER = 2**31 - 1  # what a column of numbers holds in PostgreSQL


def _slug(value: str) -> str:
    if not is_slug(value):
        raise ValueError("use lower-case letters, digits and hyphens, at most 63")
    return value


def _printable(value: str) -> str:
    if not value.isprintable() or value != value.strip():
        raise ValueError("use printable characters, without space at either end")
    return value


def _subject(value: str) -> str:
    if value == "*":
        raise ValueError("* is not a subject: it means all of them")
    return value


def _scope(value: str) -> str:
    if not _SCOPE.match(value):
        raise ValueError("a scope has visible ASCII characters, without quotes or backslashes")
    return value


def _return_to(value: str) -> str:
    """An absolute https URL (http on loopback alone), with nothing in it that browsers read differently."""
    try:
        url = urlsplit(value)
        host, _ = url.hostname, url.port
    except ValueError:
        raise ValueError("is not a URL") from None
    if not value.isascii() or not value.isprintable() or set(value) & set(' \\<>"'):
        raise ValueError("has a character that a URL can't have")
    if not host or "@" in url.netloc or url.fragment or "#" in value:
        raise ValueError("needs a host, and no user name or fragment")
    if url.scheme != "https" and not (url.scheme == "http" and host in _LOOPBACK):
        raise ValueError("use https")
    return value


def _in_utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError("is before the first year of UTC, or after its last") from None


def _storable(value: str) -> str:
    if not is_storable_text(value):
        raise ValueError("holds NUL, or half a character")
    return value


def _storable_secret(value: Secret) -> Secret:
    _storable(value.reveal())
    return value


def _connection_id(value: str) -> str:
    if not is_id(value, "con"):
        raise ValueError("is not a connection's id")
    return value


def _resource(value: str) -> str:
    """An absolute URI without a fragment (RFC 8707 section 2)."""
    try:
        uri = urlsplit(value)
    except ValueError:
        raise ValueError("is not a URI") from None
    if not uri.scheme or not (uri.netloc or uri.path) or "#" in value or not value.isascii() or " " in value:
        raise ValueError("must be an absolute URI without a fragment")
    return value


def request_url(value: str) -> str:
    """An absolute https URL (http on loopback alone); a fragment is never sent, so it has none.

    Its host is written plainly: one with escapes in it is another host to one reader, and not to the next.
    """
    if not _PLAIN_HOST.fullmatch(urlsplit(_return_to(value)).hostname or ""):
        raise ValueError("has a host that is not written plainly")
    return value


def _nonce(value: str) -> str:
    if not is_nonce(value):
        raise ValueError("is not a nonce (RFC 9449 section 8.1)")
    return value


Slug = Annotated[str, AfterValidator(_slug)]
Scope = Annotated[str, AfterValidator(_scope)]
Scopes = Annotated[tuple[Scope, ...], Field(max_length=200)]
Subject = Annotated[
    str, Field(min_length=1, max_length=255), AfterValidator(_printable), AfterValidator(_subject)
]
Label = Annotated[str, Field(min_length=1, max_length=100), AfterValidator(_printable)]
ReturnTo = Annotated[str, Field(max_length=2000), AfterValidator(_return_to)]
Resource = Annotated[str, Field(min_length=1, max_length=2000), AfterValidator(_resource)]
Text = Annotated[str, Field(min_length=1, max_length=2000), AfterValidator(_printable)]
MinTtl = Annotated[float, Field(ge=0, le=31_536_000, allow_inf_nan=False)]

UtcDatetime = Annotated[AwareDatetime, AfterValidator(_in_utc)]
StorableText = Annotated[str, AfterValidator(_storable)]
StorableSecret = Annotated[Secret, AfterValidator(_storable_secret)]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


AccountChoice = Annotated[str, Field(min_length=1, max_length=1024), AfterValidator(_printable)]


class CredentialBody(Body):
    """A credential that doesn't change by itself: an API key, or a user name and a password (RFC 7617)."""

    api_key: StorableSecret | None = None
    username: Annotated[str, Field(min_length=1, max_length=255), AfterValidator(_printable)] | None = None
    password: StorableSecret | None = None


SlotScopes = Annotated[
    dict[Annotated[str, Field(max_length=63)], Annotated[Scopes, Field(min_length=1)]], Field(max_length=5)
]


class ConnectionBody(Body):
    """Start a connection. `return_to` must be in the app's list, character by character.

    `flow` is how it comes by its tokens; without it, as the provider's definition says first.
    `resources` (RFC 8707) and `audience` say what the tokens are for, where a flow has room for it.
    `token_exchange` wants a `source` (a connection whose token is exchanged) or a `subject_token`;
    `api_key` and `basic` want the `credential`. `choice` is the account to take, where the provider is
    asked which accounts the grant reaches and there are several. `slot_scopes` are the scopes of further
    tokens that the same consent brings, by the chain's name (at Slack `user`): each becomes a connection
    of its own, with that name as its label.
    """

    integration: Slug
    subject: Subject
    label: Label = "default"
    scopes: Scopes | None = None
    flow: Flow | None = None
    resources: Annotated[tuple[Resource, ...], Field(max_length=5)] = ()
    audience: Text | None = None
    source: Annotated[str, AfterValidator(_connection_id)] | None = None
    subject_token: StorableSecret | None = None
    subject_token_type: Annotated[str, Field(max_length=200), AfterValidator(_resource)] | None = None
    credential: CredentialBody | None = None
    choice: AccountChoice | None = None
    slot_scopes: SlotScopes | None = None
    return_to: ReturnTo | None = None


class ChooseBody(Body):
    """The `id` of one of the connection's `choices`."""

    choice: AccountChoice


class ReauthorizeBody(Body):
    """Ask the subject again, for the same scopes unless others are given."""

    scopes: Scopes | None = None
    slot_scopes: SlotScopes | None = None
    return_to: ReturnTo | None = None


class RefreshBody(Body):
    """Have the grant made newer than `generation` (default: the current one).

    With the reason `unauthorized` it is a report: the provider's API answered 401 to that
    generation's token, which should be good. `seen_generation` is another name for `generation`.
    """

    generation: int | None = Field(default=None, ge=0, le=MAX_INTEGER)
    seen_generation: int | None = Field(default=None, ge=0, le=MAX_INTEGER)
    reason: Literal["unauthorized"] | None = None

    @property
    def seen_by_caller(self) -> int | None:
        return self.generation if self.generation is not None else self.seen_generation


class RevokeBody(Body):
    reason: Text = "asked for"


class TokenBody(Body):
    """`min_ttl` is seconds. `scopes` must all have been granted."""

    min_ttl: MinTtl | None = None
    scopes: Scopes | None = None


class LeaseBody(TokenBody):
    integration: Slug
    subject: Subject
    label: Label = "default"


class ProofBody(Body):
    """Which request a proof is for (RFC 9449 section 4.2): method and URL, and the server's nonce if it
    has asked for one."""

    htm: Annotated[str, Field(pattern=r"^[A-Z]{1,20}\z")]
    htu: Annotated[str, Field(max_length=8000), AfterValidator(request_url)]
    nonce: Annotated[str, AfterValidator(_nonce)] | None = None


class RefreshRulesBody(Body):
    """Overrides how the provider is known to treat refresh tokens. Seconds."""

    rotation: Rotation | None = None
    grace_s: float | None = Field(default=None, ge=0, le=86_400, allow_inf_nan=False)
    refresh_token_idle_s: float | None = Field(
        default=None, gt=0, le=MAX_LIFETIME.total_seconds(), allow_inf_nan=False
    )

    @property
    def overrides(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude_none=True)


class ClientKeyBody(Body):
    """A private key of ours, as PEM or as a JWK; `id` is the `kid` the provider knows it by."""

    private: StorableSecret
    id: Annotated[str, Field(min_length=1, max_length=255), AfterValidator(_printable)] | None = None


class ClientCertificateBody(Body):
    """A certificate of ours and its private key, as PEM; what it was signed with may follow it."""

    certificate: Annotated[StorableText, Field(max_length=50_000)]
    private: StorableSecret


class IntegrationBody(Body):
    """Our OAuth client at a provider. Secret and key are written, never read; None keeps them.

    Instead of a client id, `registration` has a worker register us at the issuer: `dynamic`
    (RFC 7591, with `initial_access_token` if it demands one), or `metadata_document`. `dpop` has tokens
    bound to a key of ours, or not (RFC 9449); without it, as the provider's definition says.
    """

    provider: Slug
    client_id: Text | None = None
    registration: RegistrationMethod | None = None
    initial_access_token: StorableSecret | None = None
    client_secret: StorableSecret | None = None
    issuer: Annotated[str, Field(max_length=2000), AfterValidator(_printable)] | None = None
    params: dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=253)]] = {}
    client_auth: (
        Literal[
            "client_secret_basic",
            "client_secret_post",
            "client_secret_jwt",
            "private_key_jwt",
            "tls_client_auth",
            "self_signed_tls_client_auth",
            "none",
        ]
        | None
    ) = None
    client_key: ClientKeyBody | None = None
    client_certificate: ClientCertificateBody | None = None
    default_scopes: Scopes = ()
    scope_ceiling: Scopes | None = None
    dpop: bool | None = None
    refresh: RefreshRulesBody = RefreshRulesBody()


class RotateSecretBody(Body):
    """Either a new `client_secret`, or `roll_back` to the one before it. `overlap_s` is seconds."""

    client_secret: StorableSecret | None = None
    overlap_s: Annotated[float, Field(ge=0, le=31_536_000, allow_inf_nan=False)] = 86_400
    roll_back: bool = False


class AppBody(Body):
    disabled: bool = False
    return_to: Annotated[tuple[ReturnTo, ...], Field(max_length=50)] = ()


class PermitBody(Body):
    """`integration` is a name or `*`; `subjects` are exact, or `*` for every one."""

    integration: Annotated[str, AfterValidator(lambda it: it if it == "*" else _slug(it))]
    subjects: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=255), AfterValidator(_printable)], ...],
        Field(min_length=1, max_length=1000),
    ] = ("*",)
    scope_ceiling: Scopes | None = None
    actions: Annotated[tuple[Action, ...], Field(min_length=1)]
