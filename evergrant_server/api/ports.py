"""What the API needs of Temporal, as plain methods: no Temporal type passes through here."""

from typing import Any, Protocol

from evergrant_server.core.ids import ConnectionId, IntegrationId, Tenant
from evergrant_server.core.messages import Asked, Description, Discovered, EnsureFresh, Freshness
from evergrant_server.core.preparing import PrepareConsent, Prepared


class TemporalPort(Protocol):
    """The calls to workflows. Each raises Failure TEMPORAL_UNAVAILABLE; times are seconds."""

    async def ensure_fresh(
        self, tenant: Tenant, connection_id: ConnectionId, ask: EnsureFresh, *, timeout: float
    ) -> Freshness: ...

    async def describe(
        self, tenant: Tenant, connection_id: ConnectionId, timeout: float = 2.0
    ) -> Description | None: ...

    async def discover(
        self, tenant: Tenant, integration_id: IntegrationId, asked: Asked, timeout: float
    ) -> Discovered: ...

    async def prepare(self, order: PrepareConsent, timeout: float) -> Prepared: ...

    async def ready(self) -> bool: ...

    async def history(self, workflow: str, run_id: str | None = None) -> list[dict[str, Any]]: ...


class Relay(Protocol):
    """Delivers the outbox."""

    def nudge(self) -> None:
        """Say that a message was committed."""
        ...
