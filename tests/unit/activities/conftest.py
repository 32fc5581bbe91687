"""A store on SQLite: tests/conformance/store has what differs between databases."""

from pathlib import Path

import pytest

from tests.fakes.databases import clock, key_path, migrated_sqlite, ring, sqlite_url, store

__all__ = ["clock", "key_path", "ring", "store"]


@pytest.fixture
async def database_url(tmp_path: Path) -> str:
    await migrated_sqlite(tmp_path)
    return sqlite_url(tmp_path)
