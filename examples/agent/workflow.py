"""The workflow: waits for a consent, asks for one call, sleeps, waits for the word, and makes the call."""

from datetime import timedelta

from evergrant.temporal import ensure
from temporalio import workflow
from temporalio.common import RetryPolicy

from examples.agent.messages import Note, NoteOrder

_SHORTLY = timedelta(minutes=1)
_ONCE = RetryPolicy(maximum_attempts=1)  # what was approved once is made at most once


@workflow.defn
class TakesNote:
    """Its worker may be killed at any line: another one goes on there."""

    @workflow.run
    async def run(self, order: NoteOrder) -> str:
        days = timedelta(days=3)
        ready = await ensure(order.integration, order.subject, hold=False, timeout=days)
        note = Note(ready.connection_id, order.note)
        asked = await workflow.execute_activity(
            "ask", note, result_type=str, start_to_close_timeout=_SHORTLY, summary=order.note
        )
        await workflow.sleep(order.write_in_s, summary="until the note is due")
        await workflow.execute_activity(
            "decision", asked, start_to_close_timeout=_SHORTLY, schedule_to_close_timeout=days,
            retry_policy=RetryPolicy(maximum_interval=_SHORTLY),
        )  # fmt: skip
        return await workflow.execute_activity(
            "write", note, result_type=str, start_to_close_timeout=_SHORTLY, retry_policy=_ONCE
        )
