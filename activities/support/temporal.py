"""What passes between an activity and Temporal: failures, heartbeats and its clock.

A failure crosses as a code and a sentence, never a cause or a value. No other module makes an
ApplicationError of an exception. Stack traces quote source lines and causes quote messages of
libraries, so neither is passed on.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta
from typing import Any, TypeVar

from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from activities.support.bounded_tries import (
    as_failure,
    has_last_result,
    is_last_try,
    last_result,
    report_internal,
)
from evergrant_server.core.clock import Clock, clock_correction
from evergrant_server.core.connections.grant import TokenSet
from evergrant_server.core.errors import ErrorCode, Failure, FailureKind, RetryAdvice
from evergrant_server.core.messages.activities import GrantResult
from evergrant_server.core.messages.base import Message
from evergrant_server.core.single_use.attempt import Attempt

T = TypeVar("T")
MessageT = TypeVar("MessageT", bound=Message)

# Raised: Temporal runs the activity again. Other failures are results, so that the workflow can
# still handle its next event.
RETRIED_BY_TEMPORAL = (ErrorCode.STORE_UNAVAILABLE, ErrorCode.STORE_CONFLICT, ErrorCode.SCHEMA_MISMATCH)

_INTERVAL_S = 1.5  # between heartbeats: well inside the time-out of `core.messages.jobs`


def failed_grant_result(failure: Failure) -> GrantResult:
    """The result for a failure that the workflow decides about. Failures of the store are raised."""
    if failure.code in RETRIED_BY_TEMPORAL:
        raise failure
    return GrantResult(failure=failure.code, retry_after=failure.retry_after)


def to_application_error(failure: Failure) -> ApplicationError:
    """The failure as Temporal sees it; the failure table says whether it is retried."""
    platform = failure.kind is FailureKind.PLATFORM_UNAVAILABLE
    return ApplicationError(
        failure.detail,
        type=failure.code,
        non_retryable=failure.rule.retry is RetryAdvice.NEVER,
        next_retry_delay=None
        if failure.retry_after is None
        else timedelta(seconds=max(failure.retry_after, 0.1)),
        category=ApplicationErrorCategory.UNSPECIFIED if platform else ApplicationErrorCategory.BENIGN,
    )


class FailureInterceptor(Interceptor):
    """Maps the failures of every activity."""

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        return _FailureMapper(next)


class _FailureMapper(ActivityInboundInterceptor):
    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        try:
            return await self.next.execute_activity(input)
        except Exception as error:
            failure = as_failure(error)
        if failure.code is ErrorCode.INTERNAL or is_last_try(failure):
            report_internal(failure)
        if has_last_result(failure):
            return last_result()
        raise to_application_error(failure) from None


@asynccontextmanager
async def heartbeating(progress: Callable[[], Message] | None = None) -> AsyncIterator[None]:
    """Heartbeat for as long as the block runs, with its `progress` if there is any."""

    async def beat() -> None:
        while True:
            activity.heartbeat(*([] if progress is None else [progress()]))
            await asyncio.sleep(_INTERVAL_S)

    task = asyncio.create_task(beat())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def last_heartbeat(kind: type[MessageT]) -> MessageT | None:
    """How far the try before came; None at the first try."""
    details = activity.info().heartbeat_details
    return kind.model_validate(details[0]) if details else None


async def to_its_end(task: asyncio.Task[T]) -> T:
    """Await what a worker has begun, also when its workflow cancels it: that is for what waits in a queue.

    Time-outs and a shutdown cancel it, as any activity.
    """
    asked_before = False
    while True:
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise
            details = activity.cancellation_details()
            if asked_before or details is None or not details.cancel_requested:
                task.cancel()
            asked_before = True


def obtained_at(clock: Clock, attempt: Attempt, tokens: TokenSet) -> datetime:
    """When tokens that have just arrived were issued, by the median of three clocks where all are known."""
    temporal = activity.info().started_time - attempt.opened_at if activity.in_activity() else None
    provider = None if tokens.server_time is None else tokens.server_time - clock.now()
    return attempt.tokens_valid_from(tokens.expires_in) + clock_correction(temporal, provider)


def earlier_now(clock: Clock) -> datetime:
    """The earlier of the two clocks. Use it before declaring a token expired."""
    return min(_known_times(clock))


def later_now(clock: Clock) -> datetime:
    """The later of local and Temporal time: a safe base for deadlines."""
    return max(_known_times(clock))


def _known_times(clock: Clock) -> tuple[datetime, ...]:
    now = clock.now()
    return (now, activity.info().started_time) if activity.in_activity() else (now,)
