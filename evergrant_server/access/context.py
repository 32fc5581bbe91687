"""What every judgement works with: settings, store, keys, clock, and calls to Temporal without its types."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from evergrant_server.access.authentication import Authenticator
from evergrant_server.access.limits import RequestLimits
from evergrant_server.audit.lease_ledger import LeaseLedger
from evergrant_server.core.clock import Clock
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import AppId, ConnectionId, Tenant
from evergrant_server.core.integrations import Integration
from evergrant_server.core.messages.connection import ConnectionDescription, EnsureFresh, EnsureFreshResult
from evergrant_server.core.messages.keys import KeyRotationStart
from evergrant_server.core.messages.work import CommandT, Job, ResultT
from evergrant_server.crypto import AssociatedData, KeyPurpose, KeyRing, new_sealing_key
from evergrant_server.problems import invalid_request
from evergrant_server.regions.serving_region import Region
from evergrant_server.settings import Settings
from evergrant_server.store import LeaseRows, Store, Transaction
from evergrant_server.store.database.engine import Pool
from evergrant_server.telemetry.logs import LogEvent, log_event
from providers.definition.registry import Registry
from providers.definition.schema import ProviderSpec

if TYPE_CHECKING:
    from evergrant_server.access.judged_request import JudgedRequest
    from evergrant_server.access.refusals import OfferedConsent, WantedConsent

log = logging.getLogger("evergrant.api")


class ReadStory(Protocol):
    """The story that a sealed payload belongs to."""

    @property
    def tenant(self) -> Tenant: ...
    @property
    def connection_id(self) -> ConnectionId: ...


class TemporalPort(Protocol):
    """Calls to workflows. Each raises Failure TEMPORAL_UNAVAILABLE. Timeouts are seconds."""

    async def ensure_fresh(
        self, tenant: Tenant, connection_id: ConnectionId, request: EnsureFresh, *, timeout: float
    ) -> EnsureFreshResult: ...

    async def describe(
        self, tenant: Tenant, connection_id: ConnectionId, timeout: float = 2.0
    ) -> ConnectionDescription | None: ...

    async def describe_key_rotation(self, workflow: str, timeout: float = 2.0) -> KeyRotationStart | None: ...

    async def run_job(self, job: Job[CommandT, ResultT], request: CommandT, timeout: float) -> ResultT: ...

    async def ready(self) -> bool: ...

    async def history(self, workflow: str, run_id: str | None = None) -> list[dict[str, Any]]: ...

    async def open_events(self, events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]: ...

    async def read_payloads(
        self, payloads: Sequence[dict[str, Any]], may_read: "Callable[[ReadStory | None], Awaitable[bool]]"
    ) -> list[dict[str, Any]]: ...


class Relay(Protocol):
    """Delivers the rows of the outbox to Temporal."""

    def notify(self) -> None:
        """Deliver now: a message was committed."""
        ...


@dataclass
class ApiContext:
    """Settings, store, keys, clock and links of one process of the API or the gateway.

    `check_endpoint` raises Failure EGRESS_REFUSED for a URL that the egress policy never allows.
    `offer_consent` is the API's: it finds or makes a connection, with a link where its subject must consent.
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
    offer_consent: "Callable[[JudgedRequest, WantedConsent], Awaitable[OfferedConsent]]"
    region: Region | None = None  # None: there is one region
    authenticator: Authenticator = field(init=False)
    limits: RequestLimits = field(init=False)

    def __post_init__(self) -> None:
        self.authenticator = Authenticator(self.store.in_pool(Pool.LEASES), self.clock)
        self.limits = RequestLimits(self.settings)

    def require_endpoint(self, field: str, url: str) -> None:
        """Raises Failure INVALID_REQUEST naming the field, for a URL that `check_endpoint` refuses."""
        try:
            self.check_endpoint(url)
        except Failure as failure:
            raise invalid_request(field, f"{field}: {failure.detail}") from None

    def redirect_uri(self, integration_id: str) -> str:
        """The integration's own redirect URI (RFC 9700 section 4.4.2.2)."""
        return f"{self.settings.public_url}/oauth/callback/{integration_id}"


async def spec_by_name(tx: Transaction, registry: Registry, tenant: Tenant, provider: str) -> ProviderSpec:
    """The definition of a provider for new requests. Raises Failure PROVIDER_UNKNOWN."""
    return registry.serving(provider, await tx.definitions.serving(tenant, provider))


async def integration_spec(tx: Transaction, registry: Registry, integration: Integration) -> ProviderSpec:
    """The definition of the integration's provider. Raises Failure PROVIDER_UNKNOWN."""
    return await spec_by_name(tx, registry, integration.tenant, integration.provider)


async def readiness(api: ApiContext) -> tuple[bool, dict[str, str]]:
    """Whether the process can serve leases, and what each part says.

    Temporal is reported but not required: leases of fresh tokens, consents and revocations work without it.
    """
    checks = {
        "store": await _check_store(api),
        "keys": _check_keys(api),
        "temporal": await _check_temporal(api),
    }
    if api.region is not None:
        checks["region"] = await _check_region(api.region)
    return all(word == "ok" for name, word in checks.items() if name != "temporal"), checks


async def _check_store(api: ApiContext) -> str:
    try:
        async with api.store.read() as tx:
            await tx.access.app(Tenant(api.settings.tenant), AppId("app_none"))
    except Failure as failure:
        return failure.code.value
    return "ok"


async def _check_region(region: Region) -> str:
    """Whether this region may lease: a load balancer's requests belong in the one that does."""
    try:
        authority = await region.look()
    except Failure as failure:
        return failure.code.value
    return "ok" if authority is not None and authority.lets(region.name) else ErrorCode.REGION_FENCED.value


def _check_keys(api: ApiContext) -> str:
    """Wrap a key and unwrap it again, as the lease path does."""
    place, key = AssociatedData("readyz", "readyz", "readyz", "key"), new_sealing_key("readyz")
    try:
        wrapped = api.ring.wrap(KeyPurpose.LEASE, place, key)
        same = api.ring.unwrap(KeyPurpose.LEASE, place, key.id, wrapped).reveal() == key.reveal()
    except Failure as failure:
        return failure.code.value
    return "ok" if same else ErrorCode.SEAL_BROKEN.value


async def _check_temporal(api: ApiContext) -> str:
    try:
        return "ok" if await api.link.ready() else ErrorCode.TEMPORAL_UNAVAILABLE.value
    except Exception as error:
        # an error of Temporal's client doesn't make this process unready
        log_event(log, logging.WARNING, LogEvent.TEMPORAL_NOT_READY, type(error).__name__)
        return ErrorCode.TEMPORAL_UNAVAILABLE.value
