"""Replaced grants: tokens that a new grant has replaced, or that were never wanted. Pure.

They may stay valid at the provider. Revoking one may also end the grant that is in use: how far a
revocation reaches differs between providers (RFC 7009 section 2.1 leaves it to them).
"""

from datetime import datetime
from enum import StrEnum

from evergrant_server.core.connections.grant import TokenSet
from evergrant_server.core.ids import ConnectionId, IntegrationId, ReplacedGrantId, TenantRow


class RevocationReach(StrEnum):
    """What else ends when a token is revoked."""

    TOKEN = "token"  # the tokens of its own grant: no other grant of the account
    GRANT = "grant"  # every grant of the account to this client
    UNKNOWN = "unknown"


class ReplacedGrant(TenantRow):
    """The row of tokens that a connection holds only to revoke them."""

    id: ReplacedGrantId
    connection_id: ConnectionId
    integration_id: IntegrationId
    generation: int | None = None  # None: they were never installed
    account_hash: str | None = None  # see `AccountIdentifiers`; None: not known
    pending: bool  # a workflow revokes them; otherwise the connection's own revocation does
    replaced_at: datetime


def may_revoke(
    reach: RevocationReach, same_account: bool | None, *, shared: bool, with_connection: bool = False
) -> bool:
    """True when the revocation of a replaced grant ends no grant that is in use.

    `same_account`: the connection's own grant is of that account; None: not known. `shared`: a grant of
    another live connection is. `with_connection`: the connection's own grant is being revoked.
    """
    if reach is RevocationReach.TOKEN:
        return True
    if with_connection:
        return same_account is True or not shared
    return same_account is False and not shared


def continues(before: TokenSet, after: TokenSet) -> bool:
    """True when the provider has issued a token of `before` again: it is the same grant."""
    old, new = ((tokens.access_token, tokens.refresh_token) for tokens in (before, after))
    return any(token is not None and token in new for token in old)
