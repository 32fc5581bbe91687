"""A store on SQLite and on PostgreSQL."""

from tests.fakes.databases import clock, database_url, key_path, postgres_server, ring, store

__all__ = ["clock", "database_url", "key_path", "postgres_server", "ring", "store"]
