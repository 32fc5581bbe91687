"""Metrics: the instruments, and functions that record with attributes.

Recording costs next to nothing until `metric_export.start` has been called. Attributes are few and have few
values: providers, outcomes and codes; never a tenant, an id or a subject.
"""

import logging
from collections.abc import Iterable
from typing import NamedTuple

from opentelemetry import metrics

from evergrant_server.core.errors import ErrorCode
from evergrant_server.telemetry.logs import LogEvent, log_event
from evergrant_server.telemetry.plain_metrics import (
    SCOPE,
    CountCell,
    HistogramCell,
    PlainCounter,
    PlainHistogram,
)
from evergrant_server.telemetry.traces import ERROR_TYPE

ACTIVITY = "evergrant.activity"
OUTCOME = "evergrant.outcome"
PROVIDER = "evergrant.provider"
APP = "evergrant.app"  # of confirmations alone: few apps have web sessions
TABLE = "evergrant.table"
ANCHOR = "evergrant.anchor"
KEY_PURPOSE = "evergrant.key_purpose"
UNKNOWN_PROVIDER = "unknown"  # the lease was refused before its provider was known

# the bounds of histograms
_LIFETIME_BUCKETS = (0, 30, 60, 300, 600, 1800, 3600, 7200, 14400, 28800, 86400, 604800, 2592000)
_CALL_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30)
_INSTANT_BUCKETS = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.1, 1, 10, 60)
_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 500)

_meter = metrics.get_meter(SCOPE)  # a no-op until `start` sets a provider


def _histogram(name: str, unit: str, description: str, bounds: tuple[float, ...]) -> metrics.Histogram:
    return _meter.create_histogram(name, unit, description, explicit_bucket_boundaries_advisory=list(bounds))


