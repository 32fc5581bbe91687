"""Each table of the schema moves with its tenant to another cell, or has a reason not to."""

from evergrant_server.store.cells.rows import moved_tables
from evergrant_server.store.database.columns import METADATA

_STAYS = {
    "the log of what happened in this cell, its keys and what follows it": {
        *("audit", "audit_anchor", "audit_checkpoint", "audit_filed", "audit_head", "audit_hour"),
        *("audit_log_key", "audit_node", "audit_pruning", "audit_shard", "audit_stream"),
        *("audit_stream_cursor", "audit_stream_state", "audit_tree", "event", "history"),
    },
    "sent from here": {"delivery", "outbox"},
    "of the cell, not of a tenant": {"process", "region", "root_key", "tenant_durability"},
    "the move itself": {"tenant_move", "tenant_standing"},
    "ends, and is begun anew in the other cell": {
        *("access_request", "access_token", "app_token", "approval", "authorization_code"),
        *("authorization_request", "call_approval", "consent", "delegation", "device_authorization"),
        *("key_session", "person_login", "person_session", "subject_session"),
    },
    "an order that ends before the tenant moves": {
        *("agent_stop", "bulk_order", "campaign", "erasure", "incident", "incident_connection", "leaver"),
    },
    "an answer that was given here": {"export", "export_line", "idempotency", "question", "question_answer"},
    "of requests and events to this cell's address, which the other one's has to name": {
        *("app_assertion", "received_event", "used_subject_token"),
    },
    "when and from where something was used": {
        *("app_activity", "app_key_use", "caller_network", "detection", "detection_place", "introspection"),
        *("lease_use", "permit_use", "usage"),
    },
}


def test_each_table_moves_or_has_a_reason_to_stay():
    stays = [name for names in _STAYS.values() for name in names]
    assert sorted([*moved_tables(), *stays]) == sorted(METADATA.tables)
