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

from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import (
    ConnectionId,
    IntegrationId,
    Tenant,
    connection_workflow_id,
    definition_rollout_workflow_id,
    export_workflow_id,
    webhook_workflow_id,
)
from evergrant_server.core.messages import search_attributes, temporary_credentials
from evergrant_server.core.messages.connection import (
    CONNECTION_WORKFLOW,
    DISCOVERY_WORKFLOW,
    EXPORT_WORKFLOW,
    QUERY_DESCRIBE,
    UPDATE_ENSURE_FRESH,
    ConnectionDescription,
    ConnectionStart,
    DiscoverEndpoints,
    DiscoveryResult,
    EnsureFresh,
    EnsureFreshResult,
    ExportStart,
    RequestContext,
)
from evergrant_server.core.messages.definition_rollout import DEFINITION_ROLLOUT_WORKFLOW, RolloutStart
from evergrant_server.core.messages.par import (
    PUSHED_AUTHORIZATION_WORKFLOW,
    PushAuthorizationRequest,
    pushed_authorization_workflow_id,
)
from evergrant_server.core.messages.webhooks import SIGNAL_WAKE, WEBHOOK_WORKFLOW, WakeWebhook, WebhookStart
from evergrant_server.core.provider_events.receivers import FETCH_RECEIVER_KEYS_WORKFLOW, FetchReceiverKeys
from evergrant_server.temporal_link.calls import temporal_unavailable
from evergrant_server.temporal_link.runs import WorkflowRuns


