"""Every workflow that a worker runs."""

from workflows.connection import ConnectionWorkflow
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
    ReconcileWorkflow,
    RereadMetadataWorkflow,
    TemporaryCredentialsWorkflow,
    VerifyLoginWorkflow,
)
from workflows.webhook_delivery import WebhookDeliveryWorkflow

WORKFLOWS = (
    ConnectionWorkflow,
    DefinitionRolloutWorkflow,
    DiscoveryWorkflow,
    ExportWorkflow,
    FetchIssuerKeysWorkflow,
    FetchReceiverKeysWorkflow,
    IntrospectionWorkflow,
    PushedAuthorizationWorkflow,
    ReconcileWorkflow,
    ReplacedGrantsWorkflow,
    RereadMetadataWorkflow,
    RetryConnectionsWorkflow,
    TemporaryCredentialsWorkflow,
    VerifyLoginWorkflow,
    WebhookDeliveryWorkflow,
)
