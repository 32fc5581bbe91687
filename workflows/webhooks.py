"""The deliveries of one webhook: rounds, and the waits between them.

One workflow for each webhook, not for each delivery: one round at a time calls the endpoint, and an
endpoint that is down costs a timer. The deliveries are in the store; history has the counts. The
workflow ends when it has been idle for a while, and the next event starts it again.
"""

from datetime import timedelta

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from evergrant_server.core.messages import maintenance as m
    from evergrant_server.core.messages.jobs import DELIVER_WEBHOOKS
    from evergrant_server.core.messages.names import SignalName, WorkflowName
    from evergrant_server.core.webhooks import IDLE_TIMEOUT, LONGEST_HISTORY
    from workflows import runs


@workflow.defn(name=WorkflowName.WEBHOOK_DELIVERY)
class WebhookDeliveryWorkflow:
    @runs.init
    def __init__(self, start: m.WebhookStart) -> None:
        self._woken = self._at_once = False

    @workflow.run
    async def run(self, start: m.WebhookStart) -> m.DeliveryRound:
        delivered = failed = 0
        while True:
            self._woken = self._at_once = False
            request = m.DeliverWebhooks(tenant=start.tenant, webhook_id=start.webhook_id)
            done = await runs.call(DELIVER_WEBHOOKS, request)
            delivered, failed = delivered + done.delivered, failed + done.failed
            self._show(done, delivered, failed)
            if not await self._has_more(done):
                return m.DeliveryRound(delivered=delivered, failed=failed)
            if self._is_long_enough():
                workflow.continue_as_new(start)

    @workflow.signal(name=SignalName.WAKE_WEBHOOK)
    def wake(self, signal: m.WakeWebhook) -> None:
        self._woken = True
        self._at_once = self._at_once or signal.at_once

    async def _has_more(self, done: m.DeliveryRound) -> bool:
        """Wait for the next delivery or message; False when the workflow has been idle for long enough."""
        left = IDLE_TIMEOUT if done.next_at is None else done.next_at - workflow.now()
        if done.wait_s is not None:  # the worker's clock may differ from Temporal's
            left = timedelta(seconds=done.wait_s)
        if left <= timedelta(0):
            return True  # a round was full
        try:
            await workflow.wait_condition(
                lambda: self._is_due_now(done) or self._is_long_enough(),
                timeout=left,
                timeout_summary=_timer_summary(done),
            )
        except TimeoutError:
            return done.next_at is not None or self._is_due_now(done)
        return True

    def _is_due_now(self, done: m.DeliveryRound) -> bool:
        """While the endpoint is paused, only a delivery that an admin asked for matters."""
        return self._at_once or (self._woken and not done.paused)

    def _is_long_enough(self) -> bool:
        info = workflow.info()
        return info.is_continue_as_new_suggested() or info.get_current_history_length() >= LONGEST_HISTORY

    def _show(self, done: m.DeliveryRound, delivered: int, failed: int) -> None:
        at = "" if done.next_at is None else f" at {done.next_at.isoformat()}"
        lines = [
            f"- next: {_timer_summary(done)}{at}",
            f"- this run: {delivered} delivered, {failed} tries failed",
        ]
        workflow.set_current_details("\n".join(lines))


def _timer_summary(done: m.DeliveryRound) -> str:
    if done.next_at is None:
        return "end when idle"
    return "try the endpoint again" if done.paused else "next delivery due"
