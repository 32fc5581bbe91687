"""The doctor on a bad day: one cause once, a dead admin key, orphans, and what the audit log says."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from evergrant_server import audit
from evergrant_server.cli.dev import settings_file
from evergrant_server.cli.dev.leftovers import Leftover, only_dev_of
from evergrant_server.cli.doctor import CheckFailed, configuration, database, installation, report
from evergrant_server.cli.keys import create_keys, make_admin_key
from evergrant_server.cli.process import ChildProcess
from evergrant_server.core.audit import INSTALLATION, AuditAction, AuditEntry
from evergrant_server.core.audit_streams.state import StreamState
from evergrant_server.core.audit_streams.stream import INSTALLATION_STREAM, StreamProblem
from evergrant_server.core.clock import SystemClock
from evergrant_server.core.connections.erasure import Erasure, TargetKind
from evergrant_server.core.ids import ErasureId, StreamId, Tenant
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.crypto import KeyRing, Role
from evergrant_server.settings import Settings, load_settings
from evergrant_server.store import Store
from evergrant_server.temporal_link.runs import NewestRun
from tests.fakes.databases import migrated_sqlite
from tests.fakes.ports import free_port
from tests.fakes.rows import a_connection, an_integration

HERE = Tenant("default")


@pytest.fixture
async def settings(tmp_path: Path) -> Settings:
    os.chmod(tmp_path, 0o700)
    address = f"127.0.0.1:{free_port()}"
    settings = load_settings(data_dir=tmp_path, port=free_port(), temporal_address=address)
    await create_keys(settings)
    await migrated_sqlite(tmp_path)
    return settings


async def test_one_cause_is_printed_once_with_what_follows_from_it(
    settings: Settings, capsys: pytest.CaptureFixture[str]
):
    """`dev` has ended: Temporal and the API are away for one reason."""
    settings_file.write(settings)
    assert not await report.run(settings, "text")
    said = capsys.readouterr().out
    (problem,) = [line for line in said.splitlines() if line.startswith("PROBLEM")]
    assert "`dev` isn't running" in problem
    (follows,) = [line for line in said.splitlines() if "not checked because of it" in line]
    for unchecked in ("temporal", "namespace", "workers", "schedules", "workflows", "public URL"):
        assert unchecked in follows
    assert said.splitlines()[-1].startswith("1 of ")

    await report.run(settings, "json")
    found = {it["check"]: it for it in json.loads(capsys.readouterr().out)}
    assert found["workers"]["because"] == "processes"
    assert found["processes"]["repair"].endswith("make dev")


async def test_a_database_that_was_made_anew_under_a_kept_admin_key_is_named(settings: Settings):
    kept = settings.data_dir / "admin.key"
    await make_admin_key(settings, again=False, out=kept)
    assert "of the app admin" in await installation.admin_key(settings)
    (settings.data_dir / "evergrant.db").unlink()
    with pytest.raises(CheckFailed, match="there is no database at") as gone:
        await database.reachable(settings)
    assert "backup" in gone.value.repair
    await migrated_sqlite(settings.data_dir)
    with pytest.raises(CheckFailed, match=r"answered with 401: this database doesn't know the key") as found:
        await installation.admin_key(settings)
    assert found.value.repair.endswith(f"keys bootstrap --again --out {kept}")
    await make_admin_key(settings, again=True, out=kept)
    assert "of the app admin" in await installation.admin_key(settings)


async def test_a_process_without_its_dev_is_named_and_one_that_does_not_stay_up(settings: Settings):
    assert await installation.processes(settings) == "not run by `dev`"
    sleeps = [sys.executable, "-c", "import time; time.sleep(600)"]
    api = ChildProcess("api", sleeps, settings.data_dir)
    await api.start()
    try:
        with pytest.raises(CheckFailed, match=r"left behind by a `dev` .*: api \(process \d+\)"):
            await installation.processes(settings)
        with (
            only_dev_of(settings.data_dir),
            pytest.raises(CheckFailed, match="temporal and worker doesn't stay"),
        ):
            await installation.processes(settings)
        others = [ChildProcess(name, sleeps, settings.data_dir) for name in ("temporal", "worker")]
        for process in others:
            await process.start()
        with only_dev_of(settings.data_dir):
            assert "with temporal, api, worker" in await installation.processes(settings)
            pid = int(others[1].pid_file.read_text().split()[0])
            os.kill(pid, signal.SIGSTOP)
            while Leftover("worker", pid, 0).is_stopped is False:  # the kernel takes its moment
                await asyncio.sleep(0.01)
            with pytest.raises(CheckFailed, match=rf"worker \(process {pid}\) was stopped") as stopped:
                await installation.processes(settings)
            assert stopped.value.repair == f"kill -CONT {pid}"
            os.kill(pid, signal.SIGCONT)
        for process in others:
            await process.stop()
    finally:
        await api.stop()


@pytest.fixture
async def audited(settings: Settings) -> Settings:
    """Two integrations: `crm`, whose client was refused after a good exchange, and `mail`."""
    now = datetime.now(UTC)
    ring = KeyRing.open(settings.key_path, Role.OPERATOR)
    store = await Store.open(settings.database_url, ring, SystemClock())
    async with store.write() as tx:
        for name, actions in (
            ("crm", ((AuditAction.GRANT_INSTALLED, {}), (AuditAction.CONSENT_FAILED, "client_rejected"))),
            ("mail", ((AuditAction.CONSENT_FAILED, "client_rejected"), (AuditAction.GRANT_INSTALLED, {}))),
            ("wiki", ((AuditAction.REFRESH_FAILED, "grant_rejected"), (AuditAction.CONSENT_UNCONFIRMED, {}))),
        ):
            integration = await tx.integrations.put(an_integration(HERE, now, name=name), None, expected=None)
            connection = a_connection(integration, now)
            await tx.connections.add(connection)
            for number, (action, reason) in enumerate(actions):
                entry = AuditEntry(
                    tenant=HERE,
                    at=now + timedelta(seconds=number),
                    action=action,
                    object=connection.id,
                    context=RequestContext(by="worker"),
                    detail={"reason": reason} if reason else {},
                )
                await audit.append(tx, entry, shard="test")
    await store.close()
    return settings


async def test_an_integration_whose_last_exchange_failed_is_named(audited: Settings):
    with pytest.raises(CheckFailed, match="1 of 3 integrations failed: crm: client_rejected") as found:
        await configuration.exchanges(audited)
    assert "client id and secret" in found.value.repair


async def test_a_consent_that_no_app_confirmed_is_named(audited: Settings):
    with pytest.raises(CheckFailed, match=r"^1 consents came back .*: con_"):
        await configuration.confirmations(audited)


async def test_a_stream_whose_receiver_takes_nothing_is_named(settings: Settings):
    now = datetime.now(UTC)
    assert "at most 0 records wait" in await configuration.audit_streams(settings)
    ring = KeyRing.open(settings.key_path, Role.OPERATOR)
    store = await Store.open(settings.database_url, ring, SystemClock())
    async with store.write() as tx:
        for tenant, id in ((HERE, StreamId("stm_0")), (INSTALLATION, INSTALLATION_STREAM)):
            state = StreamState(tenant=tenant, id=id).waiting(7, now)
            await tx.stream_states.add(state.failed(StreamProblem.REFUSED, 401, None, now))
    await store.close()
    with pytest.raises(CheckFailed, match=r"^stm_0 \(tenant default\): refused with 401 .* 7 records wait$"):
        await configuration.audit_streams(settings)
    of_installation = load_settings(data_dir=settings.data_dir, audit_stream_url="http://siem:4318/v1/logs")
    with pytest.raises(CheckFailed, match="EVERGRANT_AUDIT_STREAM_URL: refused"):
        await configuration.audit_streams(of_installation)


class ScriptedRuns:
    """Stands where WorkflowRuns stands: which erasures have ended, and which of them run."""

    def __init__(self, ended: list[str], running: list[str]) -> None:
        self._ended, self._running = ended, running

    async def ended_erasures(self) -> AsyncIterator[str]:
        for id in self._ended:
            yield f"erasure:default:{id}"

    async def newest_run(self, workflow: str) -> NewestRun | None:
        return NewestRun("run-1", workflow.rpartition(":")[2] in self._running, None)


@pytest.mark.parametrize(
    ("ended", "running", "waits_for", "problem"),
    [
        (["era_1"], ["era_1"], timedelta(days=30), ""),
        (["era_1", "era_2"], ["era_1"], timedelta(days=30), r"1 erasures have ended .*erasure:default:era_2"),
        ([], [], timedelta(days=30), r"1 erasures don't go on: era_1 \(tenant default, revoking"),
        ([], ["era_1"], timedelta(), r"1 erasures don't go on: era_1"),
    ],
    ids=["good", "restored", "no workflow", "overdue"],
)
async def test_an_erasure_that_stopped_or_was_undone_is_named(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    ended: list[str],
    running: list[str],
    waits_for: timedelta,
    problem: str,
):
    ordered = datetime.now(UTC) - timedelta(hours=2)
    erasure = Erasure(
        tenant=HERE,
        id=ErasureId("era_1"),
        kind=TargetKind.CONNECTION,
        target="con_1",
        target_hash="con_1",
        reason="INC-9",
        by="app:admin",
        created_at=ordered,
        waits_until=ordered + waits_for,
    )
    ring = KeyRing.open(settings.key_path, Role.OPERATOR)
    store = await Store.open(settings.database_url, ring, SystemClock())
    async with store.write() as tx:
        await tx.erasures.add(erasure)
    await store.close()

    async def no_client(_: Settings) -> None:
        return None

    monkeypatch.setattr(installation, "open_client", no_client)
    monkeypatch.setattr(installation, "WorkflowRuns", lambda *_: ScriptedRuns(ended, running))
    if not problem:
        assert await installation.erasures(settings) == "1 go on, and the store knows each that has ended"
        return
    with pytest.raises(CheckFailed, match=problem):
        await installation.erasures(settings)
