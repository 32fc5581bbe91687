"""The parts that API, worker and operator commands share, opened from the settings."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from temporalio.client import Client

from evergrant_server.checkout import require_own_packages
from evergrant_server.core.clock import Clock, SystemClock
from evergrant_server.crypto.keyring import KeyRing, Role
from evergrant_server.settings import Settings
from evergrant_server.store import Store
from evergrant_server.store.database.engine import Pool
from evergrant_server.store.store import require_matching_key_ring
from evergrant_server.telemetry import saturation
from evergrant_server.temporal_link.connect import client_plugins, connect
from evergrant_server.temporal_link.link import TemporalLink
from evergrant_server.temporal_link.outbox_relay import OutboxRelay
from evergrant_server.temporal_link.reconcile import Reconciler
from evergrant_server.temporal_link.workflow_starter import WorkflowStarter
from providers.definition.registry import Registry


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


@asynccontextmanager
async def open_platform(
    settings: Settings, role: Role, *, clock: Clock | None = None, lazy: bool = False, **client_options: Any
) -> AsyncIterator[Platform]:
    """Open the parts, and close them at the end of the block.

    `lazy` doesn't wait for Temporal: a call that needs it fails later. Raises Failure
    KEY_UNAVAILABLE, STORE_UNAVAILABLE, SCHEMA_MISMATCH or TEMPORAL_UNAVAILABLE.
    """
    require_own_packages()
    clock = clock or SystemClock()
    ring = KeyRing.open(settings.key_path, role)
    store = await Store.open(settings.database_url, ring, clock)
    try:
        saturation.observe_connections(store.connections_in_use)
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
        yield Platform(settings, clock, ring, store, registry, client, link, reconciler, relay)
    finally:
        await store.close()
