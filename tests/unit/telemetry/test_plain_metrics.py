"""Plain counters and histograms are exported as the SDK's own: to Prometheus, and as sums or as changes."""

import time
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import Counter, Histogram, MeterProvider, ObservableCounter
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader, MetricsData
from prometheus_client import CollectorRegistry, generate_latest

from evergrant_server.telemetry import plain_metrics
from evergrant_server.telemetry.plain_metrics import PlainCounter, PlainHistogram, reading

BOUNDS = (1, 5, 60)
VALUES = (0, 1, 1.5, 60, 61, 4000)
LABELS = {"evergrant.provider": "gitlab", "evergrant.outcome": "leased"}


@pytest.fixture(autouse=True)
def none_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_metrics, "_histograms", [])


def plain(meter: Any) -> tuple[PlainCounter, PlainHistogram]:
    return PlainCounter(meter, "a.count", "{a}", "of a"), PlainHistogram("a.time", "s", "time of a", BOUNDS)


def of_the_sdk(meter: Any) -> tuple[Any, Any]:
    bounds = {"explicit_bucket_boundaries_advisory": list(BOUNDS)}
    return meter.create_counter("a.count", "{a}", "of a"), meter.create_histogram(
        "a.time", "s", "time of a", **bounds
    )


@pytest.mark.parametrize("labels", [{}, LABELS])
def test_prometheus_shows_no_difference(labels: dict[str, str]):
    shown: list[bytes] = []
    for kind, make in ((PrometheusMetricReader, of_the_sdk), (reading(PrometheusMetricReader), plain)):
        registry = CollectorRegistry()
        provider = MeterProvider([kind(scope_info_enabled=False, registry=registry)])
        counter, histogram = make(provider.get_meter("evergrant"))
        for value in VALUES:
            counter.add(2, labels)
            histogram.record(value, labels)
        shown.append(generate_latest(registry))
        provider.shutdown()
    lines = [sorted(text.splitlines()) for text in shown]
    assert lines[0] == lines[1]
    assert b"a_time_seconds_bucket" in shown[1]


def told(data: MetricsData | None) -> dict[str, Any]:
    """What an export says, without its moments, and without changes by nothing."""
    assert data is not None
    encode_metrics(data)  # as OTLP has it
    metrics = [m for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics]
    facts = ("attributes", "value", "count", "sum", "bucket_counts")
    return {
        metric.name: [
            {fact: _listed(getattr(point, fact)) for fact in facts if hasattr(point, fact)}
            for point in metric.data.data_points
            if getattr(point, "value", 1)
        ]
        for metric in metrics
    }


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("temporality", list(AggregationTemporality)[1:])
def test_sums_and_changes_are_those_of_the_sdk(temporality: AggregationTemporality):
    preferred = {kind: temporality for kind in (Counter, Histogram, ObservableCounter)}
    exports: list[list[Any]] = []
    for kind, make in ((InMemoryMetricReader, of_the_sdk), (reading(InMemoryMetricReader), plain)):
        reader = kind(preferred_temporality=preferred)
        provider = MeterProvider([reader])
        counter, histogram = make(provider.get_meter("evergrant"))
        said: list[Any] = []
        for values in (VALUES, VALUES[:2], (), (7,)):
            counter.add(1, {"evergrant.provider": "github"})  # an export without any value says nothing
            for value in values:
                counter.add(1, LABELS)
                histogram.record(value, LABELS)
            said.append(told(reader.get_metrics_data()))
        exports.append(said)
        provider.shutdown()
    assert exports[0] == exports[1]


def test_changes_begin_where_the_last_ended():
    delta = AggregationTemporality.DELTA
    reader: Any = reading(InMemoryMetricReader)(
        preferred_temporality={Histogram: delta, ObservableCounter: delta}
    )
    counter, histogram = plain(MeterProvider([reader]).get_meter("evergrant"))
    before = time.time_ns()
    spans: list[tuple[int, int]] = []
    for value in VALUES:
        counter.add(1)
        histogram.record(value)
        data = reader.get_metrics_data()
        metrics = {m.name: m for m in data.resource_metrics[0].scope_metrics[0].metrics}
        (point,) = metrics["a.time"].data.data_points
        spans.append((point.start_time_unix_nano, point.time_unix_nano))
    assert spans[0][0] <= before
    assert [end for _, end in spans[:-1]] == [begin for begin, _ in spans[1:]]


def test_a_count_that_falls():
    reader = InMemoryMetricReader()
    open_calls = PlainCounter(
        MeterProvider([reader]).get_meter("evergrant"), "a.open", "{a}", "open", falls=True
    )
    cell = open_calls.cell()
    cell.count += 3
    cell.count -= 2
    assert told(reader.get_metrics_data())["a.open"] == [{"attributes": {}, "value": 1}]
