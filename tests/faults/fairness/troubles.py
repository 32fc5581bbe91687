"""The troubles, each of a tenant of its own: one begins with its block, and is over when the block ends."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from evergrant_server import audit
from evergrant_server.core.events import EventType, WebhookEvent
from evergrant_server.core.ids import EventId, Tenant, new_id
from evergrant_server.core.messages.base import RequestContext
from tests.fakes.events.webhook_receiver import Received, Receiver, listening
from tests.fakes.patience import PATIENCE_S
from tests.fakes.providers.scripted_provider import ScriptedProvider, delay
from tests.faults.fairness.place import Place, Tenancy, asked

WEBHOOKS = Tenant("webhooks")
_BY = RequestContext(by="app:boss")
_SLOWLY_S = 5.0  # until a receiver answers
_EVENTS = 20  # of each webhook
_ALL_LEASED_S = 150.0  # within which every hot connection has its token
_AFTER_S = 2.0  # that a crowd goes on after what is measured beside it
_SOON_OVER_S = 1.0  # what is left of the hot connections' tokens when they are made


@dataclass(frozen=True)
class Sizes:
    """How large the troubles are."""

    greedy_clients: int = 100
    hanging: int = 150
    hanging_clients: int = 60
    webhooks: int = 50
    hot: int = 2000
    hot_clients: int = 200


class Providers:
    """The providers and the receiver of webhooks, on loopback."""

    def __init__(self) -> None:
        self.fast = ScriptedProvider(rotation="none")
        self.brief = ScriptedProvider(rotation="none", expires_in=2)  # each lease there needs a refresh
        self.hangs = ScriptedProvider()
        self.receiver = Receiver()

    @property
    def allowances(self) -> tuple[str, ...]:
        servers = (self.fast, self.brief, self.hangs, self.receiver)
        return tuple(server.allowance for server in servers)


class Troubles:
    """Makes the troubles. A block's counter says what happened in it."""

    def __init__(self, place: Place, providers: Providers, sizes: Sizes) -> None:
        self._place, self._providers, self._sizes = place, providers, sizes
        self._over = asyncio.Event()
        self._greedy: Tenancy | None = None
        self._hanging: Tenancy | None = None
        self._hot: Tenancy | None = None
        self._leasing: asyncio.Task[Counter[str]] | None = None

    async def prepare(self) -> None:
        """Write the tenants' rows, and start the connections' workflows."""
        place, providers, sizes = self._place, self._providers, self._sizes
        self._greedy = await place.tenancy("greedy", providers.fast, 20, 3600)
        self._hanging = await place.tenancy("hanging", providers.hangs, sizes.hanging, _SOON_OVER_S)
        self._hot = await place.tenancy("hot", providers.fast, sizes.hot, _SOON_OVER_S)
        async with place.store.write() as tx:
            await tx.tenants.begin(WEBHOOKS)

    @asynccontextmanager
    async def greedy_app(self, seconds: float) -> AsyncIterator[Counter[str]]:
        """One app has as many requests open as it has clients, and sends the next when one is answered."""
        async with self._crowd(self._greedy, self._sizes.greedy_clients, seconds) as statuses:
            yield statuses

    @asynccontextmanager
    async def hanging_provider(self, seconds: float) -> AsyncIterator[Counter[str]]:
        """No refresh of one tenant is answered, and many of its callers wait for one."""
        self._providers.hangs.script(*(delay(self._over) for _ in range(10 * self._sizes.hanging)))
        async with self._crowd(self._hanging, self._sizes.hanging_clients, seconds) as statuses:
            yield statuses
            statuses["refreshes that hang"] = self._providers.hangs.count("token")
            self._over.set()

    @asynccontextmanager
    async def slow_webhooks(self, seconds: float) -> AsyncIterator[Counter[str]]:
        """Events for many webhooks of one tenant, whose receivers take seconds for each."""
        store, now = self._place.store, datetime.now(UTC)
        calls = Counter[str]()

        async def slowly(message: Received) -> int:
            calls["deliveries"] += 1
            await asyncio.sleep(_SLOWLY_S)
            return 204

        self._providers.receiver.answer = slowly
        hooks = [
            await listening(store, self._providers.receiver.url, now, tenant=WEBHOOKS, name=f"hooks-{number}")
            for number in range(self._sizes.webhooks)
        ]
        for _ in range(_EVENTS):
            event = WebhookEvent(
                tenant=WEBHOOKS,
                id=EventId(new_id("evt")),
                type=EventType.PING,
                connection_id=None,
                at=now,
                body='{"type":"webhook.ping"}',
            )
            async with store.write() as tx:
                await audit.write_event(tx, hooks, event, _BY, now)
        yield calls
        self._providers.receiver.answer = 204
        async with store.write() as tx:
            for hook in hooks:
                current = await tx.webhooks.get(WEBHOOKS, hook.id)
                assert current is not None
                await tx.webhooks.replace(current.disabled_as_gone(), expected=current.revision)

    @asynccontextmanager
    async def temporal_away(self, seconds: float) -> AsyncIterator[Counter[str]]:
        """Temporal is away, and an app leases all of many connections whose tokens are over."""
        await self._place.temporal_goes_away()
        wanted = self._wanted(self._hot, self._sizes.hot_clients, _ALL_LEASED_S)
        crowd = await self._place.started("tests.faults.fairness.crowd")
        self._leasing = asyncio.create_task(_statuses(crowd, {**wanted, "each_once": True}))
        yield Counter({"connections that are due": self._sizes.hot})

    @asynccontextmanager
    async def temporal_back(self, seconds: float) -> AsyncIterator[Counter[str]]:
        """Temporal comes back, and all of these connections are refreshed at once."""
        assert self._leasing is not None
        await self._place.temporal_comes_back()
        seen = Counter[str]()
        yield seen
        async with asyncio.timeout(_ALL_LEASED_S + PATIENCE_S):
            statuses = await self._leasing
        seen["connections that were leased"] = statuses["200"]

    @asynccontextmanager
    async def _crowd(
        self, tenancy: Tenancy | None, clients: int, seconds: float
    ) -> AsyncIterator[Counter[str]]:
        wanted = self._wanted(tenancy, clients, seconds + _AFTER_S)
        child = await self._place.started("tests.faults.fairness.crowd")
        leasing = asyncio.create_task(_statuses(child, wanted))
        statuses = Counter[str]()
        yield statuses
        statuses.update(await leasing)

    def _wanted(self, tenancy: Tenancy | None, clients: int, seconds: float) -> dict[str, object]:
        assert tenancy is not None, "prepare comes first"
        return {
            "port": self._place.port,
            "key": tenancy.key,
            "integration": tenancy.integration.name,
            "subjects": tenancy.size,
            "clients": clients,
            "seconds": seconds,
        }


async def _statuses(crowd: asyncio.subprocess.Process, wanted: dict[str, object]) -> Counter[str]:
    return Counter(await asked(crowd, wanted))
