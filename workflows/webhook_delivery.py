"""What one webhook is told: rounds of deliveries, and the waits between them.

One workflow for each webhook, not for each delivery: however many wait, an endpoint is called by
one round at a time, and one that is down costs a timer. What waits is in the store; history says
how many got through. It ends when nothing has waited for a while, and the next event starts it.
"""

from datetime import timedelta

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from evergrant_server.core.messages import webhooks as m
    from evergrant_server.core.webhooks import IDLE_TIMEOUT, LONGEST_HISTORY
    from workflows import activity_calls


@workflow.defn(name=m.WEBHOOK_WORKFLOW)
class WebhookDeliveryWorkflow:
    @workflow.init
    def __init__(self, start: m.WebhookStart) -> None:
        self._woken = self._at_once = False

    @workflow.run
    async def run(self, start: m.WebhookStart) -> m.DeliveryRound:
        delivered = failed = 0
        while True:
            self._woken = self._at_once = False
            done = await activity_calls.deliver_due(
                m.DeliverWebhooks(tenant=start.tenant, webhook_id=start.webhook_id)
            )
            delivered, failed = delivered + done.delivered, failed + done.failed
            self._show(done, delivered, failed)
            if not await self._look_again(done):
                return m.DeliveryRound(delivered=delivered, failed=failed)
            if self._long_enough():
                workflow.continue_as_new(start)

    @workflow.signal(name=m.SIGNAL_WAKE)
    def wake(self, it: m.WakeWebhook) -> None:
        self._woken = True
        self._at_once = self._at_once or it.at_once

    async def _look_again(self, done: m.DeliveryRound) -> bool:
        """Wait for the next moment or message that matters; False when there is none."""
        left = IDLE_TIMEOUT if done.next_at is None else done.next_at - workflow.now()
        if done.wait_s is not None:  # a worker whose clock is behind names moments that are over here
            left = timedelta(seconds=done.wait_s)
        if left <= timedelta(0):
            return True  # a round was full: a timer would only make the rest wait
        try:
            await workflow.wait_condition(
                lambda: self._matters(done) or self._long_enough(),
                timeout=left,
                timeout_summary=_why(done),
            )
        except TimeoutError:
            return done.next_at is not None or self._matters(done)
        return True

    def _matters(self, done: m.DeliveryRound) -> bool:
        """Whatever happens while an endpoint is left alone can wait, unless a person asked for it."""
        return self._at_once or (self._woken and not done.paused)

    def _long_enough(self) -> bool:
        info = workflow.info()
        return info.is_continue_as_new_suggested() or info.get_current_history_length() >= LONGEST_HISTORY

    def _show(self, done: m.DeliveryRound, delivered: int, failed: int) -> None:
        at = "" if done.next_at is None else f" at {done.next_at.isoformat()}"
        lines = [f"- next: {_why(done)}{at}", f"- this run: {delivered} delivered, {failed} tries failed"]
        workflow.set_current_details("\n".join(lines))


def _why(done: m.DeliveryRound) -> str:
    if done.next_at is None:
        return "nothing waits"
    return "try the endpoint again" if done.paused else "next delivery due"
