"""A webhook's workflow under test: waking it as the relay does, and waiting for its rounds."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from temporalio.client import Client, WorkflowHandle

from evergrant_server.core.ids import Tenant, WebhookId, new_id
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.names import SignalName, WorkflowName, webhook_workflow_id
from evergrant_server.core.messages.webhooks import DeliveryRound, WakeWebhook, WebhookStart
from tests.workflows.connection_runs import a_worker

ASKED = RequestContext(by="app:boss")
TENANT = Tenant("acme")


class Told:
    """A webhook's workflow under test."""

    def __init__(self, client: Client, queue: str, webhook: WebhookId) -> None:
        self._client, self._queue, self.webhook = client, queue, webhook

    @property
    def handle(self) -> WorkflowHandle[Any, DeliveryRound]:
        return self._client.get_workflow_handle(webhook_workflow_id(TENANT, self.webhook))

    async def wake(self, *, at_once: bool = False) -> WorkflowHandle[Any, DeliveryRound]:
        """What the relay does."""
        order = WakeWebhook(tenant=TENANT, webhook_id=self.webhook, at_once=at_once, context=ASKED)
        return await self._client.start_workflow(
            WorkflowName.WEBHOOK_DELIVERY,
            WebhookStart(tenant=TENANT, webhook_id=self.webhook),
            id=webhook_workflow_id(TENANT, self.webhook),
            task_queue=self._queue,
            start_signal=SignalName.WAKE_WEBHOOK,
            start_signal_args=[order],
            result_type=DeliveryRound,
        )


@asynccontextmanager
async def delivering(
    client: Client, activities: list[Any], webhook: WebhookId | None = None
) -> AsyncIterator[Told]:
    """A worker on a queue of its own, and a webhook it delivers to."""
    webhook = webhook or WebhookId(new_id("whk"))
    queue = f"queue-{webhook}"
    async with a_worker(client, activities, queue):
        yield Told(client, queue, webhook)
