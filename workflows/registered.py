"""Every workflow that a worker runs."""

from workflows.connection import ConnectionWorkflow
from workflows.discovery import DiscoveryWorkflow
from workflows.elsewhere import LookElsewhereWorkflow
from workflows.export import ExportWorkflow
from workflows.onboarding import OnboardingWorkflow
from workflows.preparing import PrepareConsentWorkflow
from workflows.pushing import PushRequestWorkflow
from workflows.receiver_keys import FetchKeysWorkflow
from workflows.reconcile import ReconcileWorkflow
from workflows.rediscovery import RereadMetadataWorkflow
from workflows.webhooks import WebhookDeliveryWorkflow

WORKFLOWS = (
    ConnectionWorkflow,
    DiscoveryWorkflow,
    ExportWorkflow,
    FetchKeysWorkflow,
    LookElsewhereWorkflow,
    OnboardingWorkflow,
    PushRequestWorkflow,
    PrepareConsentWorkflow,
    ReconcileWorkflow,
    RereadMetadataWorkflow,
    WebhookDeliveryWorkflow,
)
