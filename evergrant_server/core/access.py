"""Apps, their keys, credentials, tokens and permits, as rows; `evergrant_server.policy` decides by them."""

import re
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from pydantic import Field

from evergrant_server.core.ids import (
    AppId,
    CredentialId,
    KeyId,
    PermitId,
    SessionId,
    Tenant,
    TenantRow,
    TokenId,
)

MOST_PERMITS = 1000  # of an app: each request of its reads them all
MOST_LIVE_KEYS = 2  # of an app: the one in use, and its successor
MOST_CREDENTIALS = 20  # of an app
TOKEN_LIFETIME = timedelta(minutes=10)  # unless what proved the identity ends earlier

_LOOPBACK_PORT = re.compile(r"\A(http://(?:127\.0\.0\.1|\[::1\])):[0-9]{1,5}(?=[/?]|\Z)")


class AuthenticationMethod(StrEnum):
    """How an app proves who it is."""

    API_KEY = "api_key"
    PRIVATE_KEY_JWT = "private_key_jwt"  # RFC 7523 section 2.2
    TLS_CLIENT_AUTH = "tls_client_auth"  # RFC 8705 section 2.1
    SELF_SIGNED_TLS_CLIENT_AUTH = "self_signed_tls_client_auth"  # RFC 8705 section 2.2
    X509_SVID = "x509_svid"  # draft-ietf-oauth-spiffe-client-auth
    WORKLOAD_IDENTITY = "workload_identity"  # a token that its platform signed, or a JWT-SVID
    PERSON_SESSION = "person_session"  # of a person, not of an app
    RESOURCE_TOKEN = "resource_token"  # of a gateway's client, which acts as the app


class Action(StrEnum):
    TOKEN = "token"
    PROXY = "proxy"
    CONNECT = "connect"
    ADMIN = "admin"
    AUDIT = "audit"  # reads what `admin` reads, and changes nothing
    EXPORT = "export"  # refresh tokens, sealed to a key of the caller's
    STORIES = "stories"  # reads what the workflows of connections wrote, also in the Temporal UI
    DIRECTORY = "directory"  # tells by SCIM who comes and leaves, and sees no connection


# the actions that reach tokens
TOKEN_ACTIONS = frozenset({Action.TOKEN, Action.PROXY, Action.EXPORT})
# those that read the configuration, the audit log, and who reaches what
READING_ACTIONS = (Action.ADMIN, Action.AUDIT)
# those that read the story of a connection
STORY_ACTIONS = (Action.STORIES, *READING_ACTIONS)


class App(TenantRow):
    """A consumer: a pipeline, a service, an agent.

    `denies` are the ids of its permits that deny, so that none of them can be missing unnoticed; None: of an
    earlier version, which named none. An agent has a `sponsor` who answers for it, `app:<name>` or
    `person:<id>`, with the id of an app in `sponsor_app`; a `purpose`; and `ends_at`, from which on it gets
    nothing.
    """

    id: AppId
    name: str
    disabled: bool = False
    return_to: tuple[str, ...] = ()  # exact URLs a connect page may send the subject back to
    lease_limit: int | None = None  # in a minute; None: the setting's
    created_at: datetime
    sponsor: str | None = None
    sponsor_app: AppId | None = None
    purpose: str = ""
    ends_at: datetime | None = None
    denies: tuple[PermitId, ...] | None = None

    @property
    def is_agent(self) -> bool:
        return self.sponsor is not None

    def is_over(self, now: datetime) -> bool:
        """True for an agent whose time is over."""
        return self.ends_at is not None and now >= self.ends_at

    def may_return_to(self, url: str) -> bool:
        """True for a URL of the list (RFC 9700 section 4.11).

        A loopback address that is listed without a port stands for every port (RFC 8252 section 7.3).
        """
        return url in self.return_to or _LOOPBACK_PORT.sub(r"\1", url) in self.return_to


class MovePhase(StrEnum):
    """Where a tenant stands that is moved between cells (ADR 0139)."""

    HERE = ""  # it lives in this cell
    ARRIVING = "arriving"  # its rows are written here; the other cell serves it
    PAUSED = "paused"  # this cell leases and revokes, and spends no single-use credential of it
    MOVED = "moved"  # it lives in the cell of the address `moved_to`


class TenantStanding(TenantRow):
    """Whether a tenant is served. Each has this row from its beginning: to delete one must enable nothing.

    `id` is the tenant's name: its row is named and locked by it. `reason` is that of the last change.
    """

    id: Tenant
    disabled: bool = False
    reason: str = ""
    changed_at: datetime | None = None
    phase: MovePhase = MovePhase.HERE
    moved_to: str = ""


