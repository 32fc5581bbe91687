"""Metrics of agents: what becomes of the calls that they ask for."""

from opentelemetry import metrics

CALL_APPROVALS = metrics.get_meter("evergrant").create_counter(
    "evergrant.call_approval.count", "{call}", "calls of agents that were asked for, and what became of them"
)
