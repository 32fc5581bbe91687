"""Integrations: our OAuth clients at providers, their endpoints, pinned hosts, and how tokens age. Pure."""

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple

from pydantic import Field

from evergrant_server.core.connections.account import OnReconnect
from evergrant_server.core.connections.binding import Binding
from evergrant_server.core.connections.flow import Flow, TokenTarget
from evergrant_server.core.connections.login import LoginRule
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import IntegrationId, TenantRow
from evergrant_server.core.model import FrozenModel


class Rotation(StrEnum):
    """What a provider does with a refresh token when it is used."""

    NONE = "none"  # it stays valid
    GRACE = "grace"  # a new one is issued; the old one is valid for `grace_s` more seconds
    STRICT = "strict"  # a second use is refused, and may revoke the whole token family
    UNKNOWN = "unknown"  # not known: treated as strict


class RefreshRules(FrozenModel):
    """How an integration's tokens age. Seconds; None means the provider has no such limit."""

    rotation: Rotation = Rotation.UNKNOWN
    grace_s: float = 0
    refresh_token_idle_s: float | None = None
    margin_s: float | None = None  # refreshes this long before the expiry, and is refused any earlier
    min_age_s: float | None = None  # a token younger than this is not refreshed

    @property
    def resend_is_safe_for(self) -> timedelta | None:
        """How long after a send of unknown outcome the same token may be sent again; None: never."""
        if self.rotation is Rotation.NONE:
            return timedelta.max
        if self.rotation is Rotation.GRACE and self.grace_s > 0:
            return timedelta(seconds=self.grace_s)
        return None


class AfterGrantOver(StrEnum):
    """What becomes of an access token that is valid by its date when its grant is found dead. A column: add,
    never rename."""

    LEASE = "lease"  # it is leased on, unless the provider is known to refuse it
    REFUSE = "refuse"  # it is never leased again


class Endpoints(FrozenModel):
    """Where an integration's provider is reached: from its definition, or discovered and pinned."""

    issuer: str | None = None
    authorization_endpoint: str | None = None  # None: the provider has no consent in a browser
    token_endpoint: str
    refresh_endpoint: str | None = None
    revocation_endpoint: str | None = None
    introspection_endpoint: str | None = None
    device_authorization_endpoint: str | None = None  # RFC 8628 section 3.1
    iss_in_callback: bool = False  # authorization_response_iss_parameter_supported (RFC 9207)
    token_auth_methods: tuple[str, ...] = ()  # token_endpoint_auth_methods_supported, when discovered
    revocation_auth_methods: tuple[str, ...] = ()  # revocation_endpoint_auth_methods_supported
    registration_endpoint: str | None = None  # RFC 7591 section 3
    pushed_authorization_request_endpoint: str | None = None  # RFC 9126 section 5
    pushed_requests_required: bool = False  # require_pushed_authorization_requests
    dpop_algorithms: tuple[str, ...] = ()  # dpop_signing_alg_values_supported (RFC 9449 section 5.1)
    offline_access: bool = False  # a scope of scopes_supported (OpenID Connect Core section 11)
    takes_metadata_documents: bool = False  # client_id_metadata_document_supported
    takes_id_jags: bool | None = None  # by authorization_grant_profiles_supported; None: it lists none
    jwks_uri: str | None = None  # the keys that sign id tokens, where it may be fetched
    userinfo_endpoint: str | None = None  # OpenID Connect Core 1.0 section 5.3, likewise
    resource: str | None = None  # the protected resource whose metadata names the issuer (RFC 9728)
    resource_scopes: tuple[str, ...] = ()  # which it demands, else its scopes_supported
    scopes: tuple[str, ...] = ()  # scopes_supported of the issuer's metadata
    protected_resources: tuple[str, ...] = ()  # that the issuer's metadata lists (RFC 9728 section 4)
    # where a client goes that presents a certificate (RFC 8705 section 5)
    mtls_aliases: dict[str, str] = Field(default_factory=dict)

    def for_mutual_tls(self) -> "Endpoints":
        """The endpoints of a client that presents a certificate."""
        aliases: dict[str, Any] = self.mtls_aliases
        return self.__replace__(**aliases)


NO_CLIENT = (
    "It has no OAuth client yet: register one at the provider with this redirect URI, then put its client id."
)


