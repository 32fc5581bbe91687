"""`doctor upgrade`: the next step by the database's mark and by what processes say of themselves."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from evergrant_server.cli.db import require_suited_processes
from evergrant_server.cli.doctor import upgrade
from evergrant_server.cli.doctor.upgrade import Release, UpgradeStep, next_step
from evergrant_server.core.clock import SystemClock
from evergrant_server.core.errors import ErrorCode
from evergrant_server.settings import load_settings
from evergrant_server.store.database import schema
from evergrant_server.store.database.engine import open_database
from evergrant_server.store.database.schema import Stamp
from evergrant_server.store.rotation.processes import Process, Processes, read_processes
from tests.fakes.failures import fails

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
NEW = Release("1.1.0", schema.expected_version(), "0018")
OLD = Release("1.0.0", "0018", "0018")
UPGRADED = Stamp(NEW.schema, NEW.oldest_code)
_LIVE, _SILENT, _GONE = timedelta(seconds=5), timedelta(minutes=2), timedelta(hours=1)


def process(role: str, release: Release = NEW, host: str = "one", silent_for: timedelta = _LIVE) -> Process:
    says = None if release is OLD else release.schema
    began, seen = NOW - timedelta(days=1), NOW - silent_for
    return Process(f"prc_{role}_{host}", role, host, release.version, says, {}, {}, began, seen, silent_for)


def test_the_schema_comes_first_while_every_process_goes_on_with_it():
    advice = next_step(Stamp("0018"), [process("worker", OLD), process("api", OLD)], NEW)
    assert (advice.step, advice.safe) == (UpgradeStep.MIGRATE, True)
    assert "db upgrade" in advice.command
    assert next_step(None, [], NEW).step is UpgradeStep.MIGRATE


@pytest.mark.parametrize("silent_for", [_LIVE, _SILENT, _GONE])
def test_a_schema_that_ends_older_code_waits_for_its_processes(silent_for: timedelta):
    contracts = NEW._replace(oldest_code=NEW.schema)
    advice = next_step(Stamp("0018"), [process("api", OLD, silent_for=silent_for)], contracts)
    assert (advice.step, advice.safe) == (UpgradeStep.MIGRATE, silent_for is not _LIVE)
    assert ("the api on one (1.0.0" in advice.detail) is (silent_for is _LIVE)


def test_workers_come_first_then_gateways_then_apis():
    fleet = [process(role, OLD, host) for role in ("api", "gateway", "worker") for host in ("one", "two")]
    for role in ("worker", "gateway", "api"):
        for _ in range(2):
            advice = next_step(UPGRADED, fleet, NEW)
            assert (advice.step, advice.safe) == (UpgradeStep.REPLACE, True)
            older = next(it for it in fleet if it.role == role and it.version == OLD.version)
            assert f"the {role} on {older.host}" in advice.command
            fleet[fleet.index(older)] = process(role, NEW, older.host)
    assert next_step(UPGRADED, fleet, NEW).step is UpgradeStep.DONE


def test_a_roll_back_goes_the_other_way():
    before = OLD._replace(schema="0000")
    newer = Stamp("9999", "0000")
    advice = next_step(newer, [process(role) for role in ("worker", "gateway", "api")], before)
    assert (advice.step, advice.safe) == (UpgradeStep.REPLACE, False)
    assert "the api on one is the only one" in advice.detail.replace(f" (1.1.0, schema {NEW.schema})", "")


def test_the_only_one_of_its_role_leaves_a_gap():
    advice = next_step(UPGRADED, [process("worker", OLD), process("worker", NEW, "two", _SILENT)], NEW)
    assert (advice.step, advice.safe) == (UpgradeStep.REPLACE, False)
    assert "the only one" in advice.detail


def test_of_two_on_one_host_the_older_one_is_seen_and_waits_until_the_newer_one_has_proved_to_live():
    started = process("api")._replace(id="prc_new", started_at=NOW - timedelta(seconds=2))
    before = process("api", OLD)
    advice = next_step(UPGRADED, [before, started._replace(seen_at=NOW - timedelta(seconds=3))], NEW)
    assert (advice.step, advice.safe, advice.role) == (UpgradeStep.REPLACE, False, "api")
    advice = next_step(UPGRADED, [before, started._replace(seen_at=NOW)], NEW)
    assert (advice.step, advice.safe, advice.role) == (UpgradeStep.REPLACE, True, "api")


def test_one_that_fell_silent_is_waited_for():
    fleet = [process("worker"), process("api", OLD, silent_for=_SILENT)]
    assert next_step(UPGRADED, fleet, NEW).step is UpgradeStep.WAIT
    fleet[1] = process("api", OLD, silent_for=_GONE)
    assert next_step(UPGRADED, fleet, NEW).step is UpgradeStep.DONE


def test_a_schema_that_no_longer_works_with_this_code():
    advice = next_step(Stamp("9999", "9998"), [], NEW)
    assert (advice.step, advice.safe) == (UpgradeStep.OTHER_CODE, False)
    assert "9998" in advice.detail


async def test_the_command_reads_a_database_that_is_yet_to_be_upgraded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    settings = load_settings(data_dir=tmp_path)
    assert await upgrade.run(settings, "text")
    assert "database   empty" in capsys.readouterr().out
    await schema.upgrade(settings.database_url)
    database = open_database(settings.database_url)
    names = {"role": "worker", "host": "one", "version": "0.0.9"}
    async with database.write() as connection:
        processes = Processes(connection, SystemClock().now())
        await processes.beat("prc_1", names, {}, {}, NOW)
        await connection.exec_driver_sql("ALTER TABLE process DROP COLUMN schema_version")
        await connection.exec_driver_sql("ALTER TABLE alembic_version DROP COLUMN oldest_code")
        await connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0018'")
    await database.close()
    assert await upgrade.run(settings, "json")
    document = json.loads(capsys.readouterr().out)
    assert document["database"] == {"schema": "0018", "oldest_code": None}
    assert [(it["role"], it["schema"], it["state"]) for it in document["processes"]] == [
        ("worker", None, "live")
    ]
    assert document["next"]["step"] == "migrate"

    await require_suited_processes(settings)
    monkeypatch.setattr(schema, "OLDEST_CODE", schema.expected_version())
    with fails(ErrorCode.SCHEMA_MISMATCH, "the worker on one"):
        await require_suited_processes(settings)
    (seen,) = await read_processes(settings.database_url, SystemClock().now())
    assert (seen.host, seen.schema_version) == ("one", None)
