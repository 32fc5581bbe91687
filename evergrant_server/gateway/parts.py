"""The parts that the gateway's routes share."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from evergrant_server.access.context import ApiContext
from evergrant_server.access.decision import LeaseIssuer
from evergrant_server.access.limits import OPEN_REQUESTS, RateLimited
from evergrant_server.access.recording import RefusalLog
from evergrant_server.access.refreshes import RefreshWaiter
from evergrant_server.core.access import App
from evergrant_server.core.ids import AppId
from evergrant_server.egress import StreamingTransport
from evergrant_server.gateway.proxy.outcomes import OutcomeLog
from evergrant_server.gateway.proxy.provider_api import ProviderApis


@dataclass
class GatewayParts:
    """The lease decision as the API makes it, and the way out. `stop` ends what runs."""

    api: ApiContext
    transport: StreamingTransport
    outcomes: OutcomeLog
    refresher: RefreshWaiter = field(init=False)
    refusals: RefusalLog = field(init=False)
    issuer: LeaseIssuer = field(init=False)
    apis: ProviderApis = field(init=False)
    _open: Counter[AppId] = field(init=False, default_factory=Counter)

    def __post_init__(self) -> None:
        api = self.api
        self.apis = ProviderApis(api)
        self.refresher = RefreshWaiter(api.lease_rows, api.link, api.settings.lease_wait)
        self.refusals = RefusalLog(api.store)
        self.issuer = LeaseIssuer(api, self.refresher, self.refusals)

    @contextmanager
    def open_call(self, app: App) -> Iterator[None]:
        """Count a call as open until the block ends. Raises RateLimited."""
        most = self.api.settings.gateway_calls_per_app
        if self._open[app.id] >= most:
            raise RateLimited(OPEN_REQUESTS, f"The app has {most} calls open already.", 1.0)
        self._open[app.id] += 1
        try:
            yield
        finally:
            self._open[app.id] -= 1
            if not self._open[app.id]:
                del self._open[app.id]

    async def stop(self) -> None:
        await self.refresher.stop()
        await self.refusals.stop()
        await self.outcomes.stop()
        await self.transport.aclose()
