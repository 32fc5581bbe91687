"""Apps, their keys, and the permits that say which connections they may use."""

from datetime import datetime
from enum import StrEnum

from pydantic import Field

from evergrant_server.core.ids import AppId, KeyId, PermitId, TenantRow


class Action(StrEnum):
    TOKEN = "token"
    PROXY = "proxy"
    CONNECT = "connect"
    ADMIN = "admin"


class App(TenantRow):
    """A consumer: a pipeline, a service, an agent."""

    id: AppId
    name: str
    disabled: bool = False
    return_to: tuple[str, ...] = ()  # exact URLs a connect page may send the subject back to
    created_at: datetime


class AppKey(TenantRow):
    """An API key: `evg_<key id>_<secret>`. Only a hash of the secret is kept."""

    id: KeyId
    app_id: AppId
    secret_hash: str
    created_at: datetime
    revoked_at: datetime | None = None


class Permit(TenantRow):
    """A rule that lets an app use connections.

    `integration` is a name, or `*` for every one. `subjects` holds exact subjects, or `*`.
    `scope_ceiling` None: every scope of the connection. An `admin` permit reaches the
    tenant's configuration, not tokens: those need `token`.
    """

    id: PermitId
    app_id: AppId
    name: str
    integration: str
    subjects: tuple[str, ...] = Field(default=("*",), min_length=1)
    scope_ceiling: tuple[str, ...] | None = None
    actions: tuple[Action, ...] = Field(min_length=1)
    created_at: datetime
