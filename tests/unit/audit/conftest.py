"""Every test here runs on SQLite and on PostgreSQL: the fixtures are parametrised."""

from tests.fakes.databases import clock, database_url, empty_url, key_path, postgres_server, ring, store
from tests.unit.audit.claims import ledger

__all__ = ["clock", "database_url", "empty_url", "key_path", "ledger", "postgres_server", "ring", "store"]
