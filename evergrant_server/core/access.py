"""Apps, their keys, and the permits that say which connections they may use."""

from datetime import datetime
from enum import StrEnum

from pydantic import Field

from evergrant_server.core.ids import AppId, KeyId, PermitId, TenantRow

MOST_LIVE_KEYS = 2  # of an app: the one in use, and its successor


class Action(StrEnum):
    TOKEN = "token"
    PROXY = "proxy"
    CONNECT = "connect"
    ADMIN = "admin"
    EXPORT = "export"  # refresh tokens, sealed to a key of the caller's


# the actions that reach tokens
TOKEN_ACTIONS = frozenset({Action.TOKEN, Action.PROXY, Action.EXPORT})


class App(TenantRow):
    """A consumer: a pipeline, a service, an agent."""

    id: AppId
    name: str
    disabled: bool = False
    return_to: tuple[str, ...] = ()  # exact URLs a connect page may send the subject back to
    created_at: datetime


class AppKey(TenantRow):
    """An API key. Of its secret only a MAC is kept (`api.http.api_keys`).

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


class Permit(TenantRow):
    """A rule that lets an app use connections.

    `integration` is a name, or `*` for every one. `subjects` holds exact subjects, or `*`.
    `scope_ceiling` None: every scope of the connection. An `admin` permit reaches the
    tenant's configuration, not tokens: those need `token`, and refresh tokens `export`.
    """

    id: PermitId
    app_id: AppId
    name: str
    integration: str
    subjects: tuple[str, ...] = Field(default=("*",), min_length=1)
    scope_ceiling: tuple[str, ...] | None = None
    actions: tuple[Action, ...] = Field(min_length=1)
    created_at: datetime
