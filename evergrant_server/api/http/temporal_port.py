"""The calls that the API makes to Temporal, without Temporal's types."""

from typing import Any, Protocol

from evergrant_server.core.ids import ConnectionId, IntegrationId, Tenant
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.connection import ConnectionDescription, EnsureFresh, EnsureFreshResult
from evergrant_server.core.messages.integrations import (
    DiscoveryResult,
    RequestTemporaryCredentials,
    TemporaryCredentialsResult,
)


class TemporalPort(Protocol):
    """Calls to workflows. Each raises Failure TEMPORAL_UNAVAILABLE. Timeouts are seconds."""

    async def ensure_fresh(
        self, tenant: Tenant, connection_id: ConnectionId, request: EnsureFresh, *, timeout: float
    ) -> EnsureFreshResult: ...

    async def describe(
        self, tenant: Tenant, connection_id: ConnectionId, timeout: float = 2.0
    ) -> ConnectionDescription | None: ...

    async def discover(
        self, tenant: Tenant, integration_id: IntegrationId, context: RequestContext, timeout: float
    ) -> DiscoveryResult: ...

    async def prepare_consent(
        self, request: RequestTemporaryCredentials, timeout: float
    ) -> TemporaryCredentialsResult: ...

    async def ready(self) -> bool: ...

    async def history(self, workflow: str, run_id: str | None = None) -> list[dict[str, Any]]: ...


class Relay(Protocol):
    """Delivers the rows of the outbox to Temporal."""

    def notify(self) -> None:
        """Deliver now: a message was committed."""
        ...
