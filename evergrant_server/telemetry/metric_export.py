"""How metrics leave the process: as Prometheus's text, and over OTLP where the environment asks for it."""

from contextlib import suppress
from types import SimpleNamespace
from typing import Any

from opentelemetry import metrics

from evergrant_server.telemetry.plain_metrics import reading
from evergrant_server.telemetry.traces import exports_changes, otlp_enabled, resource

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_state = SimpleNamespace(provider=None, registry=None)  # the SDK's provider can be set only once a process


def start(service: str) -> Any:
    """Start to collect: for `exposition`, and over OTLP when the environment asks for it.

    Returns the SDK's meter provider. A second call changes nothing.
    """
    if _state.provider is not None:
        return _state.provider
    from opentelemetry.exporter.prometheus import PrometheusMetricReader
    from opentelemetry.sdk.metrics import MeterProvider
    from prometheus_client import CollectorRegistry

    registry = CollectorRegistry()
    readers: list[Any] = [reading(PrometheusMetricReader)(scope_info_enabled=False, registry=registry)]
    if otlp_enabled("METRICS"):
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

        readers.append(
            reading(PeriodicExportingMetricReader, changes=exports_changes())(OTLPMetricExporter())
        )
    provider = MeterProvider(readers, resource(service), shutdown_on_exit=False)
    metrics.set_meter_provider(provider)
    _state.provider, _state.registry = provider, registry
    return provider


def flush(limit_ms: float = 2000) -> None:
    """Export what is buffered, within the limit."""
    if _state.provider is not None:
        with suppress(Exception):  # the last values are not worth a failed shutdown
            _state.provider.force_flush(limit_ms)


def exposition() -> bytes:
    """This process's metrics in Prometheus's text format; empty before `start`."""
    if _state.registry is None:
        return b""
    from prometheus_client import generate_latest

    return generate_latest(_state.registry)
