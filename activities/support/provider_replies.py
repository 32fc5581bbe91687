"""What a provider said about a request that it refused, in the log and in the audit log."""

import logging
from typing import Any

from evergrant_server.core.errors import Failure
from evergrant_server.core.provider_words import ReplyFailure, words_in
from evergrant_server.telemetry.logs import LogEvent, log_event

log = logging.getLogger("evergrant.activities")


def log_words(failure: Failure, object_id: str) -> dict[str, Any]:
    """Log what the provider said, if the failure follows from a reply. Returns it for an audit record."""
    if isinstance(failure, ReplyFailure) and failure.said is not None:
        words = failure.said
        text = f"status {words.status}, {words}" if str(words) else f"status {words.status}"
        log_event(log, logging.INFO, LogEvent.PROVIDER_REFUSED, text, code=failure.code, object=object_id)
    return words_in(failure)
