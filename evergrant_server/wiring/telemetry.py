"""Starts and flushes a process's telemetry."""

from typing import Any

from evergrant_server.settings import BadSettings, Settings
from evergrant_server.telemetry import metrics, traces
from evergrant_server.telemetry.logs import configure_logging
from evergrant_server.telemetry.sdk import BadTelemetry


def start_telemetry(settings: Settings, service: str) -> None:
    """Start logs, metrics and, if the environment asks for them, traces.

    Raises BadSettings for an `OTEL_…` variable that can't be used.
    """
    configure_logging(settings.log_level, settings.log_format)
    try:
        traces.start(service, _replay_safe_provider)
        metrics.start(service)
    except BadTelemetry as error:
        raise BadSettings(str(error)) from None


def flush_telemetry() -> None:
    """Export what is buffered. An unreachable collector delays this by a few seconds at most."""
    traces.flush()
    metrics.flush()


def _replay_safe_provider(resource: Any) -> Any:
    """Temporal's provider: a replay creates the same span ids again, and ends no span twice."""
    from temporalio.contrib.opentelemetry import create_tracer_provider  # slow to import

    return create_tracer_provider(resource=resource, shutdown_on_exit=False)
