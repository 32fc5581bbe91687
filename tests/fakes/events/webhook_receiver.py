"""A receiver of webhooks: an HTTP server on loopback that answers as its script says; webhooks in a store.

async with Receiver() as receiver:
    receiver.script(500, 500, 204)      # then 204 for ever
    ...
    received = await receiver.until(3)
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self

from evergrant_server.core.events import DEFAULT_EVENTS
from evergrant_server.core.ids import Tenant, WebhookId, new_id
from evergrant_server.core.webhook_signatures import new_signing_secret
from evergrant_server.core.webhooks import Delivery, Webhook
from evergrant_server.store import Store
from tests.fakes.http_server import served
from tests.fakes.patience import PATIENCE_S, eventually


@dataclass(frozen=True)
class Received:
    """One message as it came: what a receiver verifies."""

    headers: dict[str, str]
    body: bytes
    status: int  # what was answered

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]


class Receiver:
    """`answer` is what follows the script: a status, or a coroutine function that says one."""

    def __init__(self) -> None:
        self.received: list[Received] = []
        self.answer: int | Callable[[Received], Any] = 204
        self.headers: dict[str, str] = {}
        self.answer_body = b""
        self.at_once = self.most_at_once = 0
        self._script: list[int] = []
        self._changed = asyncio.Event()

    def script(self, *statuses: int) -> None:
        self._script += statuses

    async def __aenter__(self) -> Self:
        self._server = served(self._app)
        self.origin = await self._server.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._server.__aexit__(*error)

    @property
    def url(self) -> str:
        return f"{self.origin}/hooks?token=in-the-url"

    @property
    def allowance(self) -> str:
        return self.origin.removeprefix("http://")

    async def until(self, count: int, limit_s: float = PATIENCE_S) -> list[Received]:
        """Wait until this many messages came."""
        async with asyncio.timeout(limit_s):
            while len(self.received) < count:
                self._changed.clear()
                await self._changed.wait()
        return self.received

    async def until_busy(self, count: int) -> None:
        """Wait until this many messages are being looked at."""
        async with asyncio.timeout(PATIENCE_S):
            while self.at_once < count:
                await asyncio.sleep(0.01)

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        body = (await receive())["body"]
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            status = await self._status(Received(headers, body, 0))
        finally:
            self.at_once -= 1
        self.received.append(Received(headers, body, status))
        self._changed.set()
        said = [(name.encode(), value.encode()) for name, value in self.headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": said})
        await send({"type": "http.response.body", "body": self.answer_body})

    async def _status(self, message: Received) -> int:
        if self._script:
            return self._script.pop(0)
        return self.answer if isinstance(self.answer, int) else await self.answer(message)


SECRET = new_signing_secret(b"a secret of a webhook, 32 bytes!")
TENANT = Tenant("acme")


def a_webhook(url: str, now: datetime, **changes: Any) -> Webhook:
    values: dict[str, Any] = {
        "tenant": TENANT,
        "id": WebhookId(new_id("whk")),
        "name": "hooks",
        "url": url,
        "events": DEFAULT_EVENTS,
        "secret_changed_at": now,
        "created_at": now,
        "changed_at": now,
        **changes,
    }
    return Webhook(**values)


async def listening(store: Store, url: str, now: datetime, **changes: Any) -> Webhook:
    """A webhook in the store."""
    async with store.write() as tx:
        return await tx.webhooks.add(a_webhook(url, now, **changes), SECRET)


async def log_of(store: Store, webhook: Webhook) -> list[Delivery]:
    """Its deliveries, newest first."""
    async with store.read() as tx:
        return await tx.deliveries.page(webhook.tenant, webhook.id, limit=200)


async def until_log(
    store: Store, webhook: Webhook, condition: Callable[[list[Delivery]], bool]
) -> list[Delivery]:
    return await eventually(lambda: log_of(store, webhook), condition)


async def reread(store: Store, webhook: Webhook) -> Webhook:
    async with store.read() as tx:
        found = await tx.webhooks.get(webhook.tenant, webhook.id)
    assert found is not None
    return found


async def until_row(store: Store, webhook: Webhook, condition: Callable[[Webhook], bool]) -> Webhook:
    return await eventually(lambda: reread(store, webhook), condition)
