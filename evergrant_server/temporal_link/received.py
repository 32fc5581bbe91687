"""What a worker does with arguments of Temporal's namespace that can't be read (`core.messages.received`).

The converter puts UNREADABLE in their place, and the interceptor keeps them away from every handler: a
signal is dropped and counted, an update is rejected, a run fails and isn't tried again. Queries take nothing.
"""

import copy
import logging
from collections.abc import Sequence
from typing import Any

from temporalio import workflow
from temporalio.api.common.v1 import Payload
from temporalio.common import RawValue
from temporalio.contrib.pydantic import PydanticPayloadConverter
from temporalio.converter import (
    DataConverter,
    SerializationContext,
    WithSerializationContext,
    WorkflowSerializationContext,
)
from temporalio.exceptions import ApplicationError
from temporalio.worker import (
    ExecuteWorkflowInput,
    HandleSignalInput,
    HandleUpdateInput,
    Interceptor,
    WorkflowInboundInterceptor,
    WorkflowInterceptorClassInput,
)

from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.messages.base import Received
from evergrant_server.core.messages.jobs import JOBS
from evergrant_server.core.messages.names import SignalName, UpdateName, WorkflowName
from evergrant_server.core.messages.received import UNREADABLE, is_received, is_usable
from evergrant_server.telemetry import metrics
from evergrant_server.telemetry.logs import LogEvent, log_event

log = logging.getLogger("evergrant.workflows")

_NAMES = {*WorkflowName, *JOBS, *SignalName, *UpdateName}


class MessageConverter(PydanticPayloadConverter, WithSerializationContext):
    """Pydantic's JSON; what a workflow receives and can't be read becomes UNREADABLE there.

    Results and requests of activities raise as ever: another worker may be able to read them.
    """

    _of_workflow = False

    def with_context(self, context: SerializationContext) -> "MessageConverter":
        if not isinstance(context, WorkflowSerializationContext):
            return self
        tolerant = copy.copy(self)
        tolerant._of_workflow = True
        return tolerant

    def from_payloads(self, payloads: Sequence[Payload], type_hints: list[type] | None = None) -> list[Any]:
        if not self._of_workflow:
            return super().from_payloads(payloads, type_hints)
        if type_hints and len(payloads) == 1 and _is_received_type(type_hints[0]):
            return [self._read(payloads[0], type_hints[0])]
        try:
            return super().from_payloads(payloads, type_hints)
        except Exception:
            if type_hints is None:  # a handler takes fewer arguments, or more
                return [UNREADABLE]
            raise

    def _read(self, payload: Payload, wanted: type[Received]) -> Any:
        if payload.ByteSize() > wanted.longest:
            return UNREADABLE
        try:
            (value,) = super().from_payloads([payload], [wanted])
        except Exception:  # pydantic's, a text codec's, or that of an unknown encoding
            return UNREADABLE
        return value if isinstance(value, wanted) and is_usable(value) else UNREADABLE


DATA_CONVERTER = DataConverter(payload_converter_class=MessageConverter)


class ReceivedInterceptor(Interceptor):
    """Comes first of a worker's interceptors: those that follow see messages that can be read."""

    def workflow_interceptor_class(
        self, input: WorkflowInterceptorClassInput
    ) -> type[WorkflowInboundInterceptor]:
        return _ReadableAlone


class _ReadableAlone(WorkflowInboundInterceptor):
    async def execute_workflow(self, input: ExecuteWorkflowInput) -> Any:
        if not is_received(input.args):
            _report("start", workflow.info().workflow_type)
            raise _unreadable("the input of this run")
        # without a handler the SDK would keep signals of unknown names in the run's memory
        workflow.set_dynamic_signal_handler(_unknown_signal)
        return await super().execute_workflow(input)

    async def handle_signal(self, input: HandleSignalInput) -> None:
        if is_received(input.args) and vars(workflow.instance()):  # empty: the input of its run wasn't read
            await super().handle_signal(input)
        else:
            _report("signal", input.signal)

    def handle_update_validator(self, input: HandleUpdateInput) -> None:
        self._require_readable(input)
        super().handle_update_validator(input)

    async def handle_update_handler(self, input: HandleUpdateInput) -> Any:
        self._require_readable(input)
        return await super().handle_update_handler(input)

    def _require_readable(self, input: HandleUpdateInput) -> None:
        if not is_received(input.args) or not vars(workflow.instance()):
            _report("update", input.update)
            raise _unreadable("the argument of this update")


def _is_received_type(type_hint: Any) -> bool:
    return isinstance(type_hint, type) and issubclass(type_hint, Received)


def _unknown_signal(name: str, arguments: Sequence[RawValue]) -> None:
    raise AssertionError("the interceptor has dropped it")


def _unreadable(argument: str) -> ApplicationError:
    return ApplicationError(f"{argument} can't be read", type=ErrorCode.INVALID_REQUEST, non_retryable=True)


def _report(kind: str, name: str) -> None:
    """Log and count a message that was dropped or rejected, once: not when a history is replayed."""
    if workflow.unsafe.is_replaying():
        return
    info = workflow.info()
    known = name if name in _NAMES else "of an unknown name"  # whoever wrote it chose the name
    detail = f"{kind} {known} to {info.workflow_type}"
    log_event(log, logging.WARNING, LogEvent.MESSAGE_UNREADABLE, detail, object=info.workflow_id)
    metrics.count(metrics.UNREADABLE_MESSAGES, kind)
