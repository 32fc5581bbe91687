"""The workflows that a worker runs: the table's jobs, and those that decide about more than one activity."""

from workflows.connection import ConnectionWorkflow
from workflows.decisions import AccessRequestWorkflow, AgentStopWorkflow, CallApprovalWorkflow
from workflows.erasure import ErasureWorkflow
from workflows.grants import ExportWorkflow, ReplacedGrantsWorkflow
from workflows.incidents import BulkWorkflow, IncidentWorkflow
from workflows.integrations import DefinitionRolloutWorkflow, RetryConnectionsWorkflow
from workflows.jobs import JOB_WORKFLOWS
from workflows.keys import KeyRotationWorkflow
from workflows.webhooks import WebhookDeliveryWorkflow

WORKFLOWS = (
    AccessRequestWorkflow,
    AgentStopWorkflow,
    BulkWorkflow,
    CallApprovalWorkflow,
    ConnectionWorkflow,
    DefinitionRolloutWorkflow,
    ErasureWorkflow,
    ExportWorkflow,
    IncidentWorkflow,
    KeyRotationWorkflow,
    ReplacedGrantsWorkflow,
    RetryConnectionsWorkflow,
    WebhookDeliveryWorkflow,
    *JOB_WORKFLOWS,
)
