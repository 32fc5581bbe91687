"""Has activities behind the default priority wait in the task queue, where Temporal orders them.

The worker that schedules an activity runs it at once if a slot is free (an eager activity): the queue
and its priorities never see it. Refreshes ahead of time, webhooks and introspection are not urgent.
"""

from typing import Any

from temporalio.worker import (
    Interceptor,
    StartActivityInput,
    WorkflowInboundInterceptor,
    WorkflowInterceptorClassInput,
    WorkflowOutboundInterceptor,
)
from temporalio.workflow import ActivityHandle

_DEFAULT_PRIORITY = 3


class QueueOrderInterceptor(Interceptor):
    def workflow_interceptor_class(
        self, input: WorkflowInterceptorClassInput
    ) -> type[WorkflowInboundInterceptor]:
        return _Inbound


class _Inbound(WorkflowInboundInterceptor):
    def init(self, outbound: WorkflowOutboundInterceptor) -> None:
        super().init(_Outbound(outbound))


class _Outbound(WorkflowOutboundInterceptor):
    def start_activity(self, input: StartActivityInput) -> ActivityHandle[Any]:
        if (input.priority.priority_key or _DEFAULT_PRIORITY) > _DEFAULT_PRIORITY:
            input.disable_eager_execution = True
        return super().start_activity(input)
