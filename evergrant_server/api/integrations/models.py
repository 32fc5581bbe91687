"""Request and response bodies of `/v1/integrations`."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from evergrant_server.api.http.models import (
    Body,
    Scopes,
    Slug,
    StorableSecret,
    StorableText,
    Text,
    View,
    checked_printable,
)
from evergrant_server.core.clock import MAX_LIFETIME
from evergrant_server.core.connections.account import OnReconnect
from evergrant_server.core.connections.binding import Binding
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.connections.login import LoginClaim, LoginRule
from evergrant_server.core.errors import ErrorCode, Repairer
from evergrant_server.core.integrations import (
    AfterGrantOver,
    IntegrationState,
    RefreshRules,
    RegistrationMethod,
    Rotation,
)


class RefreshRulesBody(Body):
    """Overrides of the provider's refresh rules, in seconds."""

    rotation: Rotation | None = None
    grace_s: float | None = Field(default=None, ge=0, le=86_400, allow_inf_nan=False)
    refresh_token_idle_s: float | None = Field(
        default=None, gt=0, le=MAX_LIFETIME.total_seconds(), allow_inf_nan=False
    )


class ClientKeyBody(Body):
    """The client's private key as PEM or JWK; `id` is its `kid` at the provider."""

    private: StorableSecret
    id: Annotated[str, Field(min_length=1, max_length=255), AfterValidator(checked_printable)] | None = None


class ClientCertificateBody(Body):
    """The client's certificate, which its chain may follow, and its private key, as PEM."""

    certificate: Annotated[StorableText, Field(max_length=50_000)]
    private: StorableSecret


class LoginBody(Body):
    """Where an integration's subjects log in: `integration` is the client at your OpenID Connect issuer.

    The subject's name has to be the `claim` of who logged in: `sub`, or `email`, verified and of one of
    `domains`.
    """

    integration: Slug
    claim: LoginClaim = LoginClaim.SUB
    domains: Annotated[tuple[Text, ...], Field(max_length=100)] = ()


class IntegrationBody(Body):
    """An OAuth client at a provider. Secret and key are write-only; None keeps the stored ones.

    Instead of a client id, `registration` has a worker register the client at the issuer: `dynamic`
    (RFC 7591, with `initial_access_token` if the issuer needs one), `metadata_document`, or `automatic`, the
    one that the issuer offers. With neither,
    the integration only gets the redirect URI to register a client with, until its client id is put. `dpop`
    turns DPoP (RFC 9449) on or off; the default is the provider's definition. `binding` says how it is
    checked that the person who consents is the subject. With `on_reconnect` `same` a connection's later
    consents have to be given with the account of its first one, where the provider names it; `any` lets
    them change it. `login` belongs to the binding `oidc`. `identity_provider` is the integration of an
    identity provider that grants access here on its subjects' behalf (ID-JAG): no connection needs a consent.
    With `after_grant_over` `lease` the access token of a grant that is found dead is leased until its date,
    unless the provider is known to refuse it; with `refuse` it is never leased again.
    """

    provider: Slug
    client_id: Text | None = None
    registration: RegistrationMethod | None = None
    initial_access_token: StorableSecret | None = None
    client_secret: StorableSecret | None = None
    issuer: Annotated[str, Field(max_length=2000), AfterValidator(checked_printable)] | None = None
    params: dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=253)]] = Field(
        default={}
    )
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
    binding: Binding = Binding.APP
    login: LoginBody | None = None
    on_reconnect: OnReconnect = OnReconnect.SAME
    after_grant_over: AfterGrantOver = AfterGrantOver.LEASE
    identity_provider: Slug | None = None
    refresh: RefreshRulesBody = RefreshRulesBody()


class RotateSecretBody(Body):
    """Either a new `client_secret`, a new `client_key` to sign with, or `roll_back` to the previous one.
    `overlap_s` is seconds."""

    client_secret: StorableSecret | None = None
    client_key: ClientKeyBody | None = None
    overlap_s: Annotated[float, Field(ge=0, le=31_536_000, allow_inf_nan=False)] = 86_400
    roll_back: bool = False


