"""What every activity passes: whose it is and who requested it, its turn, and what its failure becomes.

Everyone who can write to the namespace can schedule an activity on the worker's task queue, and signal a
connection's workflow in any name. The first is refused, the second is recorded as claimed (ADR 0031).

An activity that calls a provider or a webhook's receiver may hang for as long as that does. Those of
one tenant take at most half of the slots, and those of one integration a third. Whose turn an activity
takes is in the table of jobs; where it takes none, the worker's egress sends nothing for it.
"""

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Any

from temporalio import activity
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from activities.support.temporal import (
    as_failure,
    has_last_result,
    is_last_try,
    last_result,
    report_internal,
    to_application_error,
)
from evergrant_server.bounded_concurrency import FairTurns
from evergrant_server.core.clock import Clock, seconds_since_boot
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
from evergrant_server.core.messages.jobs import ACTIVITIES
from evergrant_server.core.messages.keys import KeyRotationCall
from evergrant_server.core.messages.names import (
    SignalName,
    WorkflowName,
    connection_workflow_id,
    definition_rollout_workflow_id,
    export_workflow_id,
    key_rotation_workflow_id,
    replaced_grants_workflow_id,
)
from evergrant_server.crypto import KeyRing
from evergrant_server.crypto.request_proof import GATEWAY_MESSAGES, as_claimed, proven_message
from evergrant_server.egress import may_call_out
from evergrant_server.telemetry import metrics, saturation
from evergrant_server.telemetry.logs import LogEvent, log_event

log = logging.getLogger("evergrant.activities")

ACTIVITY_SLOTS = 100  # of a worker: Temporal's default
PATIENCE_S = 3.0  # below a heartbeat's timeout; then the slot is another's, and Temporal tries again
_NOTICED_S = 0.5
_LONGEST_WAIT = timedelta(days=1)  # a copied message of a connection proves nothing afterwards
# each of one request, which may be older
_LASTING = (ExportCall, DefinitionCall, KeyRotationCall, RevokeReplacedGrants)


class ActivityInterceptor(Interceptor):
    """Every activity whose request names a requester gets one that is proven, or says that it is claimed. One
    that calls out waits for its turn. Each failure is mapped."""

    def __init__(self, ring: KeyRing, clock: Clock, slots: int = ACTIVITY_SLOTS) -> None:
        self.ring = ring
        self.clock = clock
        self.turns = FairTurns(slots)

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        return _CheckedActivity(next, self)


class _CheckedActivity(ActivityInboundInterceptor):
    def __init__(self, next: ActivityInboundInterceptor, worker: ActivityInterceptor) -> None:
        super().__init__(next)
        self._worker = worker

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        try:
            request = input.args[0] if input.args else None
            if isinstance(request, RequestMessage):
                _require_own_workflow(request)
                context = _checked_context(request, self._worker.ring, self._worker.clock)
                input.args = [request.__replace__(context=context)]
            async with _turn(request, self._worker.turns):
                return await self.next.execute_activity(input)
        except Exception as error:
            failure = as_failure(error)
        if failure.code is ErrorCode.INTERNAL or is_last_try(failure):
            report_internal(failure)
        if has_last_result(failure):
            return last_result()
        raise to_application_error(failure) from None


@asynccontextmanager
async def _turn(request: Any, turns: FairTurns) -> AsyncIterator[None]:
    """The activity's turn, or none: then it can send nothing. Raises Failure WORKER_BUSY after a while."""
    name = activity.info().activity_type
    row = ACTIVITIES.get(name)
    if row is None or row.turn is None:
        token = may_call_out.set(False)
        try:
            yield
        finally:
            may_call_out.reset(token)
        return
    turn, began_at = row.turn(request), seconds_since_boot()
    async with AsyncExitStack() as held:
        try:
            await held.enter_async_context(turns.turn(*turn, within_s=PATIENCE_S))
        except TimeoutError:
            saturation.count_postponed(name)
            why = f"{turn.tenant or 'the installation'} has its share of this worker"
            raise Failure(ErrorCode.WORKER_BUSY, why) from None
        if seconds_since_boot() - began_at > _NOTICED_S:  # its own first heartbeat could come too late
            activity.heartbeat(*activity.info().heartbeat_details)
        yield


def _checked_context(request: RequestMessage, ring: KeyRing, clock: Clock) -> RequestContext:
    context, workflow_id = request.context, activity.info().workflow_id or ""
    if context.by == SCHEDULE and not context.proof:  # a run marks those that it received
        return RequestContext(by=SCHEDULE)
    longest = timedelta.max if isinstance(request, _LASTING) else _LONGEST_WAIT
    message = proven_message(ring, context, workflow_id, clock.now(), longest)
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
        case KeyRotationCall():
            id = key_rotation_workflow_id(request.tenant, request.kind, request.connection_id)
            return WorkflowName.KEY_ROTATION, id
        case DefinitionCall():
            id = definition_rollout_workflow_id(request.tenant, request.definition_id)
            return WorkflowName.DEFINITION_ROLLOUT, id
        case _:
            return None
