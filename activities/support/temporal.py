"""What passes between an activity and Temporal: failures, how often it is tried, heartbeats and its clock.

A failure crosses as a code and a sentence, never a cause or a value. No other module makes an
ApplicationError of an exception. Stack traces quote source lines and causes quote messages of
libraries, so neither is passed on.

What an activity tries again is bounded, so that its workflow can take its next event: a revocation may wait.
Temporal repeats an activity that raises, and the workflow handles one event at a time. An exception that
the code doesn't expect, and a change that the store refuses each time, would be repeated for ever. After
the last try they are a result with the failure `internal`: the workflow tries again by its own schedule,
and does what is more urgent before. Each is logged and counted (ADR 0029).
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import datetime, timedelta
from typing import Any, TypeVar

from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from evergrant_server.core.clock import Clock, clock_correction
from evergrant_server.core.connections.grant import TokenSet
from evergrant_server.core.errors import ErrorCode, Failure, FailureKind, RetryAdvice
from evergrant_server.core.lifecycle.schedule import UNSENT_CODES
from evergrant_server.core.messages.activities import (
    ConnectionCall,
    GrantResult,
    LapseResult,
    ReplacedRevocationResult,
    RevocationResult,
)
from evergrant_server.core.messages.base import Message
from evergrant_server.core.messages.jobs import ACTIVITIES
from evergrant_server.core.single_use.attempt import Attempt
from evergrant_server.telemetry import metrics
from evergrant_server.telemetry.logs import LogEvent, log_event, stack_frames

log = logging.getLogger("evergrant.activities")

T = TypeVar("T")
MessageT = TypeVar("MessageT", bound=Message)

# Raised: Temporal runs the activity again. Other failures are results, so that the workflow can
# still handle its next event.
RETRIED_BY_TEMPORAL = (ErrorCode.STORE_UNAVAILABLE, ErrorCode.STORE_CONFLICT, ErrorCode.SCHEMA_MISMATCH)

_LONGEST_WHY = 1000  # characters
_INTERVAL_S = 1.5  # between heartbeats: well inside the time-out of `core.messages.jobs`

# Of a connection's activities. One and two seconds apart; a conflict that is a race ends by the second try.
_MAX_TRIES = {ErrorCode.INTERNAL: 3, ErrorCode.AUTHORITY_BROKEN: 3, ErrorCode.STORE_CONFLICT: 10}

_LastResult = GrantResult | RevocationResult | ReplacedRevocationResult | LapseResult | None
_BY_TYPE: dict[Any, _LastResult] = {
    GrantResult: GrantResult(failure=ErrorCode.INTERNAL),
    RevocationResult: RevocationResult(failure=ErrorCode.INTERNAL),
    ReplacedRevocationResult: ReplacedRevocationResult(failure=ErrorCode.INTERNAL),
    LapseResult: LapseResult(),  # the connect page reopens the link
}
# What each activity of a connection answers after its last try. None: its workflow needs no answer, since
# `revoke_grant` writes what `begin_revocation` does before anything is sent, and the recurring pass starts a
# run for the end of a consent, and requests the export of a history.
_LAST_RESULTS: dict[str, _LastResult] = {
    row.name: _BY_TYPE.get(row.result)
    for row in ACTIVITIES.values()
    if issubclass(row.request, ConnectionCall)
}


def failed_grant_result(failure: Failure) -> GrantResult:
    """The result for a failure that the workflow decides about. Failures of the store are raised."""
    if failure.code in RETRIED_BY_TEMPORAL:
        raise failure
    return GrantResult(failure=failure.code, retry_after=failure.retry_after, why_unsent=why_unsent(failure))


def why_unsent(failure: Failure) -> str | None:
    """What an operator has to allow, with its host, of a request that was refused before it was sent."""
    return failure.detail[:_LONGEST_WHY] if failure.code in UNSENT_CODES else None


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


@contextmanager
def internal_after_last_try() -> Generator[None]:
    """In this block the last try of an unexpected exception raises Failure INTERNAL, to be recorded.

    So does a change that the store refuses each time. Earlier tries raise what they met.
    """
    try:
        yield
    except Exception as error:
        failure = as_failure(error)
        if failure.code is ErrorCode.INTERNAL and (isinstance(error, Failure) or is_last_try(failure)):
            report_internal(failure)
            raise failure from None
        if failure.code is ErrorCode.STORE_CONFLICT and is_last_try(failure):
            refused = Failure(ErrorCode.INTERNAL, f"the store refuses the change each time: {failure.detail}")
            report_internal(refused)
            raise refused from None
        raise


def as_failure(error: Exception) -> Failure:
    """The failure; INTERNAL with type and place for any other exception, whose text may quote a secret."""
    if isinstance(error, Failure):
        return error
    name, frames = type(error).__name__, stack_frames(error)
    place = frames[-1] if frames else "an unknown place"
    return Failure(ErrorCode.INTERNAL, f"unexpected {name}", error=name, place=place)


def is_last_try(failure: Failure) -> bool:
    limit = _MAX_TRIES.get(failure.code)
    return limit is not None and activity.info().attempt >= limit


def has_last_result(failure: Failure) -> bool:
    """True when the activity answers with `last_result` instead of raising this failure."""
    return is_last_try(failure) and activity.info().activity_type in _LAST_RESULTS


def last_result() -> _LastResult:
    return _LAST_RESULTS[activity.info().activity_type]


def report_internal(failure: Failure) -> None:
    """Log and count a failure that only the code can explain."""
    info = activity.info()
    place = failure.context.get("place")
    detail = f"{info.activity_type}: {failure.detail}" + (f" at {place}" if place else "")
    log_event(
        log, logging.ERROR, LogEvent.ACTIVITY_FAILED, detail, code=failure.code, object=info.workflow_id or ""
    )
    metrics.count_unexpected(info.activity_type, failure.context.get("error", failure.code.value))


@asynccontextmanager
async def heartbeating(progress: Callable[[], Message] | None = None) -> AsyncIterator[None]:
    """Heartbeat for as long as the block runs, with its `progress` if there is any. An activity that ends
    within the first interval sends none."""

    async def beat() -> None:
        while True:
            await asyncio.sleep(_INTERVAL_S)
            activity.heartbeat(*([] if progress is None else [progress()]))

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
