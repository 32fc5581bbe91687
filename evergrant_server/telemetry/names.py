"""The names of everything that telemetry says: the one source for code, docs and tests.

Names follow OpenTelemetry's semantic conventions where those have one, and begin with
`evergrant.` where they don't. `docs/telemetry.md` lists the same, which a test compares.
"""

from dataclasses import dataclass
from enum import StrEnum

# --- attributes ---------------------------------------------------------------------------

HTTP_METHOD = "http.request.method"
HTTP_STATUS = "http.response.status_code"
HTTP_ROUTE = "http.route"
SERVER_ADDRESS = "server.address"
SERVER_PORT = "server.port"
ERROR_TYPE = "error.type"
CODE = "evergrant.code"
OUTCOME = "evergrant.outcome"
PROVIDER = "evergrant.provider"

ATTRIBUTES = {
    HTTP_METHOD: "the method",
    HTTP_STATUS: "the status that was answered",
    HTTP_ROUTE: "the route's template, never the path: a path may hold a connect link",
    SERVER_ADDRESS: "the provider's or receiver's host, without path or query",
    SERVER_PORT: "the port there",
    ERROR_TYPE: "a failure's code, a status from 500 on, or the name of an exception's class",
    CODE: "the code of the problem document that was answered (errors.md)",
    OUTCOME: "how it ended: a word of success, or a failure's code (errors.md); a delivery's problem",
    PROVIDER: "the provider's name in the catalogue",
}

# --- spans --------------------------------------------------------------------------------


@dataclass(frozen=True)
class SpanName:
    """`name` is how the span is called; parts in braces vary."""

    name: str
    kind: str
    emitted_by: str
    attributes: tuple[str, ...] = ()


SERVER_SPAN = SpanName(
    "{method} {route}",
    "server",
    "the API, around every request",
    (HTTP_METHOD, HTTP_ROUTE, HTTP_STATUS, CODE, ERROR_TYPE),
)
CLIENT_SPAN = SpanName(
    "{method}",
    "client",
    "the worker, around every request to a provider or a webhook's receiver",
    (HTTP_METHOD, SERVER_ADDRESS, SERVER_PORT, HTTP_STATUS, ERROR_TYPE),
)
_TEMPORAL = ("temporalWorkflowID", "temporalRunID", "temporalActivityID")
SPANS = (
    SERVER_SPAN,
    SpanName("StartWorkflow:{workflow}", "client", "the relay, or the API's discovery", _TEMPORAL[:1]),
    SpanName("SignalWorkflow:{signal}", "client", "the relay", _TEMPORAL[:1]),
    SpanName("StartWorkflowUpdate:{update}", "client", "the API, asking a workflow", _TEMPORAL[:1]),
    SpanName("QueryWorkflow:{query}", "client", "the API, with `live`", _TEMPORAL[:1]),
    SpanName("RunWorkflow:{workflow}", "server", "the worker: a whole run, ended with it", _TEMPORAL[:2]),
    SpanName("HandleSignal:{signal}", "server", "the worker, in the workflow", _TEMPORAL[:2]),
    SpanName("ValidateUpdate:{update}", "server", "the worker, in the workflow", _TEMPORAL[:2]),
    SpanName("HandleUpdate:{update}", "server", "the worker, in the workflow", _TEMPORAL[:2]),
    SpanName("HandleQuery:{query}", "server", "the worker, in the workflow", _TEMPORAL[:2]),
    SpanName("SignalExternalWorkflow:{signal}", "client", "the worker, answering another workflow", ()),
    SpanName("StartActivity:{activity}", "client", "the worker, in the workflow", _TEMPORAL[:2]),
    SpanName("RunActivity:{activity}", "server", "the worker", _TEMPORAL),
    CLIENT_SPAN,
)

# --- metrics ------------------------------------------------------------------------------


@dataclass(frozen=True)
class MetricName:
    """`unit` is UCUM's; a unit in braces counts things. `buckets` make it a histogram."""

    name: str
    kind: str  # counter, histogram, gauge
    unit: str
    description: str
    attributes: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


