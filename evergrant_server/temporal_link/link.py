"""What API and relay ask of workflows: starts, signals, updates, queries."""

from collections.abc import Awaitable
from datetime import timedelta
from typing import Any

from temporalio.client import (
    RPCTimeoutOrCancelledError,
    WorkflowHandle,
    WorkflowQueryFailedError,
    WorkflowQueryRejectedError,
    WorkflowUpdateFailedError,
    WorkflowUpdateRPCTimeoutOrCancelledError,
)
from temporalio.common import (
    QueryRejectCondition,
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
from evergrant_server.temporal_link.calling import unavailable
from evergrant_server.temporal_link.runs import Runs


class TemporalLink(Runs):
    """Speaks to the workflows of one namespace. Every call has a time limit in seconds."""

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
            raise unavailable(error) from None

    async def describe(
        self, tenant: Tenant, connection_id: ConnectionId, timeout: float = 2.0
    ) -> Description | None:
        """Ask the workflow itself; None when no run of it is open.

        Raises Failure TEMPORAL_UNAVAILABLE when it doesn't answer within `timeout` seconds, as
        without a worker.
        """
        query = self._handle(tenant, connection_id).query(
            QUERY_DESCRIBE,
            result_type=Description,
            reject_condition=QueryRejectCondition.NOT_OPEN,
            rpc_timeout=timedelta(seconds=timeout),
        )
        try:
            return await query
        except WorkflowQueryRejectedError:
            return None
        except (RPCError, WorkflowQueryFailedError, RuntimeError) as error:
            if isinstance(error, RPCError) and error.status is RPCStatusCode.NOT_FOUND:
                return None
            raise unavailable(error) from None

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
        await self._begun(
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

    async def start_export(self, start: ExportStart) -> None:
        """Start the workflow of an export, unless it runs already or has ended."""
        await self._begun(
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
        await self._begun(
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
        await self._begun(
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

    async def signal(self, target: str, name: str, payload: dict[str, Any]) -> None:
        """Signal a workflow by id. Raises WorkflowGone, or Failure TEMPORAL_UNAVAILABLE."""
        await self._guarded(
            self._client.get_workflow_handle(target).signal(name, payload, rpc_timeout=timedelta(seconds=10))
        )

    def _handle(self, tenant: Tenant, connection_id: ConnectionId) -> WorkflowHandle[Any, Any]:
        return self._client.get_workflow_handle(workflow_id(tenant, connection_id))

    async def _begun(self, start: Awaitable[object]) -> None:
        """Start a workflow, unless the one of this id has ended and isn't to begin again."""
        try:
            await self._guarded(start)
        except WorkflowAlreadyStartedError:
            return  # nothing is left to start


def _rejected(refused: WorkflowUpdateFailedError, ask: EnsureFresh) -> Freshness:
    """A validator's no, which names a code: the store already has the answer."""
    cause = refused.cause
    name = cause.type if isinstance(cause, ApplicationError) else None
    if name in set(Code) and name != Code.STORE_CONFLICT:
        return Freshness(generation=ask.seen_generation, problem=Code(name))
    if name == Code.STORE_CONFLICT:
        return Freshness(generation=ask.seen_generation + 1)
    raise Failure(Code.INTERNAL, "the workflow refused an update in an unknown way") from None
