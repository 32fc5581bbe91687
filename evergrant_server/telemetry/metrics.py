"""Metrics: one line wherever something is counted, and how the counts leave the process.

Recording costs next to nothing until `start` has been called. Attributes are few and have few
values: providers, outcomes and codes; never a tenant, an id or a subject.
"""

import time
from collections.abc import Awaitable
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from opentelemetry import metrics

from evergrant_server.core.errors import Failure
from evergrant_server.telemetry import names
from evergrant_server.telemetry.names import OUTCOME, PROVIDER, MetricName
from evergrant_server.telemetry.sdk import otlp_enabled, resource

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_UNKNOWN_PROVIDER = "unknown"  # refused before it was clear which provider it was about

_meter = metrics.get_meter("evergrant")  # a stand-in until a provider is set


class News(Protocol):
    """What an activity's answer says of its success."""

    @property
    def failure(self) -> str | None: ...


N = TypeVar("N", bound=News)


def _counter(it: MetricName) -> metrics.Counter:
    return _meter.create_counter(it.name, it.unit, it.description)


def _histogram(it: MetricName) -> metrics.Histogram:
    return _meter.create_histogram(
        it.name, it.unit, it.description, explicit_bucket_boundaries_advisory=list(it.buckets)
    )


_leases, _time_to_expiry = _counter(names.LEASES), _histogram(names.TIME_TO_EXPIRY)
_refreshes, _refresh_time = _counter(names.REFRESHES), _histogram(names.REFRESH_TIME)
_exchanges, _revocations = _counter(names.EXCHANGES), _counter(names.REVOCATIONS)
_deliveries = _counter(names.DELIVERIES)
_audit_batch = _histogram(names.AUDIT_BATCH)
_outbox_depth = _meter.create_gauge(
    names.OUTBOX_DEPTH.name, names.OUTBOX_DEPTH.unit, names.OUTBOX_DEPTH.description
)
_outbox_age = _meter.create_gauge(names.OUTBOX_AGE.name, names.OUTBOX_AGE.unit, names.OUTBOX_AGE.description)
_journal_waiting = _meter.create_gauge(
    names.JOURNAL_WAITING.name, names.JOURNAL_WAITING.unit, names.JOURNAL_WAITING.description
)
_journal_set_aside = _meter.create_gauge(
    names.JOURNAL_SET_ASIDE.name, names.JOURNAL_SET_ASIDE.unit, names.JOURNAL_SET_ASIDE.description
)
_security_events = _counter(names.SECURITY_EVENTS)
_journal_replayed = _counter(names.JOURNAL_REPLAYED)
_sent_twice, _send_window = _counter(names.DOUBLE_SENDS), _histogram(names.DOUBLE_SEND_WINDOW)


_circuits_open = _meter.create_gauge(
    names.CIRCUITS_OPEN.name, names.CIRCUITS_OPEN.unit, names.CIRCUITS_OPEN.description
)


def count_lease(provider: str, seconds_left: float | None) -> None:
    """A lease has left."""
    _leases.add(1, {PROVIDER: provider, OUTCOME: "leased"})
    if seconds_left is not None:
        _time_to_expiry.record(seconds_left, {PROVIDER: provider})


def count_refused_lease(code: str) -> None:
    _leases.add(1, {PROVIDER: _UNKNOWN_PROVIDER, OUTCOME: code})


async def measure_refresh(provider: str, work: Awaitable[N]) -> N:
    """Await a refresh, and say how it ended and how long it took."""
    began = time.perf_counter()
    outcome = "cut"  # cancelled, or the platform's own trouble without a code
    try:
        news = await work
        outcome = news.failure or "refreshed"
        return news
    except Failure as failure:
        outcome = failure.code.value
        raise
    finally:
        about = {PROVIDER: provider, OUTCOME: str(outcome)}
        _refreshes.add(1, about)
        _refresh_time.record(time.perf_counter() - began, about)


def count_code_exchange(provider: str, failure: str | None) -> None:
    _exchanges.add(1, {PROVIDER: provider, OUTCOME: str(failure or "granted")})


def count_revocation(provider: str, outcome: str) -> None:
    """`outcome` is how it was revoked, or a failure's code."""
    _revocations.add(1, {PROVIDER: provider, OUTCOME: str(outcome)})


def count_webhook_delivery(problem: str | None) -> None:
    """One try to deliver an event; None: it got through."""
    _deliveries.add(1, {OUTCOME: str(problem or "delivered")})


def count_security_event(outcome: str) -> None:
    """Something came in at a receiver; `outcome` is `heard`, or why it wasn't believed."""
    _security_events.add(1, {OUTCOME: outcome})


def record_audit_batch(records: int) -> None:
    _audit_batch.record(records)


def set_open_circuits(provider: str, integrations: int) -> None:
    _circuits_open.set(integrations, {PROVIDER: provider})


def set_outbox(depth: int, oldest_age_s: float) -> None:
    _outbox_depth.set(depth)
    _outbox_age.set(oldest_age_s)


def set_journal(waiting: int, set_aside: int) -> None:
    _journal_waiting.set(waiting)
    _journal_set_aside.set(set_aside)


def count_journal_replay(outcome: str) -> None:
    _journal_replayed.add(1, {OUTCOME: str(outcome)})


def count_double_send(outcome: str) -> None:
    """`outcome` is "possible", "one after the other" or "overlapped"."""
    _sent_twice.add(1, {OUTCOME: outcome})


def record_send_window(seconds: float) -> None:
    _send_window.record(seconds)


# --- how they leave the process -----------------------------------------------------------


class _MetricsState:
    """The readers of this process. The SDK's provider can be set once a process."""

    def __init__(self) -> None:
        self.provider: Any = None
        self.registry: Any = None


_state = _MetricsState()


def start(service: str) -> Any:
    """Collect from now on: for `exposition`, and over OTLP when the environment asks for it.

    Returns the SDK's meter provider. A second call changes nothing.
    """
    if _state.provider is not None:
        return _state.provider
    from opentelemetry.exporter.prometheus import PrometheusMetricReader
    from opentelemetry.sdk.metrics import MeterProvider
    from prometheus_client import CollectorRegistry

    registry = CollectorRegistry()
    readers: list[Any] = [PrometheusMetricReader(scope_info_enabled=False, registry=registry)]
    if otlp_enabled("METRICS"):
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

        readers.append(PeriodicExportingMetricReader(OTLPMetricExporter()))
    provider = MeterProvider(readers, resource(service), shutdown_on_exit=False)
    metrics.set_meter_provider(provider)
    _state.provider, _state.registry = provider, registry
    return provider


def flush(limit_ms: float = 2000) -> None:
    """Send what is left, within the limit."""
    if _state.provider is not None:
        with suppress(Exception):  # the last numbers are not worth a failed shutdown
            _state.provider.force_flush(limit_ms)


def exposition() -> bytes:
    """This process's metrics in Prometheus's text format; empty before `start`."""
    if _state.registry is None:
        return b""
    from prometheus_client import generate_latest

    return generate_latest(_state.registry)


def serve(host: str, port: int) -> Any:
    """Serve `exposition` on a port of its own, from a thread. Raises OSError when it is taken."""
    from prometheus_client import start_http_server

    return start_http_server(port, host, _state.registry)