class IntegrationState(StrEnum):
    DISCOVERING = "discovering"  # waits for the issuer's metadata
    READY = "ready"
    FAILED = "failed"  # `problem` says why


class RegistrationMethod(StrEnum):
    """How Evergrant gets a client id when the admin gives none."""

    DYNAMIC = "dynamic"  # RFC 7591: the server makes one
    METADATA_DOCUMENT = "metadata_document"  # it is the URL of a document about us, which the server reads
    AUTOMATIC = "automatic"  # a document where the server reads them and can reach it, else dynamic


class Integration(TenantRow):
    """Our OAuth client at a provider, for one tenant. The client secrets stay in the store."""

    id: IntegrationId
    name: str
    provider: str
    client_id: str
    issuer: str | None = None
    params: dict[str, str] = Field(default_factory=dict)  # template parameters of the provider's URLs
    client_auth: str | None = None  # overrides the provider's own
    default_scopes: tuple[str, ...] = ()
    scope_ceiling: tuple[str, ...] | None = None  # None: no ceiling of its own
    binding: Binding = Binding.APP  # of new consents
    login: LoginRule | None = None  # of the binding `oidc`
    on_reconnect: OnReconnect = OnReconnect.SAME
    after_grant_over: AfterGrantOver = AfterGrantOver.LEASE
    identity_provider: str | None = None  # the integration whose issuer grants access here, by ID-JAG
    refresh: RefreshRules = RefreshRules()
    refresh_overrides: dict[str, Any] | None = None  # the admin's part of it; None: of before it was kept
    state: IntegrationState = IntegrationState.READY
    problem: str | None = None
    endpoints: Endpoints | None = None
    previous_secret_until: datetime | None = None  # the secret before this one is tried as well, until then
    registration: RegistrationMethod | None = None
    registration_sent_at: datetime | None = None  # the intent: an initial token is not sent twice
    registration_url: str | None = None  # where the registration is managed (RFC 7592 section 3)
    client_secret_expires_at: datetime | None = None
    client_certificate_expires_at: datetime | None = None  # None: there is no certificate
    metadata_read_at: datetime | None = None  # when what was discovered was last compared
    dpop: bool | None = None  # are tokens bound to a key (RFC 9449)? None: as the provider's definition says
    secret_refused_at: datetime | None = None  # the provider takes the previous secret, and not this one
    created_at: datetime
    changed_at: datetime

    def with_provider_rules(self, known: RefreshRules) -> "Integration":
        """With the refresh rules of its provider's current definition, and the admin's over them."""
        if self.refresh_overrides is None:
            return self
        rules = RefreshRules.model_validate({**known.model_dump(), **self.refresh_overrides})
        return self.__replace__(refresh=rules)

    def previous_secret_is_usable(self, now: datetime) -> bool:
        """True in the overlap of a rotation, and after it while the new secret is the refused one."""
        until = self.previous_secret_until
        return until is not None and (now < until or self.secret_refused_at is not None)

    @property
    def server(self) -> tuple[str, str | None, dict[str, str]]:
        """Which authorization server its client is one of: provider, issuer and template parameters. A
        consent to one client takes the place of a consent to another client of the same server."""
        return self.provider, self.issuer, self.params

    @property
    def authorization_server(self) -> str | None:
        """The issuer: as the admin has named it, or as a protected resource's metadata names it."""
        return self.issuer or (self.endpoints.issuer if self.endpoints is not None else None)

    @property
    def resource(self) -> str | None:
        """The protected resource that all its tokens are for, as the resource spells it."""
        return self.endpoints.resource if self.endpoints is not None else None

    @property
    def protected_resources(self) -> tuple[str, ...]:
        """The resources that the issuer's metadata lists."""
        return self.endpoints.protected_resources if self.endpoints is not None else ()

    @property
    def supported_scopes(self) -> tuple[str, ...]:
        """The scopes that the resource, or else the issuer, lists in its metadata."""
        return (self.endpoints.resource_scopes or self.endpoints.scopes) if self.endpoints is not None else ()

    @property
    def scopes_by_default(self) -> tuple[str, ...]:
        """The scopes of a consent that names none: the admin's, else those that the resource demands, up to
        the ceiling."""
        demanded = self.endpoints.resource_scopes if self.endpoints is not None else ()
        ceiling = demanded if self.scope_ceiling is None else self.scope_ceiling
        return self.default_scopes or tuple(scope for scope in demanded if scope in ceiling)

    def target_by_default(self, asked: TokenTarget, flow: Flow) -> TokenTarget:
        """What the tokens of a new connection are for: what its app asks for, else the one resource that the
        issuer's metadata lists.

        Of several the app has to choose: a token for all of them would open each with the others' tokens
        (RFC 8707 section 3), and some servers take one resource alone.
        """
        chosen = asked or self.resource is not None or not flow.is_bearer or flow.is_static
        if chosen or len(self.protected_resources) != 1:
            return asked
        return asked.__replace__(resources=self.protected_resources)

    def token_target(self, asked: TokenTarget) -> TokenTarget:
        """What a new connection's tokens are for: the protected resource alone, where there is one.

        Raises Failure INVALID_REQUEST (field `resources`).
        """
        if self.resource is None:
            return asked
        if asked.resources not in ((), (self.resource,)):
            why = f"Tokens of {self.name} are for {self.resource} alone: leave resources out."
            raise Failure(ErrorCode.INVALID_REQUEST, why, field="resources")
        return asked.__replace__(resources=(self.resource,))

    @property
    def lacks_client(self) -> bool:
        """True while it has a redirect URI, and no OAuth client is registered with it yet."""
        return not self.client_id and self.registration is None

    @property
    def login_problem(self) -> str | None:
        """Why no subject can log in at its issuer, and the repair; None when one can."""
        endpoints = self.endpoints
        if self.issuer is None:
            return "it has no issuer: put it with the provider generic and the issuer's URL"
        if self.state is not IntegrationState.READY or endpoints is None:
            return self.problem or "its issuer's metadata has not been read yet: is a worker running?"
        if endpoints.authorization_endpoint is None or endpoints.jwks_uri is None:
            name = "authorization_endpoint" if endpoints.jwks_uri else "jwks_uri that workers may fetch"
            return f"its issuer's metadata names no {name}; it is read again daily"
        if endpoints.pushed_requests_required:
            return "its issuer demands pushed requests (RFC 9126), which a login doesn't use: turn that off"
        return None


