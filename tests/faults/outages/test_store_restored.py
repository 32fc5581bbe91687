"""The store came from an older backup: told per connection, and nothing that may be spent is sent.

The backup is a real one: SQLite's file copied, every row of PostgreSQL copied out and back in.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.messages import jobs
from evergrant_server.core.messages.maintenance import ReconcileRequest, ReconcileResult
from evergrant_server.store.database.columns import METADATA
from evergrant_server.temporal_link.connect import prepare_namespace
from evergrant_server.temporal_link.drift_repair import DriftRepair
from evergrant_server.temporal_link.workflow_starter import WorkflowStarter
from tests.fakes.platform.installation import STRICT, Installation, installation
from tests.fakes.providers.scripted_provider import ScriptedProvider
from tests.fakes.temporal import TemporalServer
from tests.faults.temporal.test_temporal_lost import lose_everything, temporal

__all__ = ["temporal"]  # the fixture

Backup = Callable[[], Awaitable[Callable[[], Awaitable[None]]]]


@pytest.fixture
def backup(database_url: str) -> Backup:
    """Call it for a backup; call that to restore it, under running processes."""
    if database_url.startswith("sqlite"):
        return lambda: _sqlite(Path(database_url.partition(":///")[2]))
    return lambda: _postgres(database_url.replace("postgresql+asyncpg", "postgresql"))


async def _sqlite(file: Path) -> Callable[[], Awaitable[None]]:
    def copy(source: Path, target: Path) -> None:
        with closing(sqlite3.connect(source)) as there, closing(sqlite3.connect(target)) as here:
            there.backup(here)

    saved = file.with_suffix(".backup")
    await asyncio.to_thread(copy, file, saved)
    return lambda: asyncio.to_thread(copy, saved, file)


async def _postgres(url: str) -> Callable[[], Awaitable[None]]:
    tables = [table.name for table in METADATA.sorted_tables]

    async def dump() -> dict[str, list[asyncpg.Record]]:
        connection = await asyncpg.connect(url)
        try:
            async with connection.transaction(isolation="repeatable_read"):
                return {name: await connection.fetch(f'SELECT * FROM "{name}"') for name in tables}
        finally:
            await connection.close()

    saved = await dump()
    quoted = ", ".join(f'"{name}"' for name in tables)

    async def restore() -> None:
        with suppress(asyncpg.DeadlockDetectedError):  # the relay reads on, and locks tables in its own order
            return await put_back()
        await restore()

    async def put_back() -> None:
        connection = await asyncpg.connect(url)
        try:
            async with connection.transaction():
                await connection.execute(f"TRUNCATE {quoted}")
                for name in tables:
                    rows = saved[name]
                    if rows:
                        columns = list(rows[0].keys())
                        await connection.copy_records_to_table(name, records=rows, columns=columns)
        finally:
            await connection.close()

    return restore


async def refreshed(place: Installation, connection: Connection, times: int) -> None:
    for generation in range(1, times + 1):
        assert (await place.ensure_fresh(connection, generation)).generation == generation + 1


async def reauthorized(place: Installation, connection: Connection) -> Connection:
    before = await place.row(connection)
    await place.consent(connection)
    return await place.until(connection, lambda row: row.generation > before.generation)


async def test_no_spent_token_is_sent_and_each_connection_is_named(place: Installation, backup: Backup):
    behind, untouched = await place.connect(STRICT), await place.connect(STRICT)
    restore = await backup()
    await refreshed(place, behind, 2)
    await restore()
    assert (await place.row(behind)).generation == 1
    sent = place.idp.count("token")
    told = await place.parts.reconciler.reconcile_all()
    assert (told.live, told.started, told.store_behind.first) == (2, 0, (behind.id,))
    assert (await place.ensure_fresh(behind, 3)).problem is ErrorCode.STORE_BEHIND
    assert place.idp.count("token") == sent
    assert (await place.ensure_fresh(untouched, 1)).generation == 2
    assert all(family.alive for family in place.idp.families)


async def test_a_reauthorization_repairs_the_connection(place: Installation, backup: Backup):
    """The new grant's number goes beyond those that were lost, or it would look like one of them."""
    connection = await place.connect(STRICT)
    restore = await backup()
    await refreshed(place, connection, 3)
    await restore()
    assert (await place.ensure_fresh(connection, 4)).problem is ErrorCode.STORE_BEHIND
    again = await reauthorized(place, connection)
    assert (again.state, again.generation) == (LifecycleState.ACTIVE, 5)
    assert (await place.parts.reconciler.reconcile_all()).store_behind.first == ()
    assert (await place.ensure_fresh(connection, 5)).generation == 6