_LIFETIME_BUCKETS = (0, 30, 60, 300, 600, 1800, 3600, 7200, 14400, 28800, 86400, 604800, 2592000)
_CALL_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30)
_INSTANT_BUCKETS = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.1, 1, 10, 60)
_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 500)

LEASES = MetricName(
    "evergrant.lease.count", "counter", "{lease}", "requests for a lease", (PROVIDER, OUTCOME)
)
TIME_TO_EXPIRY = MetricName(
    "evergrant.lease.time_to_expiry",
    "histogram",
    "s",
    "how long a leased token is still valid; tokens without an expiry are left out",
    (PROVIDER,),
    _LIFETIME_BUCKETS,
)
REFRESHES = MetricName(
    "evergrant.refresh.count", "counter", "{refresh}", "refreshes that reached the provider's turn",
    (PROVIDER, OUTCOME),
)  # fmt: skip
REFRESH_TIME = MetricName(
    "evergrant.refresh.duration",
    "histogram",
    "s",
    "from the request to the provider to the commit of its answer",
    (PROVIDER, OUTCOME),
    _CALL_BUCKETS,
)
EXCHANGES = MetricName(
    "evergrant.code_exchange.count", "counter", "{exchange}", "authorization codes spent", (PROVIDER, OUTCOME)
)
REVOCATIONS = MetricName(
    "evergrant.revocation.count", "counter", "{revocation}", "tries to revoke a grant", (PROVIDER, OUTCOME)
)
DELIVERIES = MetricName(
    "evergrant.webhook.delivery.count", "counter", "{delivery}", "tries to deliver an event to a webhook",
    (OUTCOME,),
)  # fmt: skip
SECURITY_EVENTS = MetricName(
    "evergrant.security_event.count", "counter", "{event}", "security events and hooks that providers sent",
    (OUTCOME,),
)  # fmt: skip
OUTBOX_DEPTH = MetricName(
    "evergrant.outbox.depth", "gauge", "{message}", "messages that wait for delivery, postponed ones included"
)
OUTBOX_AGE = MetricName(
    "evergrant.outbox.oldest_age", "gauge", "s", "how long the oldest of them has waited; 0 when none waits"
)
AUDIT_BATCH = MetricName(
    "evergrant.audit.batch.size", "histogram", "{record}", "leases committed to the audit log together",
    (), _BATCH_BUCKETS,
)  # fmt: skip
CIRCUITS_OPEN = MetricName(
    "evergrant.circuit.open",
    "gauge",
    "{integration}",
    "integrations that this worker leaves alone because their provider fails",
    (PROVIDER,),
)
JOURNAL_WAITING = MetricName(
    "evergrant.journal.waiting", "gauge", "{entry}", "answers in this host's journals that the store hasn't"
)
JOURNAL_SET_ASIDE = MetricName(
    "evergrant.journal.set_aside", "gauge", "{entry}", "journal entries of this host that can't be read"
)
JOURNAL_REPLAYED = MetricName(
    "evergrant.journal.replayed", "counter", "{entry}", "journal entries that were replayed, or set aside",
    (OUTCOME,),
)  # fmt: skip
DOUBLE_SENDS = MetricName(
    "evergrant.double_send.count",
    "counter",
    "{send}",
    "credentials that two workers have sent, or may have: possible, one after the other, overlapped",
    (OUTCOME,),
)
DOUBLE_SEND_WINDOW = MetricName(
    "evergrant.double_send.window",
    "histogram",
    "s",
    "from the last check of a credential's deadline to its last byte: what no client can exclude",
    (),
    _INSTANT_BUCKETS,
)
METRICS = (
    LEASES, TIME_TO_EXPIRY, REFRESHES, REFRESH_TIME, EXCHANGES, REVOCATIONS, DELIVERIES, SECURITY_EVENTS,
    OUTBOX_DEPTH, OUTBOX_AGE, AUDIT_BATCH, CIRCUITS_OPEN, JOURNAL_WAITING, JOURNAL_SET_ASIDE,
    JOURNAL_REPLAYED, DOUBLE_SENDS, DOUBLE_SEND_WINDOW,
)  # fmt: skip

# --- logs ---------------------------------------------------------------------------------