LEASES = PlainCounter(_meter, "evergrant.lease.count", "{lease}", "requests for a lease")
TIME_TO_EXPIRY = PlainHistogram(
    "evergrant.lease.time_to_expiry",
    "s",
    "remaining lifetime of a leased token; tokens without an expiry are left out",
    _LIFETIME_BUCKETS,
)
_refreshes = _meter.create_counter(
    "evergrant.refresh.count", "{refresh}", "refreshes that got as far as the provider's request"
)
_refresh_time = _histogram(
    "evergrant.refresh.duration",
    "s",
    "from the request to the provider to the commit of its answer",
    _CALL_BUCKETS,
)
CODE_EXCHANGES = _meter.create_counter(
    "evergrant.code_exchange.count", "{exchange}", "authorization codes exchanged"
)
OBSERVED_DENIALS = _meter.create_counter(
    "evergrant.permit.observed", "{request}", "requests that a permit would deny if its mode were enforce"
)
REVOCATIONS = _meter.create_counter(
    "evergrant.revocation.count", "{revocation}", "attempts to revoke a grant"
)
_incident_connections = _meter.create_counter(
    "evergrant.incident.connection.count", "{connection}", "connections that an incident has reported"
)
CALLBACKS_REFUSED = _meter.create_counter(
    "evergrant.callback.refused.count", "{callback}", "callbacks of browsers that were refused"
)
_confirmations = _meter.create_counter(
    "evergrant.confirmation.count",
    "{confirmation}",
    "bound consents: confirmed, subject_mismatch, confirm_expired, or unconfirmed because the app was silent",
)
REVOCATION_AGE = _meter.create_gauge(
    "evergrant.revocation.oldest_age",
    "s",
    "age of the oldest revocation that the provider hasn't confirmed; 0 when there is none",
)
DRILL_AGE = _meter.create_gauge(
    "evergrant.backup.drill_age",
    "s",
    "since the last backup drill that found nothing wrong; nothing before the first one",
)
_unexpected = _meter.create_counter(
    "evergrant.activity.unexpected",
    "{failure}",
    "tries of an activity that ended with an exception that the code doesn't expect, or an unreadable row",
)
UNREADABLE_MESSAGES = _meter.create_counter(
    "evergrant.message.unreadable.count",
    "{message}",
    "starts, signals and updates with arguments that can't be read: dropped, or rejected",
)
BULK_READS = _meter.create_counter(
    "evergrant.bulk_read.count",
    "{alarm}",
    "apps that leased many connections within an hour (lease), and exports (export)",
)
DETECTIONS = _meter.create_counter(
    "evergrant.detection.count", "{detection}", "what workers noticed in the audit log, by its kind"
)
_unreadable = _meter.create_counter(
    "evergrant.store.unreadable", "{row}", "rows that a list or a pass left out because they can't be read"
)
_broken_authority = _meter.create_counter(
    "evergrant.authority.broken",
    "{row}",
    "reads of rows whose authenticator isn't Evergrant's: each was refused",
)
DELIVERIES = _meter.create_counter(
    "evergrant.webhook.delivery.count", "{delivery}", "attempts to deliver an event to a webhook"
)
STREAM_BATCHES = _meter.create_counter(
    "evergrant.audit.stream.batch.count", "{batch}", "batches of audit records that were sent to a receiver"
)
STREAM_RECORDS = _meter.create_counter(
    "evergrant.audit.stream.record.count",
    "{record}",
    "audit records that a receiver has taken (sent), that it says it has dropped (rejected), and numbers "
    "without a record (missing)",
)
STREAM_UNSENT = _meter.create_gauge(
    "evergrant.audit.stream.unsent",
    "{record}",
    "audit records that wait for the stream with most of them, as of its last batch",
)
STREAM_AGE = _meter.create_gauge(
    "evergrant.audit.stream.oldest_age",
    "s",
    "age of the oldest audit record that waits for a stream; 0 when none waits",
)
TOKENS = _meter.create_counter(
    "evergrant.token.count", "{token}", "requests for an access token of an app, issued or refused"
)
CLIENTS = _meter.create_counter(
    "evergrant.client.count", "{client}", "registrations of OAuth clients, and readings of their documents"
)
AUTHORIZATIONS = _meter.create_counter(
    "evergrant.authorization.count", "{request}", "authorization requests of OAuth clients, by their end"
)
SECURITY_EVENTS = _meter.create_counter(
    "evergrant.security_event.count", "{event}", "security events and hooks that providers sent"
)
AUDIT_BATCH = PlainHistogram(
    "evergrant.audit.batch.size", "{record}", "leases in one commit of the audit log", _BATCH_BUCKETS
)
CHECKPOINTS = _meter.create_counter(
    "evergrant.audit.checkpoints", "{checkpoint}", "checkpoints of the audit log that were signed"
)
ANCHORED = _meter.create_counter(
    "evergrant.audit.anchor.count", "{checkpoint}", "checkpoints given to anchors: kept, failed or refused"
)
ANCHOR_LAG = _meter.create_gauge(
    "evergrant.audit.anchor.lag",
    "s",
    "age of the oldest checkpoint that an anchor hasn't kept; 0 when it has the newest",
)
CIRCUITS_OPEN = _meter.create_gauge(
    "evergrant.circuit.open",
    "{integration}",
    "integrations whose circuit is open in this worker because their provider fails",
)
OUTBOX_DEPTH = _meter.create_gauge(
    "evergrant.outbox.depth", "{message}", "messages that wait for delivery, including postponed ones"
)
OUTBOX_AGE = _meter.create_gauge(
    "evergrant.outbox.oldest_age", "s", "age of the oldest waiting message; 0 when none waits"
)
JOURNAL_WAITING = _meter.create_gauge(
    "evergrant.journal.waiting", "{entry}", "answers in this host's journals that are not in the store yet"
)
JOURNAL_SET_ASIDE = _meter.create_gauge(
    "evergrant.journal.set_aside", "{entry}", "unreadable journal entries of this host"
)
JOURNAL_REPLAYED = _meter.create_counter(
    "evergrant.journal.replayed", "{entry}", "journal entries that were replayed, or set aside"
)
_double_sends = _meter.create_counter(
    "evergrant.double_send.count",
    "{send}",
    "credentials that two workers sent or may have sent: possible, one after the other, overlapped",
)
_double_send_window = _histogram(
    "evergrant.double_send.window",
    "s",
    "from the last check of a credential's deadline to its last byte: a pause in it can cause a double send",
    _INSTANT_BUCKETS,
)


_key_calls = _meter.create_counter(
    "evergrant.key_service.count",
    "{call}",
    "keys that a key service was to unwrap: answered, away, denied, gone or broken",
)
REGION_AWAY = _meter.create_gauge(
    "evergrant.region.away", "{region}", "1 while the other region doesn't confirm to this process, else 0"
)
REGION_ALONE = _meter.create_counter(
    "evergrant.region.alone",
    "{credential}",
    "single-use credentials that were sent while the other region was away: a fail-over then loses them",
)
KEY_AGE = _meter.create_gauge(
    "evergrant.key_service.age",
    "s",
    "since the key service last unwrapped what this process holds for the purpose",
)


def count_key_call(purpose: str, outcome: str) -> None:
    _key_calls.add(1, {KEY_PURPOSE: purpose, OUTCOME: outcome})


def count(counter: metrics.Counter | PlainCounter, outcome: str, provider: str | None = None) -> None:
    """Count an operation by its outcome: a word of success, a failure's code, or why it was refused."""
    attributes = {} if provider is None else {PROVIDER: provider}
    counter.add(1, attributes | {OUTCOME: str(outcome)})


