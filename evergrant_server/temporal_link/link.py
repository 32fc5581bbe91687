"""Sends messages to workflows and starts them, for the API and the relay."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, TypeVar

from temporalio.client import (
    Client,
    RPCTimeoutOrCancelledError,
    WorkflowHandle,
    WorkflowQueryFailedError,
    WorkflowQueryRejectedError,
    WorkflowUpdateFailedError,
    WorkflowUpdateRPCTimeoutOrCancelledError,
)
from temporalio.common import (
    Priority,
    QueryRejectCondition,
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
)
from temporalio.exceptions import ApplicationError, WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from evergrant_server.core.clock import Clock
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import ConnectionId, IntegrationId, Tenant
from evergrant_server.core.messages.base import Message, RequestContext, RequestMessage
from evergrant_server.core.messages.connection import ConnectionDescription, EnsureFresh, EnsureFreshResult
from evergrant_server.core.messages.integrations import (
    ClientDocumentResult,
    DiscoverEndpoints,
    DiscoveryResult,
    LoginResult,
    ReadClientDocument,
    RequestTemporaryCredentials,
    TemporaryCredentialsResult,
    VerifyLogin,
    VerifyPerson,
)
from evergrant_server.core.messages.names import (
    TASK_QUEUE,
    QueryName,
    UpdateName,
    WorkflowName,
    client_document_workflow_id,
    connection_workflow_id,
    discovery_workflow_id,
    login_workflow_id,
    person_login_workflow_id,
    temporary_credentials_workflow_id,
)
from evergrant_server.crypto import KeyRing
from evergrant_server.crypto.request_proof import prove_request
from evergrant_server.temporal_link.runs import WorkflowRuns, call_temporal, temporal_unavailable
from evergrant_server.temporal_link.start_requests import StartRequest

RequestT = TypeVar("RequestT", bound=RequestMessage)

_MOST_TRIES = 5  # to get an id back from whoever takes it


class TemporalLink(WorkflowRuns):
    """Sends messages to the workflows of one namespace. Every call has a time limit in seconds.

    Each raises Failure TEMPORAL_UNAVAILABLE when Temporal doesn't answer.
    """

    def __init__(self, client: Client, ring: KeyRing, clock: Clock, task_queue: str = TASK_QUEUE) -> None:
        super().__init__(client, task_queue)
        self._ring = ring
        self._clock = clock

    async def ensure_fresh(
        self, tenant: Tenant, connection_id: ConnectionId, request: EnsureFresh, *, timeout: float
    ) -> EnsureFreshResult:
        """Request a grant newer than the one that the caller has seen. Coalesce before calling.

        Raises Failure REFRESH_PENDING when it takes longer than `timeout` seconds, and
        TEMPORAL_UNAVAILABLE also when Temporal knows no such workflow.
        """
        workflow = connection_workflow_id(tenant, connection_id)
        update = self._connection_handle(tenant, connection_id).execute_update(
            UpdateName.ENSURE_FRESH,
            self._proven(request, workflow, UpdateName.ENSURE_FRESH),
            result_type=EnsureFreshResult,
            rpc_timeout=timedelta(seconds=timeout),
        )
        try:
            return await update
        except WorkflowUpdateFailedError as rejection:
            return _freshness_from_rejection(rejection, request)
        except (WorkflowUpdateRPCTimeoutOrCancelledError, RPCTimeoutOrCancelledError):
            raise Failure(ErrorCode.REFRESH_PENDING, retry_after=1.0) from None
        except (RPCError, RuntimeError) as error:
            raise temporal_unavailable(error) from None

    async def describe(
        self, tenant: Tenant, connection_id: ConnectionId, timeout: float = 2.0
    ) -> ConnectionDescription | None:
        """Query the connection's workflow; None when no run of it is open.

        Raises Failure TEMPORAL_UNAVAILABLE also when no worker answers the query in time.
        """
        query = self._connection_handle(tenant, connection_id).query(
            QueryName.DESCRIBE,
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

    async def signal(self, workflow: str, name: str, payload: dict[str, Any]) -> None:
        """Signal a workflow by id. Raises WorkflowNotRunning as well."""
        handle = self._client.get_workflow_handle(workflow)
        await call_temporal(handle.signal(name, payload, rpc_timeout=timedelta(seconds=10)))

    async def discover(
        self, tenant: Tenant, integration_id: IntegrationId, context: RequestContext, timeout: float
    ) -> DiscoveryResult:
        """Have a worker read an issuer's metadata, and wait for the result."""
        return await self._execute(
            WorkflowName.DISCOVERY,
            DiscoverEndpoints(tenant=tenant, integration_id=integration_id, context=context),
            discovery_workflow_id(tenant, integration_id),
            timeout,
            result_type=DiscoveryResult,
            static_summary="endpoints of an integration",
        )

    async def prepare_consent(
        self, request: RequestTemporaryCredentials, timeout: float
    ) -> TemporaryCredentialsResult:
        """Have a worker get temporary credentials (RFC 5849 section 2.1), and wait for the result."""
        return await self._execute(
            WorkflowName.TEMPORARY_CREDENTIALS,
            request,
            temporary_credentials_workflow_id(request.tenant, request.consent_id, request.revision),
            timeout,
            result_type=TemporaryCredentialsResult,
            static_summary="temporary credentials before the redirect to the provider",
        )

    async def verify_login(self, request: VerifyLogin, timeout: float) -> LoginResult:
        """Have a worker exchange the code of a subject's login, and wait for the result."""
        return await self._execute(
            WorkflowName.VERIFY_LOGIN,
            request,
            login_workflow_id(request.tenant, request.consent_id, request.revision),
            timeout,
            result_type=LoginResult,
            static_summary="the subject's login before the redirect to the provider",
        )

    async def verify_person(self, request: VerifyPerson, timeout: float) -> LoginResult:
        """Have a worker exchange the code of a person's login, and wait for the result."""
        return await self._execute(
            WorkflowName.VERIFY_PERSON,
            request,
            person_login_workflow_id(request.tenant, request.login_id, request.revision),
            timeout,
            result_type=LoginResult,
            static_summary="the login of a person who administers",
        )

    async def read_client_document(self, request: ReadClientDocument, timeout: float) -> ClientDocumentResult:
        """Have a worker read a client's metadata document, and wait for the result."""
        return await self._execute(
            WorkflowName.READ_CLIENT_DOCUMENT,
            request,
            client_document_workflow_id(request.client_id),
            timeout,
            result_type=ClientDocumentResult,
            static_summary="the metadata document of an OAuth client",
        )

    async def start(self, request: StartRequest) -> str | None:
        """Start a workflow, unless its id is running; returns the run that has the id.

        None when a closed run has used up the id. A foreign or a stuck run has no right to it: it is
        terminated, and what it has used up isn't. Raises Failure TEMPORAL_UNAVAILABLE also when the id is
        taken again each time.
        """
        options = dict(request.options)
        for _ in range(_MOST_TRIES):
            started = await self._start(request, options)
            if started is not None:
                return started
            run = await self.usable_run(request.workflow_id)
            if run is None or run.running:  # None: it has gone meanwhile
                if run is not None:
                    return run.run_id
            elif not (run.is_foreign or run.is_stuck):
                return None
            options["id_reuse_policy"] = WorkflowIDReusePolicy.ALLOW_DUPLICATE
        why = f"{request.workflow_id} is taken again and again"
        raise Failure(ErrorCode.TEMPORAL_UNAVAILABLE, why, retry_after=1.0)

    async def _start(self, request: StartRequest, options: Mapping[str, Any]) -> str | None:
        """The new run; None when the id was taken. One that is signalled may be an old one, so None too."""
        signals = "start_signal" in options
        policy = WorkflowIDConflictPolicy.USE_EXISTING if signals else WorkflowIDConflictPolicy.FAIL
        try:
            handle = await call_temporal(
                self._client.start_workflow(
                    request.workflow,
                    request.argument,
                    id=request.workflow_id,
                    task_queue=self._task_queue,
                    priority=_fair(request.argument),
                    static_summary=request.summary,
                    **{"id_conflict_policy": policy, **options},
                )
            )
        except WorkflowAlreadyStartedError:
            return None
        return None if signals else handle.result_run_id

    async def _execute(
        self, workflow: str, argument: RequestMessage, workflow_id: str, timeout: float, **options: Any
    ) -> Any:
        """Start a workflow, or join the running one, and wait for its result."""
        run_id = await self.start(
            StartRequest(
                workflow,
                self._proven(argument, workflow_id, workflow),
                workflow_id,
                options.pop("static_summary"),
                {"execution_timeout": timedelta(seconds=timeout)},
            )
        )
        handle = self._client.get_workflow_handle(workflow_id, run_id=run_id, **options)
        return await call_temporal(handle.result())

    def _proven(self, message: RequestT, workflow_id: str, name: str) -> RequestT:
        context = prove_request(self._ring, message.context, workflow_id, name, self._clock.now())
        return message.__replace__(context=context)

    def _connection_handle(self, tenant: Tenant, connection_id: ConnectionId) -> WorkflowHandle[Any, Any]:
        return self._client.get_workflow_handle(connection_workflow_id(tenant, connection_id))


def _fair(argument: Message) -> Priority:
    """The tasks of a run, and the activities that it schedules, are taken in turn with other tenants'."""
    return Priority(fairness_key=getattr(argument, "tenant", None))


def _freshness_from_rejection(
    rejection: WorkflowUpdateFailedError, request: EnsureFresh
) -> EnsureFreshResult:
    """The validator's rejection as a result. It names a code: the store already has the answer."""
    cause = rejection.cause
    name = cause.type if isinstance(cause, ApplicationError) else None
    if name == ErrorCode.STORE_CONFLICT:
        return EnsureFreshResult(generation=request.seen_generation + 1)
    if name in set(ErrorCode):
        return EnsureFreshResult(generation=request.seen_generation, problem=ErrorCode(name))
    raise Failure(ErrorCode.INTERNAL, "the workflow rejected an update without a code") from None
