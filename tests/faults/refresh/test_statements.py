"""How many statements one due refresh sends to the store: what its activity reads and writes."""

import sqlite3
from pathlib import Path

import pytest
from temporalio import activity

from evergrant_server.store import Store
from evergrant_server.store.database import sqlite
from tests.fakes.databases import lent
from tests.fakes.platform.installation import installation
from tests.fakes.providers.scripted_provider import ScriptedProvider

MOST_STATEMENTS = 16  # two of them ask which keys are still current (ADR 0102)
MOST_TRANSACTIONS = 3  # a read, the intent, the commit


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every statement that an activity sends from here on. SQLite tells of one again for a trigger that it
    fires."""
    statements: list[str] = []
    configure = sqlite.configure

    def note(text: str) -> None:
        if activity.in_activity() and statements[-1:] != [text]:
            statements.append(text)

    def traced(driver: sqlite3.Connection, record: object) -> None:
        configure(driver, record)
        driver.set_trace_callback(note)

    monkeypatch.setattr(sqlite, "configure", traced)
    return statements


async def test_a_due_refresh_sends_few_statements(temporal_address: str, tmp_path: Path, sent: list[str]):
    async with (
        lent("sqlite", tmp_path) as url,
        ScriptedProvider() as idp,
        installation(temporal_address, url, tmp_path, idp) as place,
    ):
        connection = await place.connect()
        sent.clear()
        fresh = await place.ensure_fresh(connection, connection.generation)
        assert fresh.generation == connection.generation + 1
        steps = await query_plans(place.store, [text for text in sent if text.startswith("SELECT")])
    begun = [text for text in sent if text.startswith("BEGIN")]
    statements = [text for text in sent if text.startswith(("SELECT", "INSERT", "UPDATE", "DELETE"))]
    assert 0 < len(begun) <= MOST_TRANSACTIONS
    assert 0 < len(statements) <= MOST_STATEMENTS, statements
    assert [step for step in steps if step.startswith("SCAN")] == []
    keys = [step for step in steps if step.startswith("SEARCH key")]
    assert [step for step in keys if step.endswith("(tenant=?)")] == [], "a tenant has many"
    narrow = ("from_generation=?", "slot=?", "id=?")  # a connection has an attempt for each refresh
    assert [step for step in steps if "attempt" in step and not any(term in step for term in narrow)] == []


async def query_plans(store: Store, queries: list[str]) -> list[str]:
    """How SQLite finds the rows of each."""
    async with store.read() as tx:
        plans = [await tx.connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}") for text in queries]
        return [row[3] for plan in plans for row in plan]