def count_incident_connections(number: int, outcome: str) -> None:
    _incident_connections.add(number, {OUTCOME: outcome})


def count_stream_records(outcome: str, number: int) -> None:
    if number:
        STREAM_RECORDS.add(number, {OUTCOME: outcome})


def count_confirmation(outcome: str, requested_by: str) -> None:
    """Count how the confirmation of a consent ended, by the name of its app."""
    _confirmations.add(1, {OUTCOME: outcome, APP: requested_by.removeprefix("app:")})


class LeaseCells(NamedTuple):
    """What the leases of one provider are counted in."""

    leased: CountCell
    time_to_expiry: HistogramCell

    def count(self, seconds_left: float | None) -> None:
        """Count a lease that the API released. `seconds_left` is None for a token without an expiry."""
        self.leased.count += 1
        if seconds_left is not None:
            self.time_to_expiry.record(seconds_left)


def lease_cells(provider: str) -> LeaseCells:
    named = {PROVIDER: provider}
    return LeaseCells(LEASES.cell(named | {OUTCOME: "leased"}), TIME_TO_EXPIRY.cell(named))


def record_refresh(provider: str, outcome: str, seconds: float) -> None:
    attributes = {PROVIDER: provider, OUTCOME: outcome}
    _refreshes.add(1, attributes)
    _refresh_time.record(seconds, attributes)


def count_unexpected(activity: str, error: str) -> None:
    """Count a try of this activity; `error` is the name of the exception's class, or a failure's code."""
    _unexpected.add(1, {ACTIVITY: activity, ERROR_TYPE: error})


def report_unreadable(log: logging.Logger, rows: Iterable[tuple[str, str]]) -> None:
    """Log and count rows that a list or a pass left out: of each its id, and why it can't be read."""
    for id, why in rows:
        log_event(log, logging.ERROR, LogEvent.ROW_UNREADABLE, why, code=ErrorCode.INTERNAL, object=id)
        _unreadable.add(1)


def count_broken_authority(table: str) -> None:
    _broken_authority.add(1, {TABLE: table})


def count_double_send(outcome: str) -> None:
    """`outcome` is "possible", "one after the other" or "overlapped"."""
    count(_double_sends, outcome)


def record_send_window(seconds: float) -> None:
    _double_send_window.record(seconds)


CALL_APPROVALS = _meter.create_counter(
    "evergrant.call_approval.count", "{call}", "calls of agents that were asked for, and what became of them"
)


_envoy_checks = _meter.create_histogram(
    "evergrant.envoy.check",
    "s",
    "from Envoy's question to the answer: allowed, cut, or the code of the failure",
    explicit_bucket_boundaries_advisory=[0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1, 5, 10, 30],
)


def record_envoy_check(outcome: str, seconds: float) -> None:
    _envoy_checks.record(seconds, {OUTCOME: outcome})


TOKEN_FAMILIES = _meter.create_counter(
    "evergrant.token_family.count",
    "{request}",
    "token requests of gateways' clients: begun, refreshed, or replayed, and families that a replay ended",
)


PROXIED_CALLS = PlainCounter(
    _meter,
    "evergrant.proxy.count",
    "{call}",
    "calls through the gateway: answered, cut, or the code of the failure",
)
_provider_waits = PlainHistogram(
    "evergrant.proxy.wait",
    "s",
    "from sending a request to a provider's API to the head of its response",
    (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
)
_open_calls = PlainCounter(
    _meter, "evergrant.proxy.open", "{call}", "calls that are open now", falls=True
).cell()
API_LIMITS = _meter.create_counter(
    "evergrant.api_limit.count",
    "{call}",
    "calls for which a provider's API had no room, or none for their app: waited, or refused",
)
_limit_waits = _histogram(
    "evergrant.api_limit.wait",
    "s",
    "how long calls waited for room at a provider's API before they were sent",
    _CALL_BUCKETS,
)
_echoes = _meter.create_counter(
    "evergrant.proxy.echo", "{response}", "responses out of which an injected credential was cut"
)
_tools = _meter.create_counter(
    "evergrant.mcp.tool_count",
    "{call}",
    "calls of Evergrant's MCP tools: answered, failed, or asked a person",
)


def record_provider_wait(seconds: float, provider: str) -> None:
    _provider_waits.record(seconds, {PROVIDER: provider})


def record_limit_wait(seconds: float, provider: str) -> None:
    count(API_LIMITS, "waited", provider)
    _limit_waits.record(seconds, {PROVIDER: provider})


def note_open_calls(change: int) -> None:
    _open_calls.count += change


def count_echo(provider: str) -> None:
    _echoes.add(1, {PROVIDER: provider})


def count_tool(tool: str, outcome: str) -> None:
    _tools.add(1, {"evergrant.tool": tool, OUTCOME: outcome})
