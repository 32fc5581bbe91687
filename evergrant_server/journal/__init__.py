"""The journal: replies that spent a single-use credential, kept until the store has them.

Owns one persistent directory per worker, named by its `journal_id` and locked with `flock` for
as long as the worker lives; its entries are sealed and fsynced, written before the database and
dropped after its commit. Owns also what this host can tell of another worker: is it alive, is its
attempt in flight, did it leave a reply? Doesn't own keys (they come with the attempt), attempts
(rows of the store), the decision to send again (`core.single_use.attempt`), the meaning of a
reply, or any request to a provider.
"""

from evergrant_server.journal.entry import EntryHeader, JournalEntry
from evergrant_server.journal.journal import Journal
from evergrant_server.journal.reservation import JournalReservation

__all__ = ["EntryHeader", "Journal", "JournalEntry", "JournalReservation"]