class FailedExchangeView(View):
    """The newest exchange of the integration's connections with the provider, which failed at `at`.

    `unanswered` counts the refreshes in a row without an answer. `circuit_open`: they are so many that each
    worker that met them sends one probe at a time until the provider answers
    (EVERGRANT_CIRCUIT_THRESHOLD).
    """

    failure: ErrorCode
    repairer: Repairer
    at: datetime
    connection_id: str
    unanswered: int
    circuit_open: bool


class IntegrationView(View):
    """Never the client secret or key: `has_client_secret` and `has_client_key` say whether one is stored.

    `authorization_server` is the issuer, also where an MCP server names it; `resource` is what that server
    calls itself, and what all tokens are for. `protected_resources` are those that the issuer's metadata
    lists: if there is one, tokens of new connections are for it unless their app asks for others.
    `supported_scopes` are those that the metadata lists, of the resource or else of the issuer.

    `previous_secret_until` is the end of a rotation's overlap, in which workers also try the previous
    secret. `secret_refused_at` is set when the provider refuses the new secret and accepts the previous.
    Until `refreshes_postponed_until` the connections' newest refreshes use what the provider's token endpoint
    allows, but for a part: only refreshes with a waiting caller are sent. `failed_exchange` is read by GET
    alone, from the tenant's newest 1000 audit records; null: none of them says that the newest one failed.
    """

    id: str
    name: str
    provider: str
    client_id: str
    has_client_secret: bool
    has_client_key: bool
    issuer: str | None
    authorization_server: str | None
    resource: str | None
    protected_resources: tuple[str, ...]
    supported_scopes: tuple[str, ...] = ()
    params: dict[str, str]
    client_auth: str | None
    default_scopes: tuple[str, ...]
    scope_ceiling: tuple[str, ...] | None
    binding: Binding
    login: LoginRule | None
    on_reconnect: OnReconnect
    after_grant_over: AfterGrantOver
    identity_provider: str | None
    refresh: RefreshRules
    dpop: bool | None
    state: IntegrationState
    problem: str | None
    previous_secret_until: datetime | None
    secret_refused_at: datetime | None
    registration: RegistrationMethod | None
    registration_url: str | None
    client_secret_expires_at: datetime | None
    client_certificate_expires_at: datetime | None
    metadata_read_at: datetime | None
    refreshes_postponed_until: datetime | None
    redirect_uri: str
    failed_exchange: FailedExchangeView | None = None
    created_at: datetime
    changed_at: datetime
    revision: int


class RefusalWordsView(View):
    """What the provider said of failures with one cause, cleaned of secrets.

    `connections` counts those among the cause's newest failures that it said this of; `connection_id` is the
    newest of them, which failed `at`. `unauthenticated`: the words came by a browser.
    """

    status: int | None = None
    error: str | None = None
    description: str | None = None
    unauthenticated: bool = False
    connections: int
    connection_id: str
    at: datetime


class FailureCauseView(View):
    """Connections of one state that fail with one code, and whose turn it is.

    `since` is the earliest moment that is known: a row keeps when its failures began from the third one on.
    `next_step` and `next_at` are those of `connection_id`, which failed last; null while Temporal doesn't
    answer. `is_sole`: it is the integration's only connection with a grant, and the provider refuses it by an
    error that no rule knows, so no other connection shows whose fault it is; `decided_by` is when its subject
    is asked at the latest, if the refusals go on.
    """

    state: LifecycleState
    code: ErrorCode
    repairer: Repairer
    meaning: str
    repair: str
    connections: int
    since: datetime
    failed_at: datetime
    connection_id: str
    next_step: str | None
    next_at: datetime | None
    is_sole: bool
    decided_by: datetime | None
    provider_said: tuple[RefusalWordsView, ...]


class IntegrationHealthView(View):
    """An integration's live connections by state, and its failures by cause, those for an admin first.

    `active` counts the failing ones too. `complete` is false where the integration has more than 20000 live
    connections: then every number but `failing`, and the causes of connections that aren't active, are of
    that many.
    """

    name: str
    provider: str
    state: IntegrationState
    problem: str | None
    active: int
    failing: int
    needs_reauth: int
    pending_consent: int
    revoking: int
    complete: bool
    causes: tuple[FailureCauseView, ...]