async def test_a_terminated_workflows_generation_still_detects_the_old_store(
    place: Installation, backup: Backup
):
    """Its closed run knows the generation; the run that follows is told, and sends nothing."""
    connection = await place.connect(STRICT)
    restore = await backup()
    await refreshed(place, connection, 2)
    await place.terminate(connection)
    await restore()
    sent = place.idp.count("token")
    told = await place.parts.reconciler.reconcile_all()
    assert (told.started, told.store_behind.first) == (1, (connection.id,))
    assert (await place.ensure_fresh(connection, 3)).problem is ErrorCode.STORE_BEHIND
    assert (await place.parts.reconciler.reconcile_all()).store_behind.first == (connection.id,)
    assert place.idp.count("token") == sent


async def test_the_scheduled_pass_detects_the_restored_store(place: Installation, backup: Backup):
    """It asks no workflow unless a record of the audit log is missing that was there before."""
    connection = await place.connect(STRICT)
    restore = await backup()
    await refreshed(place, connection, 2)

    async def one_pass(order: ReconcileRequest) -> ReconcileResult:
        return await place.parts.client.execute_workflow(
            jobs.RECONCILE.name, order, id=f"pass-{connection.id}",
            task_queue=place.parts.settings.temporal_task_queue, result_type=ReconcileResult,
        )  # fmt: skip

    first = await one_pass(ReconcileRequest())
    assert (first.live, first.started, first.behind) == (1, 0, 0)
    await restore()
    second = await one_pass(
        ReconcileRequest(audit_checkpoint=first.audit_checkpoint, closed_since=first.closed_since)
    )
    assert (second.behind, second.first_behind) == (1, (connection.id,))
    assert second.audit_checkpoint == first.audit_checkpoint  # so that the next pass says it again


async def test_a_revocation_missing_in_the_backup_is_repeated(place: Installation, backup: Backup):
    connection = await place.connect(STRICT)
    restore = await backup()
    await place.revoked(connection)
    await place.workflow(connection).result()
    told = place.idp.count("revoke")
    await restore()
    assert (await place.row(connection)).state is LifecycleState.ACTIVE
    await place.parts.reconciler.reconcile_all()
    assert (await place.row(connection)).state is not LifecycleState.ACTIVE
    await place.until(connection, lambda row: row.state is LifecycleState.REVOKED)
    assert place.idp.count("revoke") > told


async def test_a_closed_run_still_listed_is_followed_by_one_that_revokes(place: Installation, backup: Backup):
    """A pass that looks a moment after the end finds it running, and asks it."""
    connection = await place.connect(STRICT)
    restore = await backup()
    await place.revoked(connection)
    await place.workflow(connection).result()
    await restore()
    parts = place.parts
    lives = WorkflowStarter(parts.store, parts.link, parts.ring, parts.clock, parts.registry.refresh_rules)
    found = await DriftRepair(parts.store, parts.link, lives, parts.clock).compare(connection)
    assert (found.started, found.store_behind) == (True, False), "no person has to act"
    await place.until(connection, lambda row: row.state is LifecycleState.REVOKED)


@pytest_asyncio.fixture
async def alone(
    tmp_path: Path, database_url: str, idp: ScriptedProvider, temporal: list[TemporalServer]
) -> AsyncIterator[tuple[Installation, Any]]:
    """With a Temporal of its own, to be lost."""
    async with installation(temporal[0].address, database_url, tmp_path, idp) as here:
        yield here, temporal


async def test_with_temporal_lost_too_the_providers_refusal_is_believed(
    alone: tuple[Installation, Any], tmp_path: Path, idp: ScriptedProvider, backup: Backup
):
    """What is left: one spent token is sent, the provider says no, and the subject is asked."""
    place, servers = alone
    connection = await place.connect(STRICT)
    restore = await backup()
    await refreshed(place, connection, 2)
    await lose_everything(servers, tmp_path / "temporal")
    await prepare_namespace(await servers[0].client(), timedelta(days=365))
    await restore()
    told = await place.parts.reconciler.reconcile_all()
    assert (told.started, told.store_behind.first) == (1, ())
    sent = idp.count("token")
    assert (await place.ensure_fresh(connection, 1, limit_s=60)).problem is ErrorCode.GRANT_REJECTED
    assert idp.count("token") == sent + 1
    row = await place.row(connection)
    assert (row.state, row.reason) == (LifecycleState.NEEDS_REAUTH, ErrorCode.GRANT_REJECTED)
    again = await reauthorized(place, connection)
    assert again.state is LifecycleState.ACTIVE
