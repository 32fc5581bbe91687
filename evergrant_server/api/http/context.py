"""The objects that routes share, and the calls that they make to Temporal, without Temporal's types."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from evergrant_server.api.http.authentication import Authenticator
from evergrant_server.api.http.cursors import Cursors
from evergrant_server.api.limits.requests import RequestLimits
from evergrant_server.audit.lease_ledger import LeaseLedger
from evergrant_server.core.clock import Clock
from evergrant_server.core.ids import ConnectionId, Tenant
from evergrant_server.core.messages.connection import ConnectionDescription, EnsureFresh, EnsureFreshResult
from evergrant_server.core.messages.work import CommandT, Job, ResultT
from evergrant_server.crypto import KeyRing
from evergrant_server.settings import Settings
from evergrant_server.store import LeaseRows, Store
from evergrant_server.store.database.engine import Pool
from providers.definition.registry import Registry


class TemporalPort(Protocol):
    """Calls to workflows. Each raises Failure TEMPORAL_UNAVAILABLE. Timeouts are seconds."""

    async def ensure_fresh(
        self, tenant: Tenant, connection_id: ConnectionId, request: EnsureFresh, *, timeout: float
    ) -> EnsureFreshResult: ...

    async def describe(
        self, tenant: Tenant, connection_id: ConnectionId, timeout: float = 2.0
    ) -> ConnectionDescription | None: ...

    async def run_job(self, job: Job[CommandT, ResultT], request: CommandT, timeout: float) -> ResultT: ...

    async def ready(self) -> bool: ...

    async def history(self, workflow: str, run_id: str | None = None) -> list[dict[str, Any]]: ...


class Relay(Protocol):
    """Delivers the rows of the outbox to Temporal."""

    def notify(self) -> None:
        """Deliver now: a message was committed."""
        ...


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
    limits: RequestLimits = field(init=False)

    def __post_init__(self) -> None:
        self.authenticator = Authenticator(self.store.in_pool(Pool.LEASES), self.clock)
        self.cursors = Cursors(self.ring)
        self.limits = RequestLimits(self.settings)

    def redirect_uri(self, integration_id: str) -> str:
        """The integration's own redirect URI (RFC 9700 section 4.4.2.2)."""
        return f"{self.settings.public_url}/oauth/callback/{integration_id}"
