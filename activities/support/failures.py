"""How a failure crosses into Temporal: a code and a sentence, never a cause or a value.

No other module makes an ApplicationError of an exception. Stack traces quote source lines
and causes quote messages of libraries, so neither is passed on.
"""

import logging
from datetime import timedelta
from typing import Any

from temporalio.exceptions import ApplicationError, ApplicationErrorCategory
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from evergrant_server.core.errors import ErrorCode, Failure, FailureKind, RetryAdvice
from evergrant_server.core.messages.activities import GrantResult, RevocationResult
from evergrant_server.telemetry.logs import LogEvent, log_event, stack_frames

log = logging.getLogger("evergrant.activities")

# Raised: Temporal runs the activity again. Other failures are results, so that the workflow can
# still handle its next event.
_RETRIED_BY_TEMPORAL = (ErrorCode.STORE_UNAVAILABLE, ErrorCode.STORE_CONFLICT, ErrorCode.SCHEMA_MISMATCH)


def is_temporary_outage(failure: Failure) -> bool:
    """True for a store, a key or a disk that the operator repairs. A broken seal stays broken."""
    return failure.kind is FailureKind.PLATFORM_UNAVAILABLE and failure.code is not ErrorCode.SEAL_BROKEN


def failed_grant_result(failure: Failure) -> GrantResult:
    """The result for a failure that the workflow decides about. Failures of the store are raised."""
    if failure.code in _RETRIED_BY_TEMPORAL:
        raise failure
    return GrantResult(failure=failure.code, retry_after=failure.retry_after)


def revocation_result_of(failure: Failure) -> RevocationResult:
    """As `failed_grant_result`, for revocation."""
    if failure.code in _RETRIED_BY_TEMPORAL:
        raise failure
    return RevocationResult(failure=failure.code, retry_after=failure.retry_after)


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
        except Failure as failure:
            error = to_application_error(failure)
        except Exception as unexpected:
            # the message may quote a secret: only the type and the place are kept
            what = f"{input.fn.__name__}: {type(unexpected).__name__} at {stack_frames(unexpected)[-1]}"
            log_event(log, logging.ERROR, LogEvent.ACTIVITY_FAILED, what)
            error = ApplicationError(f"unexpected {type(unexpected).__name__}", type=ErrorCode.INTERNAL)
        raise error from None
