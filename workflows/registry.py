"""Every workflow that a worker runs."""

from workflows.agents.stop import AgentStopWorkflow
from workflows.connection import ConnectionWorkflow
from workflows.decisions import AccessRequestWorkflow, CallApprovalWorkflow
from workflows.definition_rollout import DefinitionRolloutWorkflow
from workflows.export import ExportWorkflow
from workflows.replaced_grants import ReplacedGrantsWorkflow
from workflows.retry_connections import RetryConnectionsWorkflow
from workflows.single_activity import (
    DiscoveryWorkflow,
    FetchIssuerKeysWorkflow,
    FetchReceiverKeysWorkflow,
    IntrospectionWorkflow,
    PushedAuthorizationWorkflow,
    ReadClientDocumentWorkflow,
    ReconcileWorkflow,
    RereadMetadataWorkflow,
    ReviewPermitsWorkflow,
    TemporaryCredentialsWorkflow,
    VerifyLoginWorkflow,
    VerifyPersonWorkflow,
)
from workflows.webhook_delivery import WebhookDeliveryWorkflow

WORKFLOWS = (
    AccessRequestWorkflow,
    AgentStopWorkflow,
    CallApprovalWorkflow,
    ConnectionWorkflow,
    DefinitionRolloutWorkflow,
    DiscoveryWorkflow,
    ExportWorkflow,
    FetchIssuerKeysWorkflow,
    FetchReceiverKeysWorkflow,
    IntrospectionWorkflow,
    PushedAuthorizationWorkflow,
    ReadClientDocumentWorkflow,
    ReconcileWorkflow,
    ReplacedGrantsWorkflow,
    RereadMetadataWorkflow,
    RetryConnectionsWorkflow,
    ReviewPermitsWorkflow,
    TemporaryCredentialsWorkflow,
    VerifyLoginWorkflow,
    VerifyPersonWorkflow,
    WebhookDeliveryWorkflow,
)
