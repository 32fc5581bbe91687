"""Bounds what an activity tries again, so that its workflow can take its next event: a revocation may wait.

Temporal repeats an activity that raises, and the workflow handles one event at a time. An exception that
the code doesn't expect, and a change that the store refuses each time, would be repeated for ever. After
the last try they are a result with the failure `internal`: the workflow tries again by its own schedule,
and does what is more urgent before. Each is logged and counted (ADR 0029).
"""

import logging
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from temporalio import activity

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.messages.activities import (
    ConnectionCall,
    GrantResult,
    LapseResult,
    ReplacedRevocationResult,
    RevocationResult,
)
from evergrant_server.core.messages.jobs import ACTIVITIES
from evergrant_server.telemetry import metrics
from evergrant_server.telemetry.logs import LogEvent, log_event, stack_frames

log = logging.getLogger("evergrant.activities")

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
    what = f"{info.activity_type}: {failure.detail}" + (f" at {place}" if place else "")
    log_event(
        log, logging.ERROR, LogEvent.ACTIVITY_FAILED, what, code=failure.code, object=info.workflow_id or ""
    )
    metrics.count_unexpected(info.activity_type, failure.context.get("error", failure.code.value))
