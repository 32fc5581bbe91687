"""Subscriptions to events: what is sent, what comes back, and the two clients' methods for it.

What a receiver needs is in `webhooks`; this is for the admin who says where events go.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeVar
from urllib.parse import quote
from uuid import uuid4

from evergrant.calls import Call
from evergrant.fields import Fields
from evergrant.replies import Page, Response, parse_body, parse_page, require_success

Answer = TypeVar("Answer")
_AT = "/v1/webhooks"


@dataclass(frozen=True, slots=True)
class Webhook:
    """Who is told what. `secret` is there in the answer that made it, and never again.

    `disabled_by` is `admin`, `gone` (the endpoint answered 410) or `failing` (for days).
    """

    id: str
    name: str
    url: str
    events: tuple[str, ...]
    integration: str
    disabled: bool
    disabled_by: str | None
    failures: int
    failing_since: datetime | None
    paused_until: datetime | None
    previous_secret_until: datetime | None
    created_at: datetime
    changed_at: datetime
    secret: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class WebhookDelivery:
    """One event on its way to one webhook. `event_id` is what the receiver sees as `webhook-id`."""

    id: str
    event_id: str
    event_type: str
    status: str
    attempts: int
    response_status: int | None
    problem: str | None
    next_at: datetime | None
    created_at: datetime
    ended_at: datetime | None


def put_call(
    name: str, url: str, *, events: Iterable[str] | None, integration: str | None, disabled: bool
) -> Call[Webhook]:
    """Safe to send again: it says what should be. A secret in an answer that was lost is lost: rotate."""
    wanted = {"url": url, "events": list(events) if events else None, "integration": integration}
    body = {key: value for key, value in wanted.items() if value is not None} | {"disabled": disabled}
    return Call("PUT", _of(name), _webhook_of, body=body)


def get_call(name: str) -> Call[Webhook]:
    return Call("GET", _of(name), _webhook_of)


def list_call() -> Call[Page[Webhook]]:
    return Call("GET", _AT, _webhooks)


def delete_call(name: str) -> Call[None]:
    return Call("DELETE", _of(name), require_success)


def rotate_call(name: str, overlap: timedelta | None) -> Call[Webhook]:
    body: Mapping[str, object] = {} if overlap is None else {"overlap": overlap.total_seconds()}
    return Call("POST", f"{_of(name)}/rotate-secret", _webhook_of, body=body, idempotency_key=str(uuid4()))


def deliveries_call(name: str, status: str | None) -> Call[Page[WebhookDelivery]]:
    query = None if status is None else {"status": status}
    return Call("GET", f"{_of(name)}/deliveries", _deliveries, query=query)


def replay_call(name: str, delivery_id: str) -> Call[WebhookDelivery]:
    path = f"{_of(name)}/deliveries/{quote(delivery_id, safe='')}/replay"
    return Call("POST", path, _delivery_of, idempotency_key=str(uuid4()))


def test_call(name: str) -> Call[WebhookDelivery]:
    return Call("POST", f"{_of(name)}/test", _delivery_of, idempotency_key=str(uuid4()))


class Webhooks(ABC):
    """What `Evergrant` does beside leasing: say where events go, and look at what became of them."""

    @abstractmethod
    def _do(self, call: Call[Answer]) -> Answer: ...

    @abstractmethod
    def _items(self, call: Call[Page[Answer]]) -> Iterator[Answer]: ...

    def webhooks(self) -> Iterator[Webhook]:
        """Every webhook of the tenant."""
        return self._items(list_call())

    def webhook(self, name: str) -> Webhook:
        return self._do(get_call(name))

    def put_webhook(
        self,
        name: str,
        url: str,
        *,
        events: Iterable[str] | None = None,
        integration: str | None = None,
        disabled: bool = False,
    ) -> Webhook:
        """Create or change a webhook; `events` None is all but `connection.refreshed`.

        Keep the `secret` of the answer that creates it: it isn't shown again.
        """
        return self._do(put_call(name, url, events=events, integration=integration, disabled=disabled))

    def delete_webhook(self, name: str) -> None:
        """Delete it with its log; what waits is not delivered any more."""
        return self._do(delete_call(name))

    def rotate_webhook_secret(self, name: str, *, overlap: timedelta | None = None) -> Webhook:
        """A new `secret`. For `overlap` (None: the server's) messages carry both signatures."""
        return self._do(rotate_call(name, overlap))

    def webhook_deliveries(self, name: str, *, status: str | None = None) -> Iterator[WebhookDelivery]:
        """The log, newest first: all of it, or those `pending`, `delivered` or `failed`."""
        return self._items(deliveries_call(name, status))

    def replay_webhook(self, name: str, delivery_id: str) -> WebhookDelivery:
        """Send one delivery again, under the same `webhook-id`."""
        return self._do(replay_call(name, delivery_id))

    def test_webhook(self, name: str) -> WebhookDelivery:
        """Have a `webhook.ping` sent; the log says what came of it."""
        return self._do(test_call(name))


class AsyncWebhooks(ABC):
    """The same for `AsyncEvergrant`."""

    @abstractmethod
    async def _do(self, call: Call[Answer]) -> Answer: ...

    @abstractmethod
    def _items(self, call: Call[Page[Answer]]) -> AsyncIterator[Answer]: ...

    def webhooks(self) -> AsyncIterator[Webhook]:
        """Every webhook of the tenant."""
        return self._items(list_call())

    async def webhook(self, name: str) -> Webhook:
        return await self._do(get_call(name))

    async def put_webhook(
        self,
        name: str,
        url: str,
        *,
        events: Iterable[str] | None = None,
        integration: str | None = None,
        disabled: bool = False,
    ) -> Webhook:
        """Create or change a webhook; `events` None is all but `connection.refreshed`.

        Keep the `secret` of the answer that creates it: it isn't shown again.
        """
        call = put_call(name, url, events=events, integration=integration, disabled=disabled)
        return await self._do(call)

    async def delete_webhook(self, name: str) -> None:
        """Delete it with its log; what waits is not delivered any more."""
        return await self._do(delete_call(name))

    async def rotate_webhook_secret(self, name: str, *, overlap: timedelta | None = None) -> Webhook:
        """A new `secret`. For `overlap` (None: the server's) messages carry both signatures."""
        return await self._do(rotate_call(name, overlap))

    def webhook_deliveries(self, name: str, *, status: str | None = None) -> AsyncIterator[WebhookDelivery]:
        """The log, newest first: all of it, or those `pending`, `delivered` or `failed`."""
        return self._items(deliveries_call(name, status))

    async def replay_webhook(self, name: str, delivery_id: str) -> WebhookDelivery:
        """Send one delivery again, under the same `webhook-id`."""
        return await self._do(replay_call(name, delivery_id))

    async def test_webhook(self, name: str) -> WebhookDelivery:
        """Have a `webhook.ping` sent; the log says what came of it."""
        return await self._do(test_call(name))


def _of(name: str) -> str:
    return f"{_AT}/{quote(name, safe='')}"


def _webhook_of(reply: Response) -> Webhook:
    return _webhook(parse_body(reply, "webhook"))


def _delivery_of(reply: Response) -> WebhookDelivery:
    return _delivery(parse_body(reply, "delivery"))


def _webhooks(reply: Response) -> Page[Webhook]:
    return parse_page(reply, "webhook", _webhook)


def _deliveries(reply: Response) -> Page[WebhookDelivery]:
    return parse_page(reply, "delivery", _delivery)


def _webhook(item: Fields) -> Webhook:
    return Webhook(
        id=item.text("id"),
        name=item.text("name"),
        url=item.text("url"),
        events=item.texts("events"),
        integration=item.text("integration"),
        disabled=item.boolean("disabled"),
        disabled_by=item.text_or_none("disabled_by"),
        failures=item.integer("failures"),
        failing_since=item.time_or_none("failing_since"),
        paused_until=item.time_or_none("paused_until"),
        previous_secret_until=item.time_or_none("previous_secret_until"),
        created_at=item.time("created_at"),
        changed_at=item.time("changed_at"),
        secret=item.text_or_none("secret"),
    )


def _delivery(item: Fields) -> WebhookDelivery:
    return WebhookDelivery(
        id=item.text("id"),
        event_id=item.text("event_id"),
        event_type=item.text("event_type"),
        status=item.text("status"),
        attempts=item.integer("attempts"),
        response_status=item.integer_or_none("response_status"),
        problem=item.text_or_none("problem"),
        next_at=item.time_or_none("next_at"),
        created_at=item.time("created_at"),
        ended_at=item.time_or_none("ended_at"),
    )
