"""The API over HTTP beside a worker, on the parts of an installation's settings."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from evergrant_server.access.context import ApiContext
from evergrant_server.api.app import create_app
from evergrant_server.api.connections.create import offer_consent
from evergrant_server.audit.lease_ledger import LeaseLedger
from evergrant_server.crypto.keyring import KeyPurpose, Role
from evergrant_server.egress import EgressPolicy
from evergrant_server.settings import Settings
from evergrant_server.store import LeaseRows
from evergrant_server.wiring.platform import open_platform
from tests.fakes.http_server import served


@asynccontextmanager
async def serving(settings: Settings, port: int = 0) -> AsyncIterator[str]:
    """The API, with the keys of the API's role and no others. Links lead here if `port` is its setting."""
    async with open_platform(settings, Role.API) as parts:
        assert not parts.ring.holds(KeyPurpose.REFRESH)
        ledger = LeaseLedger(parts.store, "api-test", parts.clock)
        await ledger.start()
        relay = asyncio.create_task(parts.relay.run())
        app = create_app(
            ApiContext(
                settings=settings,
                store=parts.store,
                ring=parts.ring,
                registry=parts.registry,
                clock=parts.clock,
                link=parts.link,
                relay=parts.relay,
                ledger=ledger,
                lease_rows=LeaseRows(parts.store),
                check_endpoint=EgressPolicy(allow=settings.egress_allow).check_endpoint,
                offer_consent=offer_consent,
            )
        )
        try:
            async with app.router.lifespan_context(app), served(app, port) as url:
                yield url
        finally:
            relay.cancel()
            await asyncio.gather(relay, return_exceptions=True)
            await ledger.stop()
