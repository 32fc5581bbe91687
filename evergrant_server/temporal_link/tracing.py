"""Links the trace of a request to the activities that it causes.

A workflow's `run` carries out what a signal or an update requested, so by default an activity would
belong to the trace in which the workflow was started, long ago. The interceptor writes the span of
a handled message into its `RequestContext`, and continues that trace when an activity is scheduled.
Workflow code knows nothing of it.
"""

from collections.abc import Sequence
from typing import Any, cast

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
from evergrant_server.telemetry import traces


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
    updated = context.model_copy(update={"span_id": span_id})
    return [cast(Any, args[0]).model_copy(update={"context": updated}), *args[1:]]
