"""Backups of both engines: tried out beside the database in use, and restored in its place."""

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from evergrant_server import audit
from evergrant_server.audit.records import newest_drills
from evergrant_server.cli.backup import copies
from evergrant_server.cli.backup import restore as restoring
from evergrant_server.cli.backup.commands import drill_in_words, restore_in_words
from evergrant_server.cli.backup.drill import drill
from evergrant_server.cli.backup.postgresql import Programs
from evergrant_server.cli.backup.restore import restore
from evergrant_server.cli.backup.verification import Verified
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.clock import SystemClock
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.errors import ErrorCode
from evergrant_server.crypto import KeyRing, Role
from evergrant_server.settings import Settings, load_settings
from evergrant_server.store import Store
from tests.conformance.store.samples import ACME, a_connection, added, granted, refreshed, some_tokens
from tests.conformance.store.test_grants import grant_row, tamper_grant
from tests.fakes.clock import SetClock
from tests.fakes.databases import NOW, migrated_sqlite, postgres, sqlite_url
from tests.fakes.failures import fails
from tests.fakes.platform.docker import postgresql_programs

ON_SQLITE = pytest.mark.parametrize("url", ["sqlite"], indirect=True)
RUN_AS = "embedded_postgres"  # made by the fixture of the server, where this is root


@pytest_asyncio.fixture(params=["sqlite", "postgresql"])
async def url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """A database of its own: a restore leaves the one of before beside it."""
    if request.param == "sqlite":
        await migrated_sqlite(tmp_path)
        yield sqlite_url(tmp_path)
        return
    url = await postgres().fresh()
    yield url
    await postgres().drop(url)


@pytest.fixture
def settings(url: str, key_path: Path, tmp_path: Path) -> Settings:
    return load_settings(
        database_url=url, key_file=key_path, data_dir=tmp_path, postgres_bin=postgresql_programs()
    )


@pytest_asyncio.fixture
async def here(url: str, key_path: Path, clock: SetClock) -> AsyncIterator[Store]:
    opened = await Store.open(url, KeyRing.open(key_path, Role.WORKER), clock)
    yield opened
    await opened.close()


def taken_to(folder: Path, settings: Settings, name: str = "base") -> Path:
    return folder / ("backup.db" if settings.uses_sqlite else name)


async def revoked(store: Store, connection: Connection) -> None:
    async with store.write() as tx:
        await tx.connections.replace(connection.revocation_requested("x", NOW), expected=connection.revision)


async def row(store: Store, connection: Connection) -> Connection:
    async with store.read() as tx:
        read = await tx.connections.get(ACME, connection.id)
    assert read is not None
    return read


async def test_a_drill_says_what_the_backup_lacks_and_is_recorded(
    here: Store, settings: Settings, tmp_path: Path
):
    first, second = await granted(here), await granted(here, subject="bob")
    programs = Programs(settings, RUN_AS)
    backup = taken_to(tmp_path, settings)
    await copies.take(settings, backup, programs)
    await refreshed(here, first, some_tokens("at-2", "rt-2"))
    await revoked(here, second)
    await added(here, a_connection(subject="carol"))

    report = await drill(settings, backup, None, programs)

    assert report.verified.problems == []
    assert report.verified.opened_grants == 2
    assert report.verified.tables["connection"] == 2
    assert report.behind is not None
    assert (report.behind.refreshed, report.behind.ended, report.behind.new_connections) == (1, 1, 1)
    assert report.behind.named["refreshed"] == [first.id]
    assert report.kind == ("file" if settings.uses_sqlite else "base")
    assert json.loads(json.dumps(report.as_json()))["ok"] is True
    assert drill_in_words(report)[-1] == "the backup is whole"
    async with here.read() as tx:
        drills = await newest_drills(tx)
    assert drills.last_ok
    assert drills.good_at is not None
    assert [name for name in os.listdir(tmp_path) if "restoring" in name] == []


async def test_a_restore_marks_what_was_refreshed_or_revoked_since(
    here: Store, settings: Settings, tmp_path: Path
):
    """Without Temporal: the database of before is there to be compared with."""
    first, second, third = [await granted(here, subject=name) for name in ("alice", "bob", "carol")]
    programs = Programs(settings, RUN_AS)
    backup = taken_to(tmp_path, settings, "evergrant.dump")
    await copies.take(settings, backup, programs)
    await refreshed(here, first, some_tokens("at-2", "rt-2"))
    await revoked(here, second)
    await here.close()

    report = await restore(settings, backup, programs)

    assert report.placed, report.verified.problems
    assert report.replaced is not None
    assert report.marks is not None
    assert (report.marks.reconnect, report.marks.revoking, report.marks.left) == (1, 1, 0)
    words = "\n".join(restore_in_words(report))
    assert "1 connections were refreshed since, 1 ended" in words
    restored = await Store.open(settings.database_url, here.ring, SetClock(NOW))
    spent, ended, untouched = [await row(restored, each) for each in (first, second, third)]
    assert (spent.state, spent.reason) == (LifecycleState.NEEDS_REAUTH, ErrorCode.OUTCOME_UNKNOWN)
    assert ended.state is LifecycleState.REVOKING
    assert untouched.state is LifecycleState.ACTIVE
    async with restored.read() as tx:
        record = await audit.newest_record(tx, ACME, first.id, AuditAction.NEEDS_REAUTH)
        assert record is not None
        assert record.detail["restored"] is True
    await restored.close()


