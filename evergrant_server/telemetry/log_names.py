"""The fields and events of the server's log, each with its explanation for docs/telemetry.md."""

from enum import StrEnum


class ExplainedName(StrEnum):
    """A name with an explanation."""

    explanation: str

    def __new__(cls, name: str, explanation: str) -> "ExplainedName":
        member = str.__new__(cls, name)
        member._value_ = name
        member.explanation = explanation
        return member


class LogField(ExplainedName):
    """The members of a JSON log line. Members after `message` are left out when they have no value."""

    TIME = "time", "RFC 3339, UTC"
    LEVEL = "level", "DEBUG, INFO, WARNING or ERROR"
    LOGGER = "logger", "the logger's name"
    MESSAGE = "message", "one sentence"
    TRACE_ID = "trace_id", "the W3C trace id, 32 hex digits"
    SPAN_ID = "span_id", "the span, 16 hex digits"
    CODE = "code", "a failure's code (errors.md)"
    OBJECT = "object", "the id of the object concerned"
    EXCEPTION = "exception", "the exception's class; its text is left out because it may quote a secret"
    STACK = "stack", "file, line and function of each frame; no source lines, no values"


class LogEvent(ExplainedName):
    """Every event that the server logs; the message begins with it."""

    ACTIVITY_FAILED = "activity failed", "an activity ended with an unexpected exception"
    CALLBACK_REFUSED = "callback refused", "a callback named no integration"
    DISCOVERY_FAILED = "discovery failed", "reading an issuer's metadata ended with an unexpected exception"
    ENSURE_FRESH_FAILED = (
        "ensure_fresh failed",
        "the update `ensure_fresh` failed unexpectedly; a valid token is served anyway",
    )
    HISTORY_UNREADABLE = "history unreadable", "Temporal doesn't have a requested history"
    JOURNAL_FAILED = (
        "journal failed",
        "an answer couldn't be written to the journal; it was committed without it",
    )
    JOURNAL_REPLAYED = "journal replayed", "an answer from a crashed worker's journal is in the store now"
    JOURNAL_STUCK = (
        "journal stuck",
        "a journal entry couldn't be replayed and is kept; logged once for each reason",
    )
    MESSAGE_TOO_LATE = "message too late", "a message arrived after its workflow had ended"
    NOT_COMPARED = (
        "not compared",
        "workflows didn't answer the query for their generation; the next pass asks again",
    )
    OUTBOX_STUCK = "outbox stuck", "a round of the relay failed; the next one tries again"
    PROTOCOL_FAILED = (
        "protocol failed",
        "sending a credential or handling its answer ended with an unexpected exception",
    )
    REQUEST_FAILED = "request failed", "a request was answered with a status of 500 or more"
    SECURITY_EVENT_REFUSED = (
        "security event refused",
        "a receiver refused a security event; gives the error code of RFC 8935",
    )
    SCHEDULE_MISSING = (
        "schedule missing",
        "a Temporal Schedule couldn't be declared; the worker tries again within minutes",
    )
    STORE_BEHIND = (
        "store behind",
        "a workflow knows a newer generation than the store, which was restored from a backup",
    )
    TEMPORAL_NOT_READY = "temporal not ready", "`/readyz` couldn't reach Temporal"
    UNEXPECTED = (
        "unexpected error",
        "a request ended with an unexpected exception; the response has the code `internal`",
    )
