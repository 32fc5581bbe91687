"""Starts a process's telemetry, and links the trace of a request to the activities that it causes.

A workflow's `run` carries out what a signal or an update requested, so by default an activity would
belong to the trace in which the workflow was started, long ago. The interceptor writes the span of
a handled message into its `RequestContext`, and continues that trace when an activity is scheduled.
Workflow code knows nothing of it.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, cast

from temporalio.contrib.opentelemetry import MetricsExporter
from temporalio.runtime import MetricBuffer, Runtime, TelemetryConfig
from temporalio.worker import (
    HandleSignalInput,
    HandleUpdateInput,
    Interceptor,
    StartActivityInput,
    WorkflowInboundInterceptor,
    WorkflowInterceptorClassInput,
    WorkflowOutboundInterceptor,
)
from temporalio.workflow import ActivityHandle

from evergrant_server.core.messages.base import RequestContext
from evergrant_server.settings import BadSettings, Settings
from evergrant_server.telemetry import metric_export, traces
from evergrant_server.telemetry.logs import configure_logging
from evergrant_server.telemetry.traces import BadTelemetry

_BUFFER_SIZE = 50_000  # updates of the SDK between two polls
_POLL_INTERVAL = timedelta(seconds=1)


class RequestTraceInterceptor(Interceptor):
    """Must run after the plugin's interceptor, as interceptors of a worker always do."""

    def workflow_interceptor_class(
        self, input: WorkflowInterceptorClassInput
    ) -> type[WorkflowInboundInterceptor] | None:
        return _InboundTracing if traces.is_enabled() else None


class _InboundTracing(WorkflowInboundInterceptor):
    def init(self, outbound: WorkflowOutboundInterceptor) -> None:
        super().init(_OutboundTracing(outbound))

    async def handle_signal(self, input: HandleSignalInput) -> None:
        input.args = _with_current_span(input.args)
        await super().handle_signal(input)

    async def handle_update_handler(self, input: HandleUpdateInput) -> Any:
        input.args = _with_current_span(input.args)
        return await super().handle_update_handler(input)


class _OutboundTracing(WorkflowOutboundInterceptor):
    def start_activity(self, input: StartActivityInput) -> ActivityHandle[Any]:
        with traces.continue_trace(_request_context(input.args)):
            return super().start_activity(input)


def _request_context(args: Sequence[Any]) -> RequestContext | None:
    context = getattr(args[0], "context", None) if args else None
    return context if isinstance(context, RequestContext) else None


def _with_current_span(args: Sequence[Any]) -> Sequence[Any]:
    """The message with the span that handles it, when that belongs to the request's trace."""
    context = _request_context(args)
    trace_id, span_id = traces.current_ids()
    if context is None or not span_id or trace_id != context.trace_id:
        return args
    updated = context.__replace__(span_id=span_id)
    return [cast(Any, args[0]).__replace__(context=updated), *args[1:]]


@asynccontextmanager
async def serve_worker_metrics(settings: Settings, service: str) -> AsyncIterator[dict[str, Any]]:
    """Serve `/metrics` while the block runs. Yields options for the Temporal client.

    Does nothing without `metrics_port`. Raises BadSettings when the port is taken.
    """
    if settings.metrics_port is None:
        yield {}
        return
    provider = metric_export.start(service)
    try:
        server, _ = metric_export.serve(settings.metrics_host, settings.metrics_port)
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


def start_telemetry(settings: Settings, service: str) -> None:
    """Start logs, metrics and, if the environment asks for them, traces.

    Raises BadSettings for an `OTEL_…` variable that can't be used.
    """
    configure_logging(settings.log_level, settings.log_format)
    try:
        traces.start(service, _replay_safe_provider)
        metric_export.start(service)
    except BadTelemetry as error:
        raise BadSettings(str(error)) from None


def flush_telemetry() -> None:
    """Export what is buffered. An unreachable collector delays this by a few seconds at most."""
    traces.flush()
    metric_export.flush()


def _replay_safe_provider(resource: Any) -> Any:
    """Temporal's provider: a replay creates the same span ids again, and ends no span twice."""
    from temporalio.contrib.opentelemetry import create_tracer_provider  # slow to import

    return create_tracer_provider(resource=resource, shutdown_on_exit=False)
