"""Workflows of one activity each: the API or a schedule starts them, and history keeps the result."""

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from evergrant_server.core.messages import decisions, integrations, maintenance
    from evergrant_server.core.messages.names import WorkflowName
    from workflows import activity_calls


@workflow.defn(name=WorkflowName.DISCOVERY)
class DiscoveryWorkflow:
    @workflow.run
    async def run(self, request: integrations.DiscoverEndpoints) -> integrations.DiscoveryResult:
        return await activity_calls.discover_endpoints(request)


@workflow.defn(name=WorkflowName.FETCH_RECEIVER_KEYS)
class FetchReceiverKeysWorkflow:
    @workflow.run
    async def run(self, request: integrations.FetchReceiverKeys) -> integrations.ReceiverKeysResult:
        return await activity_calls.fetch_receiver_keys(request)


@workflow.defn(name=WorkflowName.FETCH_ISSUER_KEYS)
class FetchIssuerKeysWorkflow:
    @workflow.run
    async def run(self, request: maintenance.FetchIssuerKeys) -> maintenance.IssuerKeysResult:
        return await activity_calls.fetch_issuer_keys(request)


@workflow.defn(name=WorkflowName.PUSHED_AUTHORIZATION)
class PushedAuthorizationWorkflow:
    @workflow.run
    async def run(self, request: integrations.PushAuthorizationRequest) -> integrations.PushResult:
        return await activity_calls.push_authorization_request(request)


@workflow.defn(name=WorkflowName.TEMPORARY_CREDENTIALS)
class TemporaryCredentialsWorkflow:
    @workflow.run
    async def run(
        self, request: integrations.RequestTemporaryCredentials
    ) -> integrations.TemporaryCredentialsResult:
        return await activity_calls.request_temporary_credentials(request)


@workflow.defn(name=WorkflowName.VERIFY_LOGIN)
class VerifyLoginWorkflow:
    @workflow.run
    async def run(self, request: integrations.VerifyLogin) -> integrations.LoginResult:
        return await activity_calls.verify_login(request)


@workflow.defn(name=WorkflowName.VERIFY_PERSON)
class VerifyPersonWorkflow:
    @workflow.run
    async def run(self, request: integrations.VerifyPerson) -> integrations.LoginResult:
        return await activity_calls.verify_person(request)


@workflow.defn(name=WorkflowName.READ_CLIENT_DOCUMENT)
class ReadClientDocumentWorkflow:
    @workflow.run
    async def run(self, request: integrations.ReadClientDocument) -> integrations.ClientDocumentResult:
        return await activity_calls.read_client_document(request)


@workflow.defn(name=WorkflowName.INTROSPECTION)
class IntrospectionWorkflow:
    @workflow.run
    async def run(self, request: maintenance.IntrospectGrants) -> maintenance.IntrospectGrantsResult:
        return await activity_calls.introspect_grants(request)


@workflow.defn(name=WorkflowName.REREAD_METADATA)
class RereadMetadataWorkflow:
    @workflow.run
    async def run(self, request: maintenance.RereadMetadata) -> maintenance.RereadMetadataResult:
        return await activity_calls.reread_metadata(request)


@workflow.defn(name=WorkflowName.REVIEW_PERMITS)
class ReviewPermitsWorkflow:
    @workflow.run
    async def run(self, request: decisions.ReviewPermits) -> decisions.ReviewPermitsResult:
        return await activity_calls.review_permits(request)


@workflow.defn(name=WorkflowName.RECONCILE)
class ReconcileWorkflow:
    """Started by a schedule; continues where the run before it ended. Sees counts alone."""

    @workflow.run
    async def run(self, request: maintenance.ReconcileRequest) -> maintenance.ReconcileResult:
        last = workflow.get_last_completion_result(maintenance.ReconcileResult)
        if last is not None:
            request = request.__replace__(
                audit_checkpoint=last.audit_checkpoint,
                closed_since=last.closed_since,
                so_far=None if last.after is None else last,
            )
        return await activity_calls.reconcile(request)