async def test_a_backup_that_is_not_whole_is_not_put_in_place(
    here: Store, settings: Settings, tmp_path: Path
):
    """A grant that has got another's refresh token by hand: the database in use stays as it was."""
    connection, other = await granted(here), await granted(here, subject="bob")
    await tamper_grant(here, connection, sealed_refresh=(await grant_row(here, other))["sealed_refresh"])
    programs = Programs(settings, RUN_AS)
    backup = taken_to(tmp_path, settings, "evergrant.dump")
    await copies.take(settings, backup, programs)
    late = await granted(here, subject="late")
    await here.close()

    drilled, report = await drill(settings, backup, None, programs), await restore(settings, backup, programs)

    assert not drilled.ok
    assert not report.placed
    assert any(connection.id in problem for problem in report.verified.problems)
    still = await Store.open(settings.database_url, here.ring, SetClock(NOW))
    assert (await row(still, late)).state is LifecycleState.ACTIVE
    async with still.read() as tx:
        drills = await newest_drills(tx)
    assert (drills.last_ok, drills.good_at) == (False, None)
    await still.close()


async def test_another_key_file_is_noticed_before_anything_changes(
    here: Store, settings: Settings, tmp_path: Path
):
    await granted(here)
    programs = Programs(settings, RUN_AS)
    backup = taken_to(tmp_path, settings, "evergrant.dump")
    await copies.take(settings, backup, programs)
    await here.close()
    other = tmp_path / "other.json"
    KeyRing.create(other)

    report = await restore(settings.__replace__(key_file=other), backup, programs)

    assert not report.placed
    assert report.verified.problems[0].startswith("keys: ")
    assert os.listdir(tmp_path).count("evergrant.db.restoring") == 0


async def begun(here: Store, settings: Settings) -> None:
    running = await Store.open(settings.database_url, here.ring, SystemClock())
    async with running.write() as tx:
        names = {"role": "api", "host": "web-1", "version": "0.1.0"}
        await tx.processes.beat("prc_1", names, {}, {}, NOW)
    await running.close()


async def test_nothing_is_restored_while_a_process_runs(here: Store, settings: Settings, tmp_path: Path):
    programs = Programs(settings, RUN_AS)
    backup = taken_to(tmp_path, settings, "evergrant.dump")
    await copies.take(settings, backup, programs)
    await begun(here, settings)
    with fails(ErrorCode.INVALID_REQUEST, "api on web-1 runs with this database"):
        await restore(settings, backup, programs)


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
async def test_a_process_that_begins_meanwhile_is_seen_before_its_tables_are_set_aside(
    here: Store, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    programs = Programs(settings, RUN_AS)
    backup = taken_to(tmp_path, settings, "evergrant.dump")
    await copies.take(settings, backup, programs)
    require_stopped = restoring._require_stopped

    async def one_begins_after(of: Settings) -> None:
        await require_stopped(of)
        await begun(here, of)

    monkeypatch.setattr(restoring, "_require_stopped", one_begins_after)
    with fails(ErrorCode.INVALID_REQUEST, "api on web-1 runs with this database"):
        await restore(settings, backup, programs)


@ON_SQLITE
async def test_a_file_that_a_process_has_open_isnt_exchanged(
    here: Store, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It would go on in the file that is set aside, though no row of processes tells of it."""
    connection = await granted(here)
    programs = Programs(settings, RUN_AS)
    backup = taken_to(tmp_path, settings)
    await copies.take(settings, backup, programs)
    monkeypatch.setattr(restoring, "_LONGEST_WAIT_S", 0)
    with fails(ErrorCode.INVALID_REQUEST, "A process has opened"):
        await restore(settings, backup, programs)
    await refreshed(here, connection, some_tokens("at-2", "rt-2"))
    await here.close()
    report = await restore(settings, backup, programs)
    assert report.placed
    assert report.marks is not None
    assert report.marks.reconnect == 1


@ON_SQLITE
async def test_no_process_opens_the_database_while_a_backup_is_verified_for_its_place(
    here: Store, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    await granted(here)
    programs = Programs(settings, RUN_AS)
    backup = taken_to(tmp_path, settings)
    await copies.take(settings, backup, programs)
    await here.close()
    started, verify = list[ErrorCode](), restoring.verify

    async def verified_beside_a_start(of: Settings) -> Verified:
        with fails(ErrorCode.STORE_UNAVAILABLE, "is being restored") as refused:
            await granted(here, subject="late")
        started.append(refused.value.code)
        return await verify(of)

    monkeypatch.setattr(restoring, "verify", verified_beside_a_start)
    report = await restore(settings, backup, programs)
    assert report.placed
    assert started
    await granted(here, subject="late")


@ON_SQLITE
async def test_a_restore_that_fails_lets_processes_open_the_database(
    here: Store, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    programs = Programs(settings, RUN_AS)
    backup = taken_to(tmp_path, settings)
    await copies.take(settings, backup, programs)
    await here.close()

    async def cut_off(_: Settings) -> Verified:
        raise KeyboardInterrupt

    monkeypatch.setattr(restoring, "verify", cut_off)
    with pytest.raises(KeyboardInterrupt):
        await restore(settings, backup, programs)
    await granted(here)


async def test_a_backup_of_something_else_is_refused(settings: Settings, tmp_path: Path):
    file = tmp_path / "notes.txt"
    file.write_text("nothing")
    with fails(ErrorCode.INVALID_REQUEST, "no backup of Evergrant"):
        await restore(settings, file, Programs(settings, RUN_AS))
