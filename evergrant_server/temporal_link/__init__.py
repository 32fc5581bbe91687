"""The server's only way to Temporal outside workflows and activities.

Owns the client, the calls to a connection's workflow, the relay that empties the outbox,
the export of histories and the preparation of a namespace. Everything else asks for these
through plain methods and never sees a Temporal type.
"""

from evergrant_server.temporal_link.closed_runs import ClosedRunExporter
from evergrant_server.temporal_link.link import TemporalLink
from evergrant_server.temporal_link.outbox_relay import OutboxRelay
from evergrant_server.temporal_link.reconcile import ReconcileCounts, Reconciler
from evergrant_server.temporal_link.workflow_starter import WorkflowStarter

__all__ = [
    "ClosedRunExporter",
    "OutboxRelay",
    "ReconcileCounts",
    "Reconciler",
    "TemporalLink",
    "WorkflowStarter",
]
