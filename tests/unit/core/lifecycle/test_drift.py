"""Drift between the store and the workflow: one row per pair of states."""

import pytest

from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.lifecycle.snapshot import Drift, find_drift
from evergrant_server.core.messages.connection import ConnectionDescription
from tests.unit.core.lifecycle.steps import connection

A, N, P, R, X = (
    LifecycleState.ACTIVE,
    LifecycleState.NEEDS_REAUTH,
    LifecycleState.PENDING_CONSENT,
    LifecycleState.REVOKING,
    LifecycleState.REVOKED,
)

TABLE = [
    # stored, known, what it means
    ((A, 2), (A, 2), Drift.NONE),
    ((A, 2), (A, 1), Drift.NONE),  # its next step tells it
    ((A, 1), (A, 2), Drift.STORE_BEHIND),
    ((N, 1), (A, 2), Drift.STORE_BEHIND),
    ((P, 0), (A, 1), Drift.STORE_BEHIND),
    ((A, 1), (P, 0), Drift.WORKFLOW_BEHIND),
    ((A, 2), (N, 1), Drift.WORKFLOW_BEHIND),
    ((A, 1), (N, 1), Drift.NONE),  # the workflow saw the refusal; nothing is sent
    ((N, 1), (A, 1), Drift.NONE),  # its next refresh is told, and sends nothing
    ((R, 1), (A, 1), Drift.WORKFLOW_MISSED_REVOCATION),
    ((R, 2), (P, 0), Drift.WORKFLOW_MISSED_REVOCATION),
    ((R, 1), (R, 1), Drift.NONE),
    ((R, 1), (X, 1), Drift.NONE),
    ((A, 1), (R, 1), Drift.STORE_LOST_REVOCATION),
    ((A, 1), (X, 2), Drift.STORE_LOST_REVOCATION),
    ((X, 1), (R, 1), Drift.NONE),
]  # fmt: skip


@pytest.mark.parametrize(("stored", "known", "meaning"), TABLE)
def test_drift(stored: tuple[LifecycleState, int], known: tuple[LifecycleState, int], meaning: Drift):
    told = {
        "connection_id": "con_1",
        "state": known[0],
        "generation": known[1],
        "next_step": "",
        "failures": 0,
    }
    absent = dict.fromkeys(set(ConnectionDescription.model_fields) - set(told))
    described = ConnectionDescription.model_construct(**absent, **told)
    assert find_drift(connection(state=stored[0], generation=stored[1]), described) is meaning
