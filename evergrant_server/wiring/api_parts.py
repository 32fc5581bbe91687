"""What the API and the gateway judge requests with, opened from the settings."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from evergrant_server.access.context import ApiContext
from evergrant_server.api.connections.create import offer_consent
from evergrant_server.audit.lease_ledger import LeaseLedger, new_lease_shard
from evergrant_server.crypto.keyring import Role
from evergrant_server.egress import EgressPolicy
from evergrant_server.settings import Settings
from evergrant_server.store import LeaseRows
from evergrant_server.store.database.engine import Pool
from evergrant_server.wiring.heartbeat import Heartbeat
from evergrant_server.wiring.platform import Platform, open_platform


@asynccontextmanager
async def open_api(settings: Settings, role: Role) -> AsyncIterator[tuple[Platform, ApiContext]]:
    """The platform and the context of this role, whose ledger runs until the block ends.

    Raises as `open_platform`, which doesn't wait for Temporal here.
    """
    async with open_platform(settings, role, lazy=True) as platform:
        store, clock = platform.store, platform.clock
        ledger = LeaseLedger(store.in_pool(Pool.LEDGER), new_lease_shard(role), clock, platform.region)
        await ledger.start()
        api = ApiContext(
            settings=settings,
            store=platform.store,
            ring=platform.ring,
            registry=platform.registry,
            clock=platform.clock,
            link=platform.link,
            relay=platform.relay,
            ledger=ledger,
            lease_rows=LeaseRows(platform.store),
            check_endpoint=EgressPolicy(settings.egress_allow, settings.start_command).check_endpoint,
            offer_consent=offer_consent,
            region=platform.region,
        )
        try:
            async with Heartbeat(platform.store, platform.clock).running():
                yield platform, api
        finally:
            await ledger.stop()
