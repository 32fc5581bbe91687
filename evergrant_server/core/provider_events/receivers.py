"""Receivers of a provider's security events and uninstall hooks, and account identifiers.

A receiver belongs to one integration, and an event touches that integration's connections only.
No secret is here: the signing secret stays in the store.
"""

from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict

from evergrant_server.core.ids import IntegrationId, ReceiverId, Tenant

ACCOUNT_IS_SUBJECT = "subject"
ACCOUNT_IS_SUB = "sub"


class ReceiverKind(StrEnum):
    """How an event is signed, and what its words mean."""

    SET = "set"  # security event tokens, pushed (RFC 8417, RFC 8935): RISC, CAEP
    SLACK = "slack"
    GITHUB = "github"
    ZOOM = "zoom"
    META = "meta"


class AccountIdentifier(NamedTuple):
    """By what a provider may name an account or a token. Stored as a keyed hash."""

    name: str
    value: str


class Receiver(BaseModel):
    """Whose events are accepted. `account_in` says where a connection has the account's id: the id
    token's `sub`, the connection's `subject`, or the name of a fact of its grant."""

    model_config = ConfigDict(frozen=True)

    tenant: Tenant
    id: ReceiverId
    integration_id: IntegrationId
    kind: ReceiverKind
    issuer: str | None = None
    jwks_uri: str | None = None
    audience: tuple[str, ...] = ()  # empty: the integration's client id
    account_in: str = ACCOUNT_IS_SUB
    keys: tuple[dict[str, Any], ...] | None = None  # public keys, as they were fetched
    keys_at: datetime | None = None
    keys_requested_at: datetime | None = None
    keys_problem: str | None = None
    created_at: datetime
    changed_at: datetime
    revision: int = 1
