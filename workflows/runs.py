"""What a run of any workflow is made of: the message that begins it, calls of activities, its provenance."""

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from temporalio import workflow
from temporalio.common import Priority, RetryPolicy

with workflow.unsafe.imports_passed_through():
    from evergrant_server.core.messages.base import Message, Provenance
    from evergrant_server.core.messages.jobs import Activity
    from evergrant_server.core.messages.received import is_received

RequestT = TypeVar("RequestT", bound=Message)
ResultT = TypeVar("ResultT")
T = TypeVar("T")

_AFTER_TOKENS = Priority(priority_key=4)  # 3 is the default; the fairness key is that of the run


def init(method: Callable[..., None]) -> Callable[..., None]:
    """As `workflow.init`, for an `__init__` that is called only with an input that can be read.

    Without it the instance stays empty, and the worker's interceptor fails the run: an `__init__` that raised
    would leave the SDK's coroutine of the run behind.
    """

    @functools.wraps(method)
    def checked(self: Any, *received: Any) -> None:
        if is_received(received):
            method(self, *received)

    return workflow.init(checked)


async def call(activity: Activity[RequestT, ResultT], request: RequestT) -> ResultT:
    """Have a worker do it, within the limits of the activity's row, and wait for the result."""
    return await workflow.execute_activity(activity.name, request, **_options(activity, request))


def begin(activity: Activity[RequestT, ResultT], request: RequestT) -> workflow.ActivityHandle[ResultT]:
    """Have a worker begin it. One that is cancelled is waited for until it has ended."""
    waits = workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED
    options = _options(activity, request)
    return workflow.start_activity(activity.name, request, cancellation_type=waits, **options)


def provenance() -> Provenance:
    """Where this run is now; an activity records it with what it does."""
    info = workflow.info()
    return Provenance(
        workflow_id=info.workflow_id, run_id=info.run_id, event_id=info.get_current_history_length()
    )


async def shielded_from_cancellation(run: Coroutine[Any, Any, T], cancel_requested: Callable[[], None]) -> T:
    """The result of `run`, which no cancellation reaches; each calls `cancel_requested` instead."""
    task = asyncio.create_task(run)
    while True:
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():  # the run is being evicted from the worker's memory
                raise
            cancel_requested()


def _options(activity: Activity[Any, Any], request: Any) -> dict[str, Any]:
    limits, summary = activity.limits, activity.summary
    return {
        "result_type": activity.result,
        "summary": summary if isinstance(summary, str) else summary(request),
        "start_to_close_timeout": limits.timeout,
        "heartbeat_timeout": limits.heartbeat,
        "retry_policy": RetryPolicy(
            initial_interval=limits.first_wait,
            maximum_interval=limits.longest_wait,
            maximum_attempts=limits.tries,
        ),
        "priority": Priority.default if activity.urgent else _AFTER_TOKENS,
    }
