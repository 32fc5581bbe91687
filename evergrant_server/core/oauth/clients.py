"""OAuth clients of the gateways: programs such as coding agents, which act as an app for a subject."""

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from evergrant_server.core.ids import OAuthClientId, TenantRow

REGISTRATION_LASTS = timedelta(days=1)  # until a person has let in a client that registered itself
DOCUMENT_GRACE = timedelta(days=1)  # how long a stale document counts that can't be read again


class ClientKind(StrEnum):
    """How a client became known."""

    REGISTERED = "registered"  # by itself (RFC 7591)
    DOCUMENT = "document"  # by the URL of its metadata document, which is its client_id
    ADMIN = "admin"  # by an admin


class ClientAuthMethod(StrEnum):
    """`token_endpoint_auth_method` (RFC 7591 section 2): what the token endpoint demands."""

    NONE = "none"
    PRIVATE_KEY_JWT = "private_key_jwt"


def known_id(client_id: str) -> str:
    """The id by which rows name the client that presents this one: without the registration in it."""
    return client_id.partition(".")[0] if client_id.startswith("cli_") else client_id


class GatewayClient(TenantRow):
    """A client, in the tenant that an admin registered it in; those that registered themselves are rows of
    the installation's own tenant, and may be used for every tenant.

    `client_id` is what the client presents, the URL of its document or `id`; that of a client that registered
    itself is followed by its registration. `fresh_until`: until then the document isn't read again; None: its
    host has made it one that can't be used.
    """

    id: OAuthClientId
    client_id: str
    kind: ClientKind
    name: str
    redirect_uris: tuple[str, ...]
    application_type: str = "native"
    auth_method: ClientAuthMethod = ClientAuthMethod.NONE
    jwks: dict[str, Any] | None = None
    jwks_uri: str | None = None
    scopes: tuple[str, ...] | None = None
    client_uri: str | None = None
    disabled: bool = False
    created_at: datetime
    fresh_until: datetime | None = None
    used_at: datetime | None = None

    @property
    def is_bound(self) -> bool:
        """Whether its refresh tokens are of use to no other: it proves a key with each request
        (RFC 9700 section 2.2.2)."""
        return self.auth_method is not ClientAuthMethod.NONE

    def is_fresh(self, now: datetime) -> bool:
        """Whether what is known of the client needs no reading of its document."""
        if self.kind is not ClientKind.DOCUMENT:
            return True
        return self.fresh_until is not None and now < self.fresh_until

    def outlasts_failure(self, now: datetime) -> bool:
        """Whether it still counts when its document couldn't be read just now."""
        return self.is_fresh(now) or (
            self.fresh_until is not None and now < self.fresh_until + DOCUMENT_GRACE
        )
