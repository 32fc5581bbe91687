"""Every workflow that a worker runs."""

from workflows.connection import ConnectionWorkflow
from workflows.definition_rollout import DefinitionRolloutWorkflow
from workflows.discovery import DiscoveryWorkflow
from workflows.elsewhere import IntrospectionWorkflow
from workflows.export import ExportWorkflow
from workflows.preparing import TemporaryCredentialsWorkflow
from workflows.pushing import PushedAuthorizationWorkflow
from workflows.receiver_keys import FetchReceiverKeysWorkflow
from workflows.reconcile import ReconcileWorkflow
from workflows.rediscovery import RereadMetadataWorkflow
from workflows.webhook_delivery import WebhookDeliveryWorkflow

WORKFLOWS = (
    ConnectionWorkflow,
    DiscoveryWorkflow,
    ExportWorkflow,
    FetchReceiverKeysWorkflow,
    IntrospectionWorkflow,
    DefinitionRolloutWorkflow,
    PushedAuthorizationWorkflow,
    TemporaryCredentialsWorkflow,
    ReconcileWorkflow,
    RereadMetadataWorkflow,
    WebhookDeliveryWorkflow,
)
