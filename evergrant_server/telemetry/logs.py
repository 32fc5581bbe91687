"""Logs: one line each, with ids and codes. Libraries log from WARNING on.

An exception is logged as its class and its frames. Its text is left out: a library may quote a
token in it, and a validation error quotes the input.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from enum import StrEnum
from traceback import walk_tb
from types import TracebackType
from typing import Any, TextIO

from opentelemetry import trace

_QUIET_LIBRARIES = (
    "httpx2", "httpcore2", "authlib", "asyncio", "sqlalchemy", "alembic", "_granian",
    "opentelemetry", "urllib3", "requests",
    "azure", "boto3", "botocore", "google", "hvac", "msal",  # of key services
)  # fmt: skip

_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class LogEvent(StrEnum):
    """Every event that the server logs; the message begins with it. docs/telemetry.md explains each."""

    ACTIVITY_FAILED = "activity failed"
    ANCHOR_FAILED = "anchor failed"
    ANCHOR_LATE = "anchor late"
    BULK_READ = "bulk read"
    BREAK_GLASS = "break-glass session"
    AUDIT_STREAM_FAILED = "audit stream failed"
    AUTHORITY_BROKEN = "authority broken"
    CALLBACK_REFUSED = "callback refused"
    CERTIFICATE_UNREADABLE = "certificate unreadable"
    CHECKPOINT_FAILED = "checkpoint failed"
    COMMIT_WAITS = "commit waits"
    CREDENTIAL_ECHOED = "credential echoed"
    DETECTED = "detected"
    DISCOVERY_FAILED = "discovery failed"
    ENSURE_FRESH_FAILED = "ensure_fresh failed"
    FOREIGN_ACTIVITY = "foreign activity"
    FOREIGN_WORKFLOW = "foreign workflow"
    HISTORY_UNREADABLE = "history unreadable"
    ISSUER_KEYS_UNREAD = "issuer keys unread"
    JOURNAL_FAILED = "journal failed"
    JOURNAL_REPLAYED = "journal replayed"
    JOURNAL_STUCK = "journal stuck"
    KEYS_HELD = "keys held"
    KEYS_LACKING = "keys lacking"
    KEY_SERVICE_FAILED = "key service failed"
    MESSAGE_TOO_LATE = "message too late"
    MESSAGE_UNREADABLE = "message unreadable"
    NOT_COMPARED = "not compared"
    OUTBOX_STUCK = "outbox stuck"
    OUTCOMES_LOST = "outcomes lost"
    PROTOCOL_FAILED = "protocol failed"
    PROVIDER_REFUSED = "provider refused"
    REDIS_AWAY = "redis away"
    REGION_AWAY = "region away"
    REGION_BACK = "region back"
    REQUEST_FAILED = "request failed"
    ROW_UNREADABLE = "row unreadable"
    SECURITY_EVENT_REFUSED = "security event refused"
    SCHEDULE_MISSING = "schedule missing"
    STORE_BEHIND = "store behind"
    STORY_UNREADABLE = "story unreadable"
    STUCK_WORKFLOW = "stuck workflow"
    SUBJECT_MISMATCH = "subject mismatch"
    TEMPORAL_NOT_READY = "temporal not ready"
    TOKEN_REPLAYED = "token replayed"
    UNEXPECTED = "unexpected error"


def configure_logging(level: str, form: str = "text", stream: TextIO | None = None) -> None:
    """Log to standard error, as text or as one JSON object per line.

    Libraries log from WARNING on: at DEBUG they print requests.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in _QUIET_LIBRARIES:
        logging.getLogger(name).setLevel(logging.WARNING)


def log_event(
    logger: logging.Logger, level: int, event: LogEvent, detail: str = "", *, code: str = "", object: str = ""
) -> None:
    """Log an event. `detail` must hold no secret; `object` is an id."""
    message = f"{event.value}: {detail}" if detail else event.value
    logger.log(level, message, extra={"code": code, "object": object}, stacklevel=2)


def stack_frames(error: BaseException) -> list[str]:
    """File, line and function of each frame, the innermost last."""
    return [
        f"{frame.f_code.co_filename}:{line} {frame.f_code.co_name}"
        for frame, line in walk_tb(error.__traceback__)
    ]


class TextFormatter(logging.Formatter):
    """Text: time, level, logger, message, then code and id."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        record.exc_text = None  # another handler may have put a full traceback there
        line = super().format(record)
        tags = [tag for field in ("code", "object") if (tag := getattr(record, field, None))]
        return f"{line} [{' '.join(tags)}]" if tags else line

    def formatException(self, ei: _ExcInfo) -> str:  # noqa: N802 the standard library calls it so
        error = ei[1]
        frames = [] if error is None else [f"    {frame}" for frame in stack_frames(error)]
        return "" if error is None else "\n".join([f"  {type(error).__name__}", *frames])

    def formatStack(self, stack_info: str) -> str:  # noqa: N802 the standard library calls it so
        return ""  # it quotes source lines


class JsonFormatter(logging.Formatter):
    """One JSON object; docs/telemetry.md lists its members. Those without a value are left out."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        span = trace.get_current_span().get_span_context()
        error = record.exc_info[1] if record.exc_info else None
        members: dict[str, Any] = {
            "time": at.replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "trace_id": trace.format_trace_id(span.trace_id) if span.is_valid else None,
            "span_id": trace.format_span_id(span.span_id) if span.is_valid else None,
            "code": getattr(record, "code", None),
            "object": getattr(record, "object", None),
            "exception": type(error).__name__ if error is not None else None,
            "stack": stack_frames(error) if error is not None else None,
        }
        return json.dumps({name: value for name, value in members.items() if value})