class TemporalLink(WorkflowRuns):
    """Speaks to the workflows of one namespace. Every call has a time limit in seconds."""

    async def ensure_fresh(
        self, tenant: Tenant, connection_id: ConnectionId, ask: EnsureFresh, *, timeout: float
    ) -> EnsureFreshResult:
        """Have the grant made newer than what was seen. Coalesce before calling.

        Raises Failure REFRESH_PENDING when it takes longer than `timeout` seconds,
        TEMPORAL_UNAVAILABLE when Temporal doesn't answer or knows no such workflow.
        """
        update = self._connection_handle(tenant, connection_id).execute_update(
            UPDATE_ENSURE_FRESH,
            ask,
            result_type=EnsureFreshResult,
            rpc_timeout=timedelta(seconds=timeout),
        )
        try:
            return await update
        except WorkflowUpdateFailedError as refused:
            return _freshness_from_rejection(refused, ask)
        except (WorkflowUpdateRPCTimeoutOrCancelledError, RPCTimeoutOrCancelledError):
            raise Failure(ErrorCode.REFRESH_PENDING, retry_after=1.0) from None
        except (RPCError, RuntimeError) as error:
            raise temporal_unavailable(error) from None

    async def describe(
        self, tenant: Tenant, connection_id: ConnectionId, timeout: float = 2.0
    ) -> ConnectionDescription | None:
        """Ask the workflow itself; None when no run of it is open.

        Raises Failure TEMPORAL_UNAVAILABLE when it doesn't answer within `timeout` seconds, as
        without a worker.
        """
        query = self._connection_handle(tenant, connection_id).query(
            QUERY_DESCRIBE,
            result_type=ConnectionDescription,
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
            raise temporal_unavailable(error) from None

    async def discover(
        self, tenant: Tenant, integration_id: IntegrationId, asked: RequestContext, timeout: float
    ) -> DiscoveryResult:
        """Have an issuer's metadata read by a worker."""
        return await self._call(
            self._client.execute_workflow(
                DISCOVERY_WORKFLOW,
                DiscoverEndpoints(tenant=tenant, integration_id=integration_id, context=asked),
                id=f"discovery:{tenant}:{integration_id}",
                task_queue=self._task_queue,
                id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                execution_timeout=timedelta(seconds=timeout),
                result_type=DiscoveryResult,
                static_summary="endpoints of an integration",
            )
        )

    async def prepare_consent(
        self, order: temporary_credentials.RequestTemporaryCredentials, timeout: float
    ) -> temporary_credentials.TemporaryCredentialsResult:
        """Have a worker tell a provider that a subject's browser comes."""
        return await self._call(
            self._client.execute_workflow(
                temporary_credentials.TEMPORARY_CREDENTIALS_WORKFLOW,
                order,
                id=temporary_credentials.temporary_credentials_workflow_id(
                    order.tenant, order.consent_id, order.revision
                ),
                task_queue=self._task_queue,
                id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                execution_timeout=timedelta(seconds=timeout),
                result_type=temporary_credentials.TemporaryCredentialsResult,
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
            search_attributes.TENANT: start.tenant,
            search_attributes.PROVIDER: start.provider,
            search_attributes.INTEGRATION: start.integration,
            search_attributes.STATE: start.life.state,
            search_attributes.SUBJECT: start.subject_hash,
        }
        pairs = [
            SearchAttributePair(SearchAttributeKey.for_keyword(name), str(value))
            for name, value in attributes.items()
        ]
        await self._start_once(
            self._client.start_workflow(
                CONNECTION_WORKFLOW,
                start,
                id=connection_workflow_id(start.tenant, start.connection_id),
                task_queue=self._task_queue,
                id_conflict_policy=WorkflowIDConflictPolicy.TERMINATE_EXISTING
                if instead
                else WorkflowIDConflictPolicy.USE_EXISTING,
                id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE
                if again
                else WorkflowIDReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY,
                search_attributes=TypedSearchAttributes(pairs),
                static_summary=f"{start.integration} ({start.provider})",
                static_details=f"asked for by {start.context.by}",
            )
        )

    async def start_export(self, start: ExportStart) -> None:
        """Start the workflow of an export, unless it runs already or has ended."""
        await self._start_once(
            self._client.start_workflow(
                EXPORT_WORKFLOW,
                start,
                id=export_workflow_id(start.tenant, start.export_id),
                task_queue=self._task_queue,
                id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
                static_summary="export of grants",
                static_details=f"asked for by {start.context.by}",
            )
        )

    async def start_key_fetch(self, order: FetchReceiverKeys) -> None:
        """Have a transmitter's keys read, unless that is under way."""
        await self._call(
            self._client.start_workflow(
                FETCH_RECEIVER_KEYS_WORKFLOW,
                order,
                id=f"keys:{order.tenant}:{order.receiver_id}",
                task_queue=self._task_queue,
                id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                static_summary="keys of a security event transmitter",
            )
        )

    async def start_pushed_request(self, order: PushAuthorizationRequest) -> None:
        """Have an authorization request pushed, once, and soon or never: a browser waits for it."""
        await self._start_once(
            self._client.start_workflow(
                PUSHED_AUTHORIZATION_WORKFLOW,
                order,
                id=pushed_authorization_workflow_id(order),
                task_queue=self._task_queue,
                id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
                execution_timeout=timedelta(minutes=2),
                static_summary="a pushed authorization request",
            )
        )

    async def wake_webhook(self, order: WakeWebhook) -> None:
        """Signal the workflow that delivers to this webhook, or start it with the signal."""
        await self._call(
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

    async def start_onboarding(self, start: RolloutStart) -> None:
        """Start the workflow of a proposed definition, unless it runs already or has ended."""
        await self._start_once(
            self._client.start_workflow(
                DEFINITION_ROLLOUT_WORKFLOW,
                start,
                id=definition_rollout_workflow_id(start.tenant, start.definition_id),
                task_queue=self._task_queue,
                id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY,
                static_summary=f"definition of {start.provider}",
                static_details=f"proposed by {start.context.by}",
            )
        )

    async def signal(self, target: str, name: str, payload: dict[str, Any]) -> None:
        """Signal a workflow by id. Raises WorkflowGone, or Failure TEMPORAL_UNAVAILABLE."""
        await self._call(
            self._client.get_workflow_handle(target).signal(name, payload, rpc_timeout=timedelta(seconds=10))
        )

    def _connection_handle(self, tenant: Tenant, connection_id: ConnectionId) -> WorkflowHandle[Any, Any]:
        return self._client.get_workflow_handle(connection_workflow_id(tenant, connection_id))

    async def _start_once(self, start: Awaitable[object]) -> None:
        """Start a workflow, unless the one of this id has ended and isn't to begin again."""
        try:
            await self._call(start)
        except WorkflowAlreadyStartedError:
            return  # nothing is left to start


def _freshness_from_rejection(refused: WorkflowUpdateFailedError, ask: EnsureFresh) -> EnsureFreshResult:
    """A validator's no, which names a code: the store already has the answer."""
    cause = refused.cause
    name = cause.type if isinstance(cause, ApplicationError) else None
    if name in set(ErrorCode) and name != ErrorCode.STORE_CONFLICT:
        return EnsureFreshResult(generation=ask.seen_generation, problem=ErrorCode(name))
    if name == ErrorCode.STORE_CONFLICT:
        return EnsureFreshResult(generation=ask.seen_generation + 1)
    raise Failure(ErrorCode.INTERNAL, "the workflow refused an update in an unknown way") from None
