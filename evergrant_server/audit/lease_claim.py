"""A lease as the ledger records it."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from evergrant_server.audit.delegated_leases import DelegatedUse
from evergrant_server.core.access import Permit
from evergrant_server.core.ids import AppId, ConnectionId, KeyId, Tenant
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.oauth.authorizations import TokenFamily


@dataclass(frozen=True, slots=True)
class LeaseClaim:
    """A lease that was judged and not handed out yet, with the revisions it was judged by."""

    tenant: Tenant
    connection_id: ConnectionId
    connection_revision: int
    app_id: AppId
    app_revision: int
    key_id: KeyId
    valid_until: datetime  # the end of the key or the permit: its passing moves no revision
    generation: int
    context: RequestContext
    scopes: tuple[str, ...]
    at: datetime
    dpop_request: str | None = None  # method and origin: a proof for one request instead of the token
    signed_request: str = ""  # the signed request, when a signature is leased instead of the token
    proxied: Mapping[str, object] | None = None  # what is recorded of a call that is made with it
    through: AppId | None = None  # the Envoy that makes the call instead
    permit: Permit | None = None  # that allowed it
    authorization: TokenFamily | None = None  # of the gateway's client that acts as the app
    observed: tuple[str, ...] = ()  # the names of permits that would have denied it in mode enforce
    delegated: DelegatedUse | None = None  # on whose behalf, and under which other apps

    @property
    def named(self) -> set[str]:
        """The ids of what mustn't change until the lease is committed."""
        names: set[str] = {self.connection_id, self.app_id, self.tenant}
        return names if self.delegated is None else names | self.delegated.named
