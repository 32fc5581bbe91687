"""What the gateway notes of a request that failed; the answer, which is its own, has ERROR_HEADER."""

import logging

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.telemetry.alarms import report_broken_authority
from evergrant_server.telemetry.logs import LogEvent, log_event
from evergrant_server.telemetry.traces import set_problem_code

log = logging.getLogger("evergrant.gateway")

ERROR_HEADER = "Evergrant-Error"  # a provider's answers have none


def note_refusal(failure: Failure) -> None:
    """Put it into the span and, where an operator has to act, into the log."""
    set_problem_code(failure.code)
    report_broken_authority(failure)
    if failure.rule.status >= 500:
        log_event(log, logging.WARNING, LogEvent.REQUEST_FAILED, failure.detail, code=failure.code)


def unexpected(request_id: str) -> Failure:
    """For an exception that is no Failure, while it is handled: it goes to the log."""
    log.exception("%s: request %s", LogEvent.UNEXPECTED.value, request_id)
    return Failure(ErrorCode.INTERNAL, request_id=request_id)
