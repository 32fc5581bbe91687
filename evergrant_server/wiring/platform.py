"""The parts that API, worker and operator commands share, opened from the settings."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from temporalio.client import Client

from evergrant_server.checkout import require_own_packages
from evergrant_server.core.clock import Clock, SystemClock
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.crypto.key_services.bound import BoundKeyService
from evergrant_server.crypto.key_services.opening import open_key_service
from evergrant_server.crypto.keyfile import key_file_error
from evergrant_server.crypto.keyring import KeyRing, Role
from evergrant_server.regions.serving_region import Region, RegionRules
from evergrant_server.settings import BadSettings, Settings
from evergrant_server.store import Store
from evergrant_server.store.database import schema
from evergrant_server.store.database.engine import Pool, sqlite_path
from evergrant_server.store.store import require_matching_key_ring
from evergrant_server.telemetry import saturation
from evergrant_server.temporal_link.connect import client_plugins, connect
from evergrant_server.temporal_link.link import TemporalLink
from evergrant_server.temporal_link.outbox_relay import OutboxRelay
from evergrant_server.temporal_link.reconcile import Reconciler
from evergrant_server.temporal_link.workflow_starter import WorkflowStarter
from evergrant_server.wiring.root_keeper import RootKeeper
from providers.definition.registry import Registry

LOST_KEY_FILE = (
    "Restore the file from its backup, or name it with EVERGRANT_KEY_FILE. Without a backup every connection "
    "has to be made anew: move the database away, then start again."
)


@dataclass(frozen=True)
class Platform:
    settings: Settings
    clock: Clock
    ring: KeyRing
    store: Store
    registry: Registry
    client: Client
    link: TemporalLink
    reconciler: Reconciler
    relay: OutboxRelay
    key_services: Sequence[BoundKeyService] = ()  # the first wraps; none where roots lie in the key file
    region: Region | None = None  # None: there is one region


def key_services(settings: Settings) -> list[BoundKeyService]:
    """The services of the settings: the first wraps. Raises BadSettings."""
    services: list[BoundKeyService] = []
    for name, url in (
        ("EVERGRANT_KEY_SERVICE", settings.key_service),
        ("EVERGRANT_KEY_SERVICE_BEFORE", settings.key_service_before),
    ):
        try:
            if url.startswith("file:"):
                raise ValueError("is file, and EVERGRANT_KEY_FILE names the key file")
            services += [open_key_service(url, settings.key_path)] if url else []
        except ValueError as error:
            raise BadSettings(f"{name}: {error}") from None
    return services


def new_ring(settings: Settings, role: Role) -> KeyRing:
    """The ring of the key file, where the settings name it; else one that its keeper fills. Raises as
    `KeyRing.open`."""
    if settings.uses_key_file:
        return KeyRing.open(settings.key_path, role)
    return KeyRing(settings.key_service, role, None)


async def require_no_lost_key_file(settings: Settings) -> None:
    """Raise Failure KEY_UNAVAILABLE where the key file is missing that the database was filled with: new keys
    would open nothing of it."""
    if not await is_key_file_lost(settings):
        return
    database = str(sqlite_path(settings.database_url) or "of EVERGRANT_DATABASE_URL")
    why = f"doesn't exist, and the database {database} needs it: what it sealed can't be read with new keys"
    raise key_file_error(settings.key_path, why, LOST_KEY_FILE)


async def is_key_file_lost(settings: Settings) -> bool:
    """Whether the database was filled with a key file that isn't there. One that can't be reached yet may
    come later."""
    if not settings.uses_key_file or settings.key_path.exists():
        return False
    try:
        return await schema.is_in_use(settings.database_url)
    except Failure as failure:
        if failure.code is not ErrorCode.STORE_UNAVAILABLE:
            raise
        return False


@asynccontextmanager
async def open_store(
    settings: Settings, role: Role, clock: Clock | None = None
) -> AsyncIterator[tuple[Store, RootKeeper]]:
    """The store with a ring of this role, which is kept filled; closed at the end of the block.

    Raises BadSettings, Failure KEY_UNAVAILABLE, KEY_DENIED, KEY_GONE, SEAL_BROKEN, STORE_UNAVAILABLE or
    SCHEMA_MISMATCH.
    """
    await require_no_lost_key_file(settings)
    services = key_services(settings)
    store = await Store.open(settings.database_url, new_ring(settings, role), clock or SystemClock())
    keeper = RootKeeper(store, services, settings.key_hold)
    try:
        await keeper.begin()
        async with keeper.running():
            yield store, keeper
    finally:
        await keeper.close()
        await store.close()


@asynccontextmanager
async def open_platform(
    settings: Settings, role: Role, *, clock: Clock | None = None, lazy: bool = False, **client_options: Any
) -> AsyncIterator[Platform]:
    """Open the parts, and close them at the end of the block.

    `lazy` doesn't wait for Temporal: a call that needs it fails later. Raises as `open_store`, or Failure
    TEMPORAL_UNAVAILABLE.
    """
    require_own_packages()
    clock = clock or SystemClock()
    async with open_store(settings, role, clock) as (store, keeper):
        ring = store.ring
        saturation.observe_connections(store.connections_in_use)
        saturation.observe_servers(store.servers.named_states)
        await require_matching_key_ring(store, ring)
        client = await connect(settings, store, lazy=lazy, plugins=client_plugins(), **client_options)
        link = TemporalLink(client, ring, clock, settings.temporal_task_queue)
        registry = Registry.load()
        starter = WorkflowStarter(
            store, link, ring, clock, registry.refresh_rules, settings.expiry_announce_days
        )
        reconciler = Reconciler(store, link, starter, clock)
        background = store.in_pool(Pool.BACKGROUND)
        relay = OutboxRelay(
            background, link, reconciler, clock, settings.relay_interval, bulk=role is not Role.API
        )
        parts = (settings, clock, ring, store, registry, client, link, reconciler, relay)
        async with AsyncExitStack() as stack:
            region = region_of(settings, store)
            if region is not None and role is not Role.OPERATOR:
                await stack.enter_async_context(region.running(renews=role is not Role.GATEWAY))
            yield Platform(*parts, keeper.services, region)


def region_of(settings: Settings, store: Store) -> Region | None:
    """What this process waits for in the other region; None: there is one region."""
    if not settings.region:
        return None
    rules = RegionRules(
        settings.region,
        settings.region_wait,
        stops_when_away=settings.region_away == "stop",
        authority=settings.region_authority,
        durable_by_default=settings.audit_durability == "region",
    )
    return Region(store, rules)
