"""What the API is wired from."""

from collections.abc import Callable
from dataclasses import dataclass, field

from evergrant_server.api.http.authentication import Authenticator
from evergrant_server.api.http.cursors import Cursors
from evergrant_server.api.http.temporal_port import Relay, TemporalPort
from evergrant_server.api.leases.refresher import RefreshWaiter
from evergrant_server.audit.lease_ledger import LeaseLedger
from evergrant_server.core.clock import Clock
from evergrant_server.crypto import KeyRing
from evergrant_server.settings import Settings
from evergrant_server.store import LeaseRows, Store
from providers.definition.registry import Registry


@dataclass
class ApiContext:
    """Everything a route may use. The last three are made from the others.

    `check_endpoint` raises Failure EGRESS_REFUSED for a URL that could never be called from here.
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
    freshening: RefreshWaiter = field(init=False)

    def __post_init__(self) -> None:
        self.authenticator = Authenticator(self.store)
        self.cursors = Cursors(self.ring)
        self.freshening = RefreshWaiter(self.lease_rows, self.link, self.settings.lease_wait)

    def redirect_uri(self, integration_id: str) -> str:
        """Distinct per tenant and integration (RFC 9700 section 4.4.2.2)."""
        return f"{self.settings.public_url}/oauth/callback/{integration_id}"
