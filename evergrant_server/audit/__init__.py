"""The audit log: records in Merkle trees, written in the transaction of what they record.

Owns the bodies of records, the trees (one per tenant and shard, with gapless
numbers), their verification, the group commit of leases, and the events of webhooks.
Doesn't own the tables (store), what is worth recording (its callers) or the words
(`core.audit`, `core.events`).
"""

from evergrant_server.audit.appending import append, append_all, append_heads, lock_heads
from evergrant_server.audit.checkpoints.proofs import contains_checkpoint, log_extends, newest_checkpoint
from evergrant_server.audit.publishing import wake_webhook, write_event
from evergrant_server.audit.records import (
    ALL,
    Window,
    count_actions,
    following,
    newest_of_tenant,
    newest_record,
    newest_records,
    page,
    page_cursor,
    record_before,
    record_denies,
    tree_ends,
)
from evergrant_server.audit.shards import accept_heads, broken_heads
from evergrant_server.audit.verification.verifier import LogVerification, records_to_verify, verify_log

__all__ = [
    "ALL",
    "LogVerification",
    "Window",
    "accept_heads",
    "append",
    "append_all",
    "append_heads",
    "broken_heads",
    "contains_checkpoint",
    "count_actions",
    "following",
    "lock_heads",
    "log_extends",
    "newest_checkpoint",
    "newest_of_tenant",
    "newest_record",
    "newest_records",
    "page",
    "page_cursor",
    "record_before",
    "record_denies",
    "records_to_verify",
    "tree_ends",
    "verify_log",
    "wake_webhook",
    "write_event",
]
