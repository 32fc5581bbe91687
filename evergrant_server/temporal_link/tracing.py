"""Traces across Temporal: its own plugin's spans, and the thread from who asked to what was done.

A workflow's `run` carries out what a signal or an update asked for, so by itself an activity would
belong to the trace in which the workflow was started, long ago. The interceptor here lets `Asked`
carry the span: it is noted when a message arrives, and taken up when an activity is scheduled.
Workflow code knows nothing of it.
"""

from collections.abc import Sequence
from typing import Any, cast

from opentelemetry.sdk.resources import Resource
from temporalio.contrib.opentelemetry import (
    OpenTelemetryPlugin,
    ReplaySafeTracerProvider,
    create_tracer_provider,
)
from temporalio.plugin import SimplePlugin
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

from evergrant_server.core.messages.connection import RequestContext
from evergrant_server.telemetry import traces


def replay_safe_provider(resource: Resource) -> ReplaySafeTracerProvider:
    """Temporal's provider: replay makes the same span ids again, and ends no span twice."""
    return create_tracer_provider(resource=resource, shutdown_on_exit=False)


def client_plugins() -> list[SimplePlugin]:
    """For the client, whose plugins reach its workers. None when this process doesn't trace."""
    return [OpenTelemetryPlugin(add_temporal_spans=True)] if traces.is_enabled() else []


class RequestTraceInterceptor(Interceptor):
    """Must come after the plugin's interceptor, which a client's plugin always does."""

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
    asked = getattr(args[0], "context", None) if args else None
    return asked if isinstance(asked, RequestContext) else None


def _with_current_span(args: Sequence[Any]) -> Sequence[Any]:
    """The message with the span of its handling, when that is part of the asker's trace."""
    asked = _request_context(args)
    trace_id, span_id = traces.current_ids()
    if asked is None or not span_id or trace_id != asked.trace_id:
        return args
    noted = asked.model_copy(update={"span_id": span_id})
    return [cast(Any, args[0]).model_copy(update={"context": noted}), *args[1:]]
