"""Alarms: what an operator must look at, logged as an error and counted."""

import logging

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.telemetry import metrics
from evergrant_server.telemetry.logs import LogEvent, log_event

log = logging.getLogger("evergrant")


def report_broken_authority(failure: Failure) -> None:
    """Log and count a row whose authenticator isn't Evergrant's; does nothing for any other failure."""
    if failure.code is not ErrorCode.AUTHORITY_BROKEN:
        return
    row = failure.context.get("row", "")
    log_event(log, logging.ERROR, LogEvent.AUTHORITY_BROKEN, failure.detail, code=failure.code, object=row)
    metrics.count_broken_authority(failure.context.get("table", "unknown"))
