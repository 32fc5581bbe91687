"""The calls that API and relay make to workflows, with our failures instead of Temporal's."""

from collections.abc import Awaitable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar

from temporalio.client import (
    Client,
    RPCTimeoutOrCancelledError,
    WorkflowExecution,
    WorkflowFailureError,
    WorkflowHandle,
    WorkflowQueryFailedError,
    WorkflowUpdateFailedError,
    WorkflowUpdateRPCTimeoutOrCancelledError,
)
from temporalio.common import (
    SearchAttributeKey,
    SearchAttributePair,
    TypedSearchAttributes,
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
)
from temporalio.exceptions import ApplicationError, WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from evergrant_server.core import preparing, search
from evergrant_server.core.errors import Code, Failure
from evergrant_server.core.ids import (
    ConnectionId,
    IntegrationId,
    Tenant,
    export_workflow_id,
    onboarding_workflow_id,
    webhook_workflow_id,
    workflow_id,
)
from evergrant_server.core.messages import (
    CONNECTION_WORKFLOW,
    DISCOVERY_WORKFLOW,
    EXPORT_WORKFLOW,
    QUERY_DESCRIBE,
    TASK_QUEUE,
    UPDATE_ENSURE_FRESH,
    Asked,
    ConnectionStart,
    Description,
    Discover,
    Discovered,
    EnsureFresh,
    ExportStart,
    Freshness,
)
from evergrant_server.core.onboarding import ONBOARDING_WORKFLOW, OnboardingStart
from evergrant_server.core.pushing import PUSH_WORKFLOW, PushRequest, push_workflow_id
from evergrant_server.core.receivers import FETCH_KEYS_WORKFLOW, FetchKeys
from evergrant_server.core.webhook_messages import SIGNAL_WAKE, WEBHOOK_WORKFLOW, WakeWebhook, WebhookStart

T = TypeVar("T")


class WorkflowGone(Exception):
    """There is no such workflow, or its run has closed: a message to it can't arrive any more."""


@dataclass(frozen=True)
class Running:
    """When a run began, and the state that it shows."""

    began: datetime
    state: str | None


@dataclass(frozen=True)
class NewestRun:
    run_id: str
    running: bool
    state: str | None  # the last one it showed


@dataclass(frozen=True)
class ClosedRun:
    """One run that has ended, however it did."""

    workflow_id: str
    run_id: str


