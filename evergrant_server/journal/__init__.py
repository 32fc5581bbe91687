"""The journal: answers of providers that spent a single-use credential, until the store has them.

Owns one persistent directory per worker, named by its `journal_id` and held with `flock` for
as long as its owner lives: sealed, fsynced entries, one for each answer, written before the
database is told and dropped after the database has committed. Owns also what can be known on
this host of another owner: is it alive, is its attempt under way, did it leave an answer?
Doesn't own keys (they come with the attempt), attempts (the store's rows), the decision to
send again (`core.attempt.takeover`), the meaning of an answer, or any request to a provider.
"""

from evergrant_server.journal.entry import EntryHeader, JournalEntry, JournalReservation
from evergrant_server.journal.journal import AttemptStatus, Journal
from evergrant_server.journal.lock import JournalLock

__all__ = ["AttemptStatus", "EntryHeader", "Journal", "JournalEntry", "JournalLock", "JournalReservation"]
