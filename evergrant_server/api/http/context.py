"""The objects that routes share."""

from collections.abc import Callable
from dataclasses import dataclass, field

from evergrant_server.api.http.authentication import Authenticator
from evergrant_server.api.http.cursors import Cursors
from evergrant_server.api.http.temporal_port import Relay, TemporalPort
from evergrant_server.audit.lease_ledger import LeaseLedger
from evergrant_server.core.clock import Clock
from evergrant_server.crypto import KeyRing
from evergrant_server.settings import Settings
from evergrant_server.store import LeaseRows, Store
from providers.definition.registry import Registry


@dataclass
class ApiContext:
    """Settings, store, keys, clock and links of one API process.

    `check_endpoint` raises Failure EGRESS_REFUSED for a URL that the egress policy never allows.
    """

    settings: Settings
    store: Store
    ring: KeyRing
    registry: Registry
    clock: Clock
    link: TemporalPort
    relay: Relay
    ledger: LeaseLedger
    lease_rows: LeaseRows
    check_endpoint: Callable[[str], None]
    authenticator: Authenticator = field(init=False)
    cursors: Cursors = field(init=False)

    def __post_init__(self) -> None:
        self.authenticator = Authenticator(self.store)
        self.cursors = Cursors(self.ring)

    def redirect_uri(self, integration_id: str) -> str:
        """The integration's own redirect URI (RFC 9700 section 4.4.2.2)."""
        return f"{self.settings.public_url}/oauth/callback/{integration_id}"