class TemporalLink:
    """Speaks to the workflows of one namespace. Every call has a time limit in seconds."""

    def __init__(self, client: Client, task_queue: str = TASK_QUEUE) -> None:
        self._client = client
        self._task_queue = task_queue

    async def ready(self) -> bool:
        """True when Temporal answers."""
        try:
            return await self._client.service_client.check_health(timeout=timedelta(seconds=2))
        except (RPCError, RuntimeError):
            return False

    async def ensure_fresh(
        self, tenant: Tenant, connection_id: ConnectionId, ask: EnsureFresh, *, timeout: float
    ) -> Freshness:
        """Have the grant made newer than what was seen. Coalesce before calling.

        Raises Failure REFRESH_PENDING when it takes longer than `timeout` seconds,
        TEMPORAL_UNAVAILABLE when Temporal doesn't answer or knows no such workflow.
        """
        update = self._handle(tenant, connection_id).execute_update(
            UPDATE_ENSURE_FRESH,
            ask,
            result_type=Freshness,
            rpc_timeout=timedelta(seconds=timeout),
        )
        try:
            return await update
        except WorkflowUpdateFailedError as refused:
            return _rejected(refused, ask)
        except (WorkflowUpdateRPCTimeoutOrCancelledError, RPCTimeoutOrCancelledError):
            raise Failure(Code.REFRESH_PENDING, retry_after=1.0) from None
        except (RPCError, RuntimeError) as error:
            raise _unavailable(error) from None

    async def describe(
        self, tenant: Tenant, connection_id: ConnectionId, timeout: float = 2.0
    ) -> Description:
        """Ask the workflow itself. Without a worker there is no answer, hence the limit."""
        query = self._handle(tenant, connection_id).query(
            QUERY_DESCRIBE, result_type=Description, rpc_timeout=timedelta(seconds=timeout)
        )
        try:
            return await query
        except (RPCError, WorkflowQueryFailedError, RuntimeError) as error:
            raise _unavailable(error) from None

    async def discover(
        self, tenant: Tenant, integration_id: IntegrationId, asked: Asked, timeout: float
    ) -> Discovered:
        """Have an issuer's metadata read by a worker."""
        return await self._guarded(
            self._client.execute_workflow(
                DISCOVERY_WORKFLOW,
                Discover(tenant=tenant, integration_id=integration_id, asked=asked),
                id=f"discovery:{tenant}:{integration_id}",
                task_queue=self._task_queue,
                id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                execution_timeout=timedelta(seconds=timeout),
                result_type=Discovered,
                static_summary="endpoints of an integration",
            )
        )

    async def prepare(self, order: preparing.PrepareConsent, timeout: float) -> preparing.Prepared:
        """Have a worker tell a provider that a subject's browser comes."""
        return await self._guarded(
            self._client.execute_workflow(
                preparing.PREPARE_WORKFLOW,
                order,
                id=preparing.preparing_workflow_id(order.tenant, order.consent_id, order.revision),
                task_queue=self._task_queue,
                id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                execution_timeout=timedelta(seconds=timeout),
                result_type=preparing.Prepared,
                static_summary="before a browser goes to the provider",
            )
        )

    async def start_connection(
        self, start: ConnectionStart, *, again: bool = False, instead: bool = False
    ) -> None:
        """Start the workflow of a connection, unless it runs already.

        One that has ended as it should is not started, but `again`: when the store, read
        afterwards, still says that the connection lives. With `instead` a running one is
        terminated by the same call, so that there is no moment without one.
        """
        attributes = {
            search.TENANT: start.tenant,
            search.PROVIDER: start.provider,
            search.INTEGRATION: start.integration,
            search.STATE: start.life.state,
            search.SUBJECT: start.subject_hash,
        }
        pairs = [
            SearchAttributePair(SearchAttributeKey.for_keyword(name), str(value))
            for name, value in attributes.items()
        ]
        try:
            await self._guarded(
                self._client.start_workflow(
                    CONNECTION_WORKFLOW,
                    start,
                    id=workflow_id(start.tenant, start.connection_id),
                    task_queue=self._task_queue,
                    id_conflict_policy=WorkflowIDConflictPolicy.TERMINATE_EXISTING
                    if instead
                    else WorkflowIDConflictPolicy.USE_EXISTING,
                    id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE
                    if again
                    else WorkflowIDReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY,
                    search_attributes=TypedSearchAttributes(pairs),
                    static_summary=f"{start.integration} ({start.provider})",
                    static_details=f"asked for by {start.asked.by}",
                )
            )
        except WorkflowAlreadyStartedError:
            return  # it has even ended: nothing is left to start

    async def start_export(self, start: ExportStart) -> None:
        """Start the workflow of an export, unless it runs already or has ended."""
        try:
            await self._guarded(
                self._client.start_workflow(
                    EXPORT_WORKFLOW,
                    start,
                    id=export_workflow_id(start.tenant, start.export_id),
                    task_queue=self._task_queue,
                    id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                    id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
                    static_summary="export of grants",
                    static_details=f"asked for by {start.asked.by}",
                )
            )
        except WorkflowAlreadyStartedError:
            return

    async def fetch_keys(self, order: FetchKeys) -> None:
        """Have a transmitter's keys read, unless that is under way."""
        await self._guarded(
            self._client.start_workflow(
                FETCH_KEYS_WORKFLOW,
                order,
                id=f"keys:{order.tenant}:{order.receiver_id}",
                task_queue=self._task_queue,
                id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                static_summary="keys of a security event transmitter",
            )
        )

    async def push_request(self, order: PushRequest) -> None:
        """Have an authorization request pushed, once, and soon or never: a browser waits for it."""
        try:
            await self._guarded(
                self._client.start_workflow(
                    PUSH_WORKFLOW,
                    order,
                    id=push_workflow_id(order),
                    task_queue=self._task_queue,
                    id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                    id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
                    execution_timeout=timedelta(minutes=2),
                    static_summary="a pushed authorization request",
                )
            )
        except WorkflowAlreadyStartedError:
            return

    async def wake_webhook(self, order: WakeWebhook) -> None:
        """Signal the workflow that delivers to this webhook, or start it with the signal."""
        await self._guarded(
            self._client.start_workflow(
                WEBHOOK_WORKFLOW,
                WebhookStart(tenant=order.tenant, webhook_id=order.webhook_id),
                id=webhook_workflow_id(order.tenant, order.webhook_id),
                task_queue=self._task_queue,
                id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
                start_signal=SIGNAL_WAKE,
                start_signal_args=[order],
                static_summary="deliveries to a webhook",
            )
        )

    async def start_onboarding(self, start: OnboardingStart) -> None:
        """Start the workflow of a proposed definition, unless it runs already or has ended."""
        try:
            await self._guarded(
                self._client.start_workflow(
                    ONBOARDING_WORKFLOW,
                    start,
                    id=onboarding_workflow_id(start.tenant, start.definition_id),
                    task_queue=self._task_queue,
                    id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                    id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY,
                    static_summary=f"definition of {start.provider}",
                    static_details=f"proposed by {start.asked.by}",
                )
            )
        except WorkflowAlreadyStartedError:
            return

    async def signal(self, target: str, name: str, payload: dict[str, Any]) -> None:
        """Signal a workflow by id. Raises WorkflowGone, or Failure TEMPORAL_UNAVAILABLE."""
        await self._guarded(
            self._client.get_workflow_handle(target).signal(name, payload, rpc_timeout=timedelta(seconds=10))
        )

    async def history(self, workflow: str, run_id: str | None = None) -> list[dict[str, Any]]:
        """Every event of a run (the newest, without `run_id`), as Temporal's JSON."""
        handle = self._client.get_workflow_handle(workflow, run_id=run_id)
        history = await self._guarded(handle.fetch_history())
        return history.to_json_dict()["events"]

    async def current_run(self, workflow: str) -> str | None:
        """The id of the newest run, or None when Temporal has none."""
        try:
            return (await self._guarded(self._client.get_workflow_handle(workflow).describe())).run_id
        except WorkflowGone:
            return None

    async def newest_run(self, workflow: str) -> NewestRun | None:
        """The newest run, or None when Temporal has none: from Temporal itself, not from visibility."""
        try:
            found = await self._guarded(self._client.get_workflow_handle(workflow).describe())
        except WorkflowGone:
            return None
        return NewestRun(found.run_id, found.close_time is None, _state(found))

    async def idle(self, workflow: str) -> bool:
        """True while the newest run waits for a message or a time, and for no activity."""
        try:
            found = await self._guarded(self._client.get_workflow_handle(workflow).describe())
        except WorkflowGone:
            return False
        busy = found.raw_description.pending_activities or found.raw_description.HasField(
            "pending_workflow_task"
        )
        return found.close_time is None and not busy

    async def running(self, workflow: str) -> bool:
        """True while the newest run of this workflow is open."""
        try:
            description = await self._guarded(self._client.get_workflow_handle(workflow).describe())
        except WorkflowGone:
            return False
        return description.close_time is None

    async def running_connections(self) -> dict[str, Running]:
        """Running connection workflows by id, as visibility has them.

        Visibility lags behind: what is missing here may run all the same.
        """
        query = f"WorkflowType = '{CONNECTION_WORKFLOW}' AND ExecutionStatus = 'Running'"
        return {it.id: Running(it.start_time, _state(it)) for it in await self._listed(query)}

    async def closed_connections(self, since: datetime | None) -> list[ClosedRun]:
        """Runs of connection workflows that closed since then and are still kept by Temporal."""
        query = f"WorkflowType = '{CONNECTION_WORKFLOW}' AND ExecutionStatus != 'Running'"
        if since is not None:
            query += f" AND CloseTime >= '{since.isoformat()}'"
        return [ClosedRun(it.id, it.run_id) for it in await self._listed(query)]

    async def _listed(self, query: str) -> list[WorkflowExecution]:
        async def every() -> list[WorkflowExecution]:
            return [it async for it in self._client.list_workflows(query, page_size=1000)]

        return await self._guarded(every())

    async def is_closed(self, workflow: str, run_id: str) -> bool:
        handle = self._client.get_workflow_handle(workflow, run_id=run_id)
        return (await self._guarded(handle.describe())).close_time is not None

    def _handle(self, tenant: Tenant, connection_id: ConnectionId) -> WorkflowHandle[Any, Any]:
        return self._client.get_workflow_handle(workflow_id(tenant, connection_id))

    async def _guarded(self, call: Awaitable[T]) -> T:
        try:
            return await call
        except RPCError as error:
            if error.status is RPCStatusCode.NOT_FOUND:
                raise WorkflowGone from None
            raise _unavailable(error) from None
        except WorkflowFailureError as error:  # it was not done in time, or was ended by hand
            raise _unavailable(error.cause or error) from None
        except RuntimeError as error:
            raise _unavailable(error) from None


def _state(found: WorkflowExecution) -> str | None:
    return found.typed_search_attributes.get(SearchAttributeKey.for_keyword(search.STATE))


def _rejected(refused: WorkflowUpdateFailedError, ask: EnsureFresh) -> Freshness:
    """A validator's no, which names a code: the store already has the answer."""
    cause = refused.cause
    name = cause.type if isinstance(cause, ApplicationError) else None
    if name in set(Code) and name != Code.STORE_CONFLICT:
        return Freshness(generation=ask.seen_generation, problem=Code(name))
    if name == Code.STORE_CONFLICT:
        return Freshness(generation=ask.seen_generation + 1)
    raise Failure(Code.INTERNAL, "the workflow refused an update in an unknown way") from None


def _unavailable(error: BaseException) -> Failure:
    status = error.status.name if isinstance(error, RPCError) else type(error).__name__
    return Failure(Code.TEMPORAL_UNAVAILABLE, f"Temporal didn't do it: {status}", retry_after=1.0)
