"""Checks what a worker can't take on trust from Temporal's namespace: whose workflow it is, who requested it.

Everyone who can write to the namespace can schedule an activity on the worker's task queue, and signal a
connection's workflow in any name. The first is refused, the second is recorded as claimed (ADR 0031).
"""

import logging
from datetime import timedelta
from typing import Any

from temporalio import activity
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from evergrant_server.core.clock import Clock
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.messages.activities import (
    BeginRevocation,
    ConnectionCall,
    RevokeGrant,
    RevokeReplacedGrants,
)
from evergrant_server.core.messages.base import SCHEDULE, RequestContext, RequestMessage
from evergrant_server.core.messages.decisions import CallApprovalCall
from evergrant_server.core.messages.export import ExportCall
from evergrant_server.core.messages.integrations import DefinitionCall
from evergrant_server.core.messages.names import (
    SignalName,
    WorkflowName,
    connection_workflow_id,
    definition_rollout_workflow_id,
    export_workflow_id,
    replaced_grants_workflow_id,
)
from evergrant_server.crypto import KeyRing
from evergrant_server.crypto.request_proof import GATEWAY_MESSAGES, as_claimed, proven_message
from evergrant_server.telemetry import metrics
from evergrant_server.telemetry.logs import LogEvent, log_event

log = logging.getLogger("evergrant.activities")

_LONGEST_WAIT = timedelta(days=1)  # a copied message of a connection proves nothing afterwards
_LASTING = (ExportCall, DefinitionCall, RevokeReplacedGrants)  # each of one request, which may be older


class AuthenticityInterceptor(Interceptor):
    """Every activity whose request names a requester gets one that is proven, or says that it is claimed."""

    def __init__(self, ring: KeyRing, clock: Clock) -> None:
        self._ring = ring
        self._clock = clock

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        return _AuthenticActivity(next, self._ring, self._clock)


class _AuthenticActivity(ActivityInboundInterceptor):
    def __init__(self, next: ActivityInboundInterceptor, ring: KeyRing, clock: Clock) -> None:
        super().__init__(next)
        self._ring = ring
        self._clock = clock

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        request = input.args[0] if input.args else None
        if isinstance(request, RequestMessage):
            _require_own_workflow(request)
            input.args = [request.__replace__(context=self._checked(request))]
        return await self.next.execute_activity(input)

    def _checked(self, request: RequestMessage) -> RequestContext:
        context, workflow_id = request.context, activity.info().workflow_id or ""
        if context.by == SCHEDULE and not context.proof:  # a run marks those that it received
            return RequestContext(by=SCHEDULE)
        longest = timedelta.max if isinstance(request, _LASTING) else _LONGEST_WAIT
        message = proven_message(self._ring, context, workflow_id, self._clock.now(), longest)
        return context if message is not None and _fits(message, request) else as_claimed(context)


def _fits(message: str, request: RequestMessage) -> bool:
    """False when the activity is none that this message leads to: a proof is for one message alone."""
    if message in GATEWAY_MESSAGES and not _is_of_gateways(request):
        return False
    if isinstance(request, DefinitionCall) and request.roll_back is not None:
        return message == SignalName.ROLL_BACK_DEFINITION
    revokes = isinstance(request, BeginRevocation | RevokeGrant)
    return revokes == (message == SignalName.REVOKE)


def _is_of_gateways(request: RequestMessage) -> bool:
    """True for an activity that a gateway's messages lead to: none of them ends anything."""
    ends = isinstance(request, BeginRevocation | RevokeGrant | RevokeReplacedGrants)
    return isinstance(request, ConnectionCall | CallApprovalCall) and not ends


def _require_own_workflow(request: RequestMessage) -> None:
    """Raise Failure INVALID_REQUEST unless the workflow is the one that its request's rows belong to."""
    owner = _own_workflow(request)
    info = activity.info()
    if owner is None or owner == (info.workflow_type, info.workflow_id):
        return
    detail = f"{info.activity_type} was scheduled by {info.workflow_type or 'no workflow'}"
    log_event(log, logging.ERROR, LogEvent.FOREIGN_ACTIVITY, detail, object=info.workflow_id or "")
    metrics.count_unexpected(info.activity_type, LogEvent.FOREIGN_ACTIVITY)
    raise Failure(ErrorCode.INVALID_REQUEST, f"it is scheduled by {owner[1]} alone")


def _own_workflow(request: RequestMessage) -> tuple[str, str] | None:
    """Type and id of the only workflow that may schedule it; None for what changes no such row."""
    match request:
        case RevokeReplacedGrants():
            id = replaced_grants_workflow_id(request.tenant, request.connection_id)
            return WorkflowName.REPLACED_GRANTS, id
        case ConnectionCall():
            return WorkflowName.CONNECTION, connection_workflow_id(request.tenant, request.connection_id)
        case ExportCall():
            return WorkflowName.EXPORT, export_workflow_id(request.tenant, request.export_id)
        case DefinitionCall():
            id = definition_rollout_workflow_id(request.tenant, request.definition_id)
            return WorkflowName.DEFINITION_ROLLOUT, id
        case _:
            return None