class AppKey(TenantRow):
    """An API key. Of its secret only a MAC is kept (`access.credentials`).

    A key without `expires_at` is from a version that kept a plain hash: it isn't accepted.
    """

    id: KeyId
    app_id: AppId
    secret_hash: str
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None

    def is_live(self, now: datetime) -> bool:
        """True for a key that is accepted now."""
        return self.revoked_at is None and self.expires_at is not None and now < self.expires_at


class AppCredential(TenantRow):
    """One registered way in which an app may prove its identity. Holds no secret.

    `parameters` are those of its method: `private_key_jwt` has `jwks`, public keys with an `alg` each.
    """

    id: CredentialId
    app_id: AppId
    name: str
    method: AuthenticationMethod
    parameters: dict[str, Any] = Field(default_factory=dict)
    created_at: datetime


class AppToken(TenantRow):
    """An opaque access token. Of its secret only a MAC is kept, over every field (`access.credentials`).

    It counts while its credential is at `credential_revision`: a credential that is replaced or deleted ends
    its tokens. `confirmation` is the `cnf` of RFC 7800 section 3.1: what each request must prove as well.
    """

    id: TokenId
    app_id: AppId
    credential_id: CredentialId
    credential_revision: int
    method: AuthenticationMethod
    confirmation: dict[str, str] | None = None
    secret_hash: str
    created_at: datetime
    expires_at: datetime


class KeySession(TenantRow):
    """The console's session of an API key that was pasted once. Of its secret only a MAC is kept, over every
    field (`api.console.key_sessions`). It counts while its key does.
    """

    id: SessionId
    key_id: KeyId
    secret_hash: str
    created_at: datetime
    expires_at: datetime


class Effect(StrEnum):
    """What a permit says about the requests that fit it. A deny wins."""

    ALLOW = "allow"
    DENY = "deny"


class EnforcementMode(StrEnum):
    """Whether a deny refuses, or only has it recorded what it would refuse."""

    ENFORCE = "enforce"
    OBSERVE = "observe"


class Priority(StrEnum):
    """Whose calls come first where a provider's API takes no more: an app's part is by its weight."""

    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"

    @property
    def weight(self) -> int:
        return _WEIGHTS[self]


_WEIGHTS = {Priority.LOW: 1, Priority.NORMAL: 2, Priority.HIGH: 4}


class Permit(TenantRow):
    """A rule that lets an app use connections, or forbids it.

    `integration` and `provider` are a name, or `*` for every one. `subjects` holds exact subjects, beginnings
    of subjects with `*` behind them, or `*`. `connections` and `sources`: ids, and networks in CIDR notation
    that the caller is in; None: any. `expires_at`: it then fits nothing any more.

    Of an allow: `scope_ceiling` None is every scope of the connection; `exact_scopes` refuses a token that
    can do more than its lease requests. An `admin` permit reaches the tenant's configuration, not tokens:
    those need `token`, and refresh tokens `export`. `audit` reads it.

    Of a deny: `scopes` None refuses requests with any scopes, else those with one of them.

    `methods` and `paths`, of the action `proxy`: the requests to the provider's API that it is about; None:
    every one (`policy.proxied`). `tools`: the same of tools of an MCP server. With `call_approval` a person
    approves each of them (`core.agents`). `priority` is of the calls that it allows (`core.api_limits`).
    """

    id: PermitId
    app_id: AppId
    name: str
    integration: str
    subjects: tuple[str, ...] = Field(default=("*",), min_length=1)
    scope_ceiling: tuple[str, ...] | None = None
    actions: tuple[Action, ...] = Field(min_length=1)
    created_at: datetime
    effect: Effect = Effect.ALLOW
    mode: EnforcementMode = EnforcementMode.ENFORCE
    provider: str = "*"
    connections: tuple[str, ...] | None = Field(default=None, min_length=1)
    sources: tuple[str, ...] | None = Field(default=None, min_length=1)
    scopes: tuple[str, ...] | None = Field(default=None, min_length=1)
    exact_scopes: bool = False
    expires_at: datetime | None = None
    purpose: str = ""
    owner: str = ""
    reason: str = ""  # of its last change
    methods: tuple[str, ...] | None = Field(default=None, min_length=1)
    paths: tuple[str, ...] | None = Field(default=None, min_length=1)
    call_approval: bool = False
    tools: tuple[str, ...] | None = Field(default=None, min_length=1)
    priority: Priority = Priority.NORMAL

    @property
    def preference(self) -> tuple[bool, str]:
        """Of permits that allow a request the least one counts: one without approval, the first by name."""
        return self.call_approval, self.name

    @property
    def denies_all(self) -> bool:
        """Of a deny: whether it refuses its actions for all scopes, methods, paths and tools."""
        return all(limit is None for limit in (self.scopes, self.methods, self.paths, self.tools))

    @property
    def looks_at_messages(self) -> bool:
        """Whether it matters what a message to an MCP server calls."""
        return self.tools is not None or self.call_approval