class LogField(StrEnum):
    """The members of a JSON log line. Those after `message` are there when they have a value."""

    TIME = "time"
    LEVEL = "level"
    LOGGER = "logger"
    MESSAGE = "message"
    TRACE_ID = "trace_id"
    SPAN_ID = "span_id"
    CODE = "code"
    OBJECT = "object"
    EXCEPTION = "exception"
    STACK = "stack"


LOG_FIELDS = {
    LogField.TIME: "RFC 3339, UTC",
    LogField.LEVEL: "DEBUG, INFO, WARNING or ERROR",
    LogField.LOGGER: "who speaks",
    LogField.MESSAGE: "one sentence",
    LogField.TRACE_ID: "the W3C trace id, 32 hex digits",
    LogField.SPAN_ID: "the span, 16 hex digits",
    LogField.CODE: "a failure's code (errors.md)",
    LogField.OBJECT: "the id it is about",
    LogField.EXCEPTION: "the exception's class; its text is left out, for it may quote anything",
    LogField.STACK: "file, line and function of each frame; no source lines, no values",
}


class LogEvent(StrEnum):
    """What our own code logs; each is the beginning of its message."""

    ACTIVITY_FAILED = "activity failed"
    CALLBACK_REFUSED = "callback refused"
    DISCOVERY_FAILED = "discovery failed"
    ENSURE_FRESH_FAILED = "ensure_fresh failed"
    HISTORY_UNREADABLE = "history unreadable"
    JOURNAL_FAILED = "journal failed"
    JOURNAL_REPLAYED = "journal replayed"
    JOURNAL_STUCK = "journal stuck"
    MESSAGE_TOO_LATE = "message too late"
    NOT_COMPARED = "not compared"
    OUTBOX_STUCK = "outbox stuck"
    PROTOCOL_FAILED = "protocol failed"
    REQUEST_FAILED = "request failed"
    SECURITY_EVENT_REFUSED = "security event refused"
    SCHEDULE_MISSING = "schedule missing"
    STORE_BEHIND = "store behind"
    TEMPORAL_NOT_READY = "temporal not ready"
    UNEXPECTED = "unexpected error"


LOG_EVENTS = {
    LogEvent.ACTIVITY_FAILED: "an activity ended with an exception nobody foresaw",
    LogEvent.CALLBACK_REFUSED: "a callback named no integration",
    LogEvent.DISCOVERY_FAILED: "an issuer's metadata couldn't be read, in a way nobody foresaw",
    LogEvent.ENSURE_FRESH_FAILED: "asking a workflow for a fresh grant broke; a valid token is served anyway",
    LogEvent.HISTORY_UNREADABLE: "Temporal doesn't have a history that was asked for",
    LogEvent.JOURNAL_FAILED: "an answer couldn't be written to the journal; it was committed without",
    LogEvent.JOURNAL_REPLAYED: "an answer that a worker had left behind is in the store now",
    LogEvent.JOURNAL_STUCK: "a journal's entry couldn't be replayed; it is kept. Said once for each reason",
    LogEvent.MESSAGE_TOO_LATE: "a message's workflow had ended before it came",
    LogEvent.NOT_COMPARED: "workflows that were asked for their generation didn't answer; they are asked again",
    LogEvent.OUTBOX_STUCK: "a round of the relay failed; the next one tries again",
    LogEvent.PROTOCOL_FAILED: "sending a credential or judging its answer broke, in a way nobody foresaw",
    LogEvent.REQUEST_FAILED: "a request was answered with a status of 500 or more",
    LogEvent.SECURITY_EVENT_REFUSED: "what came in at a receiver was not believed; says the word of RFC 8935",
    LogEvent.SCHEDULE_MISSING: "a Temporal Schedule couldn't be declared; it is tried again in minutes",
    LogEvent.STORE_BEHIND: "a workflow knows a newer generation than the store, which came from a backup",
    LogEvent.TEMPORAL_NOT_READY: "`/readyz` couldn't reach Temporal",
    LogEvent.UNEXPECTED: "a request ended with an exception nobody foresaw; answered with code `internal`",
}
