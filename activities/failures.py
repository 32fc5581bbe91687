"""How a failure crosses into Temporal: a code and a sentence, never a cause or a value.

Nothing else turns an exception into an ApplicationError. Stack traces quote source lines
and causes quote messages of libraries, so neither is passed on.
"""

import logging
from datetime import timedelta
from typing import Any

from temporalio.exceptions import ApplicationError, ApplicationErrorCategory
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from evergrant_server.core.errors import Code, Failure, Kind, Retry
from evergrant_server.core.messages import GrantNews, RevocationNews
from evergrant_server.telemetry import say
from evergrant_server.telemetry_names import Event

log = logging.getLogger("evergrant.activities")

# Temporal asks again for these, and nothing else can be done meanwhile. What else fails goes
# back as a result: a workflow that can't do one thing must still hear of the next.
_RAISED = (Code.STORE_UNAVAILABLE, Code.STORE_CONFLICT, Code.SCHEMA_MISMATCH)


def away(failure: Failure) -> bool:
    """True for what the operator repairs and what then goes on: a store, a key, a disk. A seal that is
    broken stays broken."""
    return failure.kind is Kind.PLATFORM_UNAVAILABLE and failure.code is not Code.SEAL_BROKEN


def grant_news(failure: Failure) -> GrantNews:
    """A failure that `core` decides about, as a result. The store's own are raised again."""
    if failure.code in _RAISED:
        raise failure
    return GrantNews(failure=failure.code, retry_after=failure.retry_after)


def revocation_news(failure: Failure) -> RevocationNews:
    """As `grant_news`, for revocation."""
    if failure.code in _RAISED:
        raise failure
    return RevocationNews(failure=failure.code, retry_after=failure.retry_after)


def application_error(failure: Failure) -> ApplicationError:
    """The failure as Temporal sees it; the table says whether it is tried again."""
    platform = failure.kind is Kind.PLATFORM_UNAVAILABLE
    return ApplicationError(
        failure.detail,
        type=failure.code,
        non_retryable=failure.rule.retry is Retry.NEVER,
        next_retry_delay=None
        if failure.retry_after is None
        else timedelta(seconds=max(failure.retry_after, 0.1)),
        category=ApplicationErrorCategory.UNSPECIFIED if platform else ApplicationErrorCategory.BENIGN,
    )


class FailureInterceptor(Interceptor):
    """Puts every activity behind the mapping above."""

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        return _Mapped(next)


class _Mapped(ActivityInboundInterceptor):
    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        try:
            return await self.next.execute_activity(input)
        except Failure as failure:
            error = application_error(failure)
        except Exception as unexpected:
            # The message may quote anything: only the type and the place are kept.
            where = _innermost(unexpected)
            what = f"{input.fn.__name__}: {type(unexpected).__name__} at {where}"
            say(log, logging.ERROR, Event.ACTIVITY_FAILED, what)
            error = ApplicationError(f"unexpected {type(unexpected).__name__}", type=Code.INTERNAL)
        raise error from None


def _innermost(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "unknown"
