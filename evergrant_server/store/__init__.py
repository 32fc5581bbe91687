"""The store: every row Evergrant has, on SQLite or PostgreSQL, with each secret column sealed.

Owns the schema, transactions, compare-and-set on `revision`, the outbox table, sealing
of columns with keys of tenants and connections, and the lease path's query. Doesn't own
the key ring (crypto), what a change means (core), trees over audit rows (audit) or
the delivery of outbox messages (temporal_link). What it answers are values of `core`.

Failures are `core.errors.Failure`: STORE_UNAVAILABLE when the database can't be reached,
STORE_CONFLICT when a row changed meanwhile, SCHEMA_MISMATCH, SEAL_BROKEN, KEY_UNAVAILABLE.
"""

from evergrant_server.store.connections.histories import HistoryExport
from evergrant_server.store.connections.lease_rows import ConnectionPosition, LeaseRow, LeaseRows
from evergrant_server.store.keys import NO_CONNECTION
from evergrant_server.store.sealing import KeyRows, UnwrappedKeys
from evergrant_server.store.store import Store, Transaction

__all__ = [
    "NO_CONNECTION",
    "ConnectionPosition",
    "HistoryExport",
    "KeyRows",
    "LeaseRow",
    "LeaseRows",
    "Store",
    "Transaction",
    "UnwrappedKeys",
]