def require_login(
    rule: LoginRule | None, integration: Integration | None, people: str = "Subjects"
) -> Integration:
    """The integration at whose issuer the rule's subjects log in. Raises Failure CLIENT_REJECTED."""
    if rule is None:
        why = "The integration doesn't say where its subjects log in: put it with login."
        raise Failure(ErrorCode.CLIENT_REJECTED, why)
    problem = "there is no integration of this name: put it, or name another one in login"
    if integration is not None:
        problem = integration.login_problem
    if integration is None or problem is not None:
        why = f"{people} can't log in at the integration {rule.integration}: {problem}."
        raise Failure(ErrorCode.CLIENT_REJECTED, why, login=rule.integration)
    return integration


def require_pinned_login(
    rule: LoginRule | None, integration: Integration | None, people: str = "Subjects"
) -> Integration:
    """As `require_login`, at the issuer with which the login was put. Raises Failure CLIENT_REJECTED with the
    repair."""
    checked = require_login(rule, integration, people)
    if rule is None or checked.issuer != rule.issuer:
        name = checked.name
        why = f"{people} can't log in: the issuer of the integration {name} isn't the one that the login was "
        why += "put with. If it is the right one, put the login again."
        raise Failure(ErrorCode.CLIENT_REJECTED, why, login=name)
    return checked


class PinnedHosts(NamedTuple):
    """The hosts at which a grant was made, and those of its integration; None: none is written yet.

    An integration's are those of its definition when the first grant was made, and those that an operator has
    accepted since. `providers.requests.hosts` says how a host is written.
    """

    grant: tuple[str, ...] | None = None
    integration: tuple[str, ...] | None = None


NOTHING_PINNED = PinnedHosts()


def hosts_text(hosts: tuple[str, ...] | None) -> str:
    """The column of these hosts, which their authenticator covers."""
    return " ".join(sorted(set(hosts or ())))


def hosts_in(text: str | None) -> tuple[str, ...]:
    """The hosts of a column. A row accepted without them has none: nothing is sent before they are pinned."""
    return tuple((text or "").split())
