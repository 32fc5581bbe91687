"""Durable life stories, deterministic and thin: they ask `core` what to do and have it done.

Owns the order of things in time. Parses no reply, knows no provider, holds no secret;
side effects are reached through `calls` alone.
"""

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
