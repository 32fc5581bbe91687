"""Serves a worker's metrics, including those of Temporal's SDK, on a port of its own."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from temporalio.contrib.opentelemetry import MetricsExporter
from temporalio.runtime import MetricBuffer, Runtime, TelemetryConfig

from evergrant_server.settings import BadSettings, Settings
from evergrant_server.telemetry import metrics

_BUFFER_SIZE = 50_000  # updates of the SDK between two polls
_POLL_INTERVAL = timedelta(seconds=1)


@asynccontextmanager
async def serve_worker_metrics(settings: Settings, service: str) -> AsyncIterator[dict[str, Any]]:
    """Serve `/metrics` while the block runs. Yields options for the Temporal client.

    Does nothing without `metrics_port`. Raises BadSettings when the port is taken.
    """
    if settings.metrics_port is None:
        yield {}
        return
    provider = metrics.start(service)
    try:
        server, _ = metrics.serve(settings.metrics_host, settings.metrics_port)
    except OSError as error:
        raise BadSettings(
            f"EVERGRANT_METRICS_PORT: {settings.metrics_host}:{settings.metrics_port} can't be used "
            f"({error.strerror}); stop the process that listens there, or choose another port"
        ) from None
    buffer = MetricBuffer(_BUFFER_SIZE)
    runtime = Runtime(telemetry=TelemetryConfig(metrics=buffer))
    try:
        async with MetricsExporter(buffer, provider, poll_interval=_POLL_INTERVAL):
            yield {"runtime": runtime}
    finally:
        await asyncio.to_thread(server.shutdown)
        server.server_close()
