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

from evergrant_server import telemetry_traces as traces
from evergrant_server.core.messages import Asked


def replay_safe_provider(resource: Resource) -> ReplaySafeTracerProvider:
    """Temporal's provider: replay makes the same span ids again, and ends no span twice."""
    return create_tracer_provider(resource=resource, shutdown_on_exit=False)


def plugins() -> list[SimplePlugin]:
    """For the client, whose plugins reach its workers. None when this process doesn't trace."""
    return [OpenTelemetryPlugin(add_temporal_spans=True)] if traces.on() else []


class AskedInterceptor(Interceptor):
    """Must come after the plugin's interceptor, which a client's plugin always does."""

    def workflow_interceptor_class(
        self, input: WorkflowInterceptorClassInput
    ) -> type[WorkflowInboundInterceptor] | None:
        return _Noting if traces.on() else None


class _Noting(WorkflowInboundInterceptor):
    def init(self, outbound: WorkflowOutboundInterceptor) -> None:
        super().init(_Following(outbound))

    async def handle_signal(self, input: HandleSignalInput) -> None:
        input.args = _noted(input.args)
        await super().handle_signal(input)

    async def handle_update_handler(self, input: HandleUpdateInput) -> Any:
        input.args = _noted(input.args)
        return await super().handle_update_handler(input)


class _Following(WorkflowOutboundInterceptor):
    def start_activity(self, input: StartActivityInput) -> ActivityHandle[Any]:
        with traces.following(_asked(input.args)):
            return super().start_activity(input)


def _asked(args: Sequence[Any]) -> Asked | None:
    asked = getattr(args[0], "asked", None) if args else None
    return asked if isinstance(asked, Asked) else None


def _noted(args: Sequence[Any]) -> Sequence[Any]:
    """The message with the span of its handling, when that is part of the asker's trace."""
    asked = _asked(args)
    trace_id, span_id = traces.here()
    if asked is None or not span_id or trace_id != asked.trace_id:
        return args
    noted = asked.model_copy(update={"span_id": span_id})
    return [cast(Any, args[0]).model_copy(update={"asked": noted}), *args[1:]]
