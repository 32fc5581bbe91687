"""Alarms: what an operator must look at, logged as an error and counted."""

import logging
from collections.abc import Awaitable
from typing import TypeVar

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.oauth.authorizations import FamilyEnd, TokenFamily
from evergrant_server.telemetry import metrics
from evergrant_server.telemetry.logs import LogEvent, log_event

log = logging.getLogger("evergrant")

Row = TypeVar("Row")


def report_broken_authority(failure: Failure) -> None:
    """Log and count a row whose authenticator isn't Evergrant's; does nothing for any other failure."""
    if failure.code is not ErrorCode.AUTHORITY_BROKEN:
        return
    row = failure.context.get("row", "")
    log_event(log, logging.ERROR, LogEvent.AUTHORITY_BROKEN, failure.detail, code=failure.code, object=row)
    metrics.count_broken_authority(failure.context.get("table", "unknown"))


async def unless_broken(reading: Awaitable[Row | None]) -> Row | None:
    """The row that is read; None, with an alarm, for one that was changed by hand."""
    try:
        return await reading
    except Failure as failure:
        if failure.code is not ErrorCode.AUTHORITY_BROKEN:
            raise
        report_broken_authority(failure)
        return None


def report_replayed_token(family: TokenFamily, why: FamilyEnd) -> None:
    """Log and count that a used code or refresh token came again, which ended its family: it was stolen, or a
    client kept it for too long."""
    event = f"{why.value}: a client of the app {family.app_id}, which acted for a subject"
    log_event(log, logging.ERROR, LogEvent.TOKEN_REPLAYED, event, object=family.id)
    metrics.count(metrics.TOKEN_FAMILIES, why.value)
