"""The audit log: hash-chained records, written in the transaction of what they record.

Owns the canonical form of a record, the chains (one per tenant and lane, with gapless
numbers), their verification, the group commit of leases, and the events that webhooks are
told. Doesn't own the tables (store), what is worth recording (its callers) or the words
(`core.audit`, `core.events`).
"""

from evergrant_server.audit.chain import append, newest, page, page_cursor
from evergrant_server.audit.leases import LeaseClaim, LeaseLedger, Stale
from evergrant_server.audit.marks import holds_mark, newest_mark
from evergrant_server.audit.publishing import tell, wake
from evergrant_server.audit.verifier import Verdict, verify

__all__ = [
    "LeaseClaim",
    "LeaseLedger",
    "Stale",
    "Verdict",
    "append",
    "holds_mark",
    "newest",
    "newest_mark",
    "page",
    "page_cursor",
    "tell",
    "verify",
    "wake",
]
