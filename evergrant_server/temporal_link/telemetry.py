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
_REQUEST_LIMIT_S = 10.0


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


class WorkerPages:
    """`/metrics`, `/livez`, and `/readyz`, which is 503 until `is_ready` is set.

    The worker's event loop answers: where that hangs, a probe gets no answer.
    """

    def __init__(self) -> None:
        self.is_ready = False
        self.client_options: dict[str, Any] = {}  # of the Temporal client, whose metrics are served too

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request, and close the connection."""
        try:
            async with asyncio.timeout(_REQUEST_LIMIT_S):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(await self._response(head.split(b" ", 2)[1]))
                await writer.drain()
        except (OSError, TimeoutError, IndexError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # no request, or nobody who waits for the answer
        finally:
            writer.close()

    async def _response(self, path: bytes) -> bytes:
        status, kind, body = "200 OK", "text/plain; charset=utf-8", b"ok"
        match path.partition(b"?")[0]:
            case b"/metrics":
                kind, body = metric_export.CONTENT_TYPE, await asyncio.to_thread(metric_export.exposition)
            case b"/livez":
                pass
            case b"/readyz":
                if not self.is_ready:
                    status, body = "503 Service Unavailable", b"starting, or stopping"
            case _:
                status, body = "404 Not Found", b"a worker serves /metrics, /livez and /readyz"
        head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        return f"{head}Connection: close\r\n\r\n".encode() + body


@asynccontextmanager
async def serve_worker_pages(settings: Settings, service: str) -> AsyncIterator[WorkerPages]:
    """Serve a worker's pages while the block runs.

    Serves nothing without `metrics_port`. Raises BadSettings when the port is taken.
    """
    pages = WorkerPages()
    if settings.metrics_port is None:
        yield pages
        return
    provider = metric_export.start(service)
    try:
        server = await asyncio.start_server(pages.answer, settings.metrics_host, settings.metrics_port)
    except OSError as error:
        raise BadSettings(
            f"EVERGRANT_METRICS_PORT: {settings.metrics_host}:{settings.metrics_port} can't be used "
            f"({error.strerror}); stop the process that listens there, or choose another port"
        ) from None
    buffer = MetricBuffer(_BUFFER_SIZE)
    pages.client_options = {"runtime": Runtime(telemetry=TelemetryConfig(metrics=buffer))}
    try:
        async with MetricsExporter(buffer, provider, poll_interval=_POLL_INTERVAL):
            yield pages
    finally:
        server.close()


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
