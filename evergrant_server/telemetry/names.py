"""The names of everything that telemetry emits: the one source for code, docs and tests.

Names follow OpenTelemetry's semantic conventions where those have one, and begin with
`evergrant.` where they don't. `docs/telemetry.md` is made from them.
"""

from dataclasses import dataclass

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
    HTTP_STATUS: "the status of the response",
    HTTP_ROUTE: "the route's template, never the path: a path may hold a connect link",
    SERVER_ADDRESS: "the provider's or receiver's host, without path or query",
    SERVER_PORT: "the port there",
    ERROR_TYPE: "a failure's code, a status from 500 on, or the name of an exception's class",
    CODE: "the code of the problem document in the response (errors.md)",
    OUTCOME: "how the operation ended: a word of success, a failure's code (errors.md), a delivery's problem",
    PROVIDER: "the provider's name in the catalogue",
}

# --- spans --------------------------------------------------------------------------------


@dataclass(frozen=True)
class SpanName:
    """Parts of `name` in braces vary."""

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
    SpanName("RunWorkflow:{workflow}", "server", "the worker: a whole run", _TEMPORAL[:2]),
    SpanName("HandleSignal:{signal}", "server", "the worker, in the workflow", _TEMPORAL[:2]),
    SpanName("ValidateUpdate:{update}", "server", "the worker, in the workflow", _TEMPORAL[:2]),
    SpanName("HandleUpdate:{update}", "server", "the worker, in the workflow", _TEMPORAL[:2]),
    SpanName("HandleQuery:{query}", "server", "the worker, in the workflow", _TEMPORAL[:2]),
    SpanName(
        "SignalExternalWorkflow:{signal}",
        "client",
        "the worker, sending `token_ready` to another workflow",
        (),
    ),
    SpanName("StartActivity:{activity}", "client", "the worker, in the workflow", _TEMPORAL[:2]),
    SpanName("RunActivity:{activity}", "server", "the worker", _TEMPORAL),
    CLIENT_SPAN,
)

# --- metrics ------------------------------------------------------------------------------


@dataclass(frozen=True)
class MetricName:
    """`unit` is a UCUM code; a unit in braces counts items. `buckets` are a histogram's bounds."""

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
    "remaining lifetime of a leased token; tokens without an expiry are left out",
    (PROVIDER,),
    _LIFETIME_BUCKETS,
)
REFRESHES = MetricName(
    "evergrant.refresh.count", "counter", "{refresh}", "refreshes that got as far as the provider's request",
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
    "evergrant.code_exchange.count",
    "counter",
    "{exchange}",
    "authorization codes exchanged",
    (PROVIDER, OUTCOME),
)
REVOCATIONS = MetricName(
    "evergrant.revocation.count", "counter", "{revocation}", "attempts to revoke a grant", (PROVIDER, OUTCOME)
)
DELIVERIES = MetricName(
    "evergrant.webhook.delivery.count", "counter", "{delivery}", "attempts to deliver an event to a webhook",
    (OUTCOME,),
)  # fmt: skip
SECURITY_EVENTS = MetricName(
    "evergrant.security_event.count", "counter", "{event}", "security events and hooks that providers sent",
    (OUTCOME,),
)  # fmt: skip
OUTBOX_DEPTH = MetricName(
    "evergrant.outbox.depth",
    "gauge",
    "{message}",
    "messages that wait for delivery, including postponed ones",
)
OUTBOX_AGE = MetricName(
    "evergrant.outbox.oldest_age", "gauge", "s", "age of the oldest waiting message; 0 when none waits"
)
AUDIT_BATCH = MetricName(
    "evergrant.audit.batch.size", "histogram", "{record}", "leases in one commit of the audit log",
    (), _BATCH_BUCKETS,
)  # fmt: skip
CIRCUITS_OPEN = MetricName(
    "evergrant.circuit.open",
    "gauge",
    "{integration}",
    "integrations whose circuit is open in this worker because their provider fails",
    (PROVIDER,),
)
JOURNAL_WAITING = MetricName(
    "evergrant.journal.waiting",
    "gauge",
    "{entry}",
    "answers in this host's journals that are not in the store yet",
)
JOURNAL_SET_ASIDE = MetricName(
    "evergrant.journal.set_aside", "gauge", "{entry}", "unreadable journal entries of this host"
)
JOURNAL_REPLAYED = MetricName(
    "evergrant.journal.replayed", "counter", "{entry}", "journal entries that were replayed, or set aside",
    (OUTCOME,),
)  # fmt: skip
DOUBLE_SENDS = MetricName(
    "evergrant.double_send.count",
    "counter",
    "{send}",
    "credentials that two workers sent or may have sent: possible, one after the other, overlapped",
    (OUTCOME,),
)
DOUBLE_SEND_WINDOW = MetricName(
    "evergrant.double_send.window",
    "histogram",
    "s",
    "from the last check of a credential's deadline to its last byte: a pause in it can cause a double send",
    (),
    _INSTANT_BUCKETS,
)
METRICS = (
    LEASES, TIME_TO_EXPIRY, REFRESHES, REFRESH_TIME, EXCHANGES, REVOCATIONS, DELIVERIES, SECURITY_EVENTS,
    OUTBOX_DEPTH, OUTBOX_AGE, AUDIT_BATCH, CIRCUITS_OPEN, JOURNAL_WAITING, JOURNAL_SET_ASIDE,
    JOURNAL_REPLAYED, DOUBLE_SENDS, DOUBLE_SEND_WINDOW,
)  # fmt: skip
