"""Workflows of one activity each: the API or a schedule starts them, and history keeps what came of it."""

from temporalio import workflow

with workflow.unsafe.imports_passed_through():
    from evergrant_server.core.messages.base import WorkflowName
    from evergrant_server.core.messages.integrations import (
        DiscoverEndpoints,
        DiscoveryResult,
        FetchReceiverKeys,
        PushAuthorizationRequest,
        PushResult,
        ReceiverKeysResult,
        RequestTemporaryCredentials,
        TemporaryCredentialsResult,
    )
    from evergrant_server.core.messages.maintenance import (
        IntrospectGrants,
        IntrospectGrantsResult,
        RereadMetadata,
        RereadMetadataResult,
    )
    from workflows import activity_calls


@workflow.defn(name=WorkflowName.DISCOVERY)
class DiscoveryWorkflow:
    @workflow.run
    async def run(self, request: DiscoverEndpoints) -> DiscoveryResult:
        return await activity_calls.discover_endpoints(request)


@workflow.defn(name=WorkflowName.FETCH_RECEIVER_KEYS)
class FetchReceiverKeysWorkflow:
    @workflow.run
    async def run(self, request: FetchReceiverKeys) -> ReceiverKeysResult:
        return await activity_calls.fetch_receiver_keys(request)


@workflow.defn(name=WorkflowName.PUSHED_AUTHORIZATION)
class PushedAuthorizationWorkflow:
    @workflow.run
    async def run(self, request: PushAuthorizationRequest) -> PushResult:
        return await activity_calls.push_authorization_request(request)


@workflow.defn(name=WorkflowName.TEMPORARY_CREDENTIALS)
class TemporaryCredentialsWorkflow:
    @workflow.run
    async def run(self, request: RequestTemporaryCredentials) -> TemporaryCredentialsResult:
        return await activity_calls.request_temporary_credentials(request)


@workflow.defn(name=WorkflowName.INTROSPECTION)
class IntrospectionWorkflow:
    @workflow.run
    async def run(self, request: IntrospectGrants) -> IntrospectGrantsResult:
        return await activity_calls.introspect_grants(request)


@workflow.defn(name=WorkflowName.REREAD_METADATA)
class RereadMetadataWorkflow:
    @workflow.run
    async def run(self, request: RereadMetadata) -> RereadMetadataResult:
        return await activity_calls.reread_metadata(request)
