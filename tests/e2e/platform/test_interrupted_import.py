"""API and worker are killed in the middle of an import; the same command again loses and doubles nothing."""

import asyncio
import json
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from evergrant_server.audit import verify_log
from evergrant_server.cli.serve import settings_environment
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.messages.names import connection_workflow_id
from evergrant_server.core.secret import Secret
from evergrant_server.crypto.keyring import Role
from evergrant_server.settings import Settings
from evergrant_server.wiring.platform import Platform, open_platform
from tests.e2e.world import COMMAND, run
from tests.fakes.databases import sqlite_url
from tests.fakes.patience import PATIENCE_S
from tests.fakes.platform.compose import Running
from tests.fakes.platform.docker import answers
from tests.fakes.platform.installation import admin_key, prepared
from tests.fakes.platform.observations import TENANT
from tests.fakes.platform.warm import WarmProcess
from tests.fakes.ports import free_port
from tests.fakes.providers.scripted_provider import ScriptedProvider
from tests.fakes.rows import an_integration, discovered

GRANTS = int(os.environ.get("EVERGRANT_TEST_GRANTS", "80"))
BEFORE = GRANTS * 3 // 4  # more than one request's: the second waits for the pipe, whatever the first does
COUNTED = ("connection", "consent", "connection_grant", "outbox")


async def counts(parts: Platform) -> dict[str, int]:
    async with parts.store.read() as tx:
        found = [await tx.connection.exec_driver_sql(f"SELECT count(*) FROM {it}") for it in COUNTED]
        return {name: int(it.scalar_one()) for name, it in zip(COUNTED, found, strict=True)}


async def audited(parts: Platform) -> dict[str, int]:
    async with parts.store.read() as tx:
        rows = await tx.connection.exec_driver_sql(
            "SELECT action, count(*) AS n FROM audit WHERE tenant <> '-' GROUP BY action"
        )
        return {str(row["action"]): int(row["n"]) for row in rows.mappings()}


async def connections(parts: Platform) -> list[Connection]:
    async with parts.store.read() as tx:
        return list(await tx.connections.page(TENANT, limit=GRANTS + 1))


async def tokens(parts: Platform, connection: Connection) -> tuple[str, str]:
    async with parts.store.read() as tx:
        refresh = await tx.grants.refresh_token(connection)
        assert refresh is not None
        return (await tx.grants.access_token(connection)).reveal(), refresh.reveal()


async def runs(parts: Platform, connection: Connection) -> int:
    """How many runs its workflow has had."""
    query = f"WorkflowId = '{connection_workflow_id(TENANT, connection.id)}'"
    return sum([1 async for _ in parts.client.list_workflows(query)])


def line(number: int) -> str:
    grant = {"access_token": f"at-{number}", "refresh_token": f"rt-{number}", "expires_in": 3600}
    return json.dumps({"integration": "crm", "subject": f"user-{number}", "scopes": ["read"], **grant})


@asynccontextmanager
async def api_and_worker(settings: Settings, folder: Path) -> AsyncIterator[list[int]]:
    """Both in processes of their own; yields their process ids."""
    env = {**os.environ, **settings_environment(settings)}
    async with AsyncExitStack() as stack:
        running, pids = dict[str, Running](), list[int]()
        for name in ("serve", "worker"):
            log = folder / f"{name}.log"
            log.write_bytes(b"")
            child = await WarmProcess.start([name], env, log, log)
            running[name] = Running(name, child, log)
            stack.push_async_callback(running[name].stop)
            pids.append(child.pid)
        await running["serve"].until(lambda: answers(settings.port))
        await running["worker"].says("worker ready")
        yield pids


@pytest.mark.soak
async def test_an_import_whose_processes_are_killed_goes_on_where_it_was(
    temporal_address: str, tmp_path: Path
):
    lines = [line(number) + "\n" for number in range(GRANTS)]
    file, pipe = tmp_path / "grants.jsonl", tmp_path / "pipe.jsonl"
    file.write_text("".join(lines))
    os.mkfifo(pipe)
    settings = await prepared(temporal_address, sqlite_url(tmp_path), tmp_path, (), port=free_port())
    url = f"http://127.0.0.1:{settings.port}"
    async with ScriptedProvider() as idp, open_platform(settings, Role.OPERATOR) as parts:
        row = an_integration(TENANT, parts.clock.now(), **discovered(idp))
        async with parts.store.write() as tx:
            await tx.integrations.put(row, Secret(idp.client_secret), expected=None)
        key = await admin_key(parts)
        before = await counts(parts)

        async def imported(source: Path) -> tuple[int | None, dict[str, Any], str]:
            status, out, err = await run(
                url, key, COMMAND, "import", str(source), "--no-verify", "-o", "json"
            )
            return status, json.loads(out), err

        async with api_and_worker(settings, tmp_path) as pids:
            first = asyncio.create_task(imported(pipe))
            with await asyncio.to_thread(pipe.open, "w") as opened:
                opened.writelines(lines[:BEFORE])
                opened.flush()
                async with asyncio.timeout(PATIENCE_S):
                    while (await counts(parts))["connection"] < GRANTS // 4:
                        assert not first.done()
                        await asyncio.sleep(0.05)
                for pid in pids:
                    os.killpg(pid, signal.SIGKILL)
                opened.writelines(lines[BEFORE:])
            status, stopped, said = await first
        async with parts.store.write() as tx:  # what the dead relays held, as half a minute does
            await tx.connection.exec_driver_sql("UPDATE outbox SET claimed_until = NULL")
        assert status not in (0, None)
        assert stopped["imported"] < GRANTS
        assert "run it again to go on" in said
        async with api_and_worker(settings, tmp_path):
            status, again, _ = await imported(file)
            assert status == 0
            assert again["imported"] + again["exists"] == GRANTS
            assert again["exists"] >= stopped["imported"]
            async with asyncio.timeout(PATIENCE_S):
                while (await counts(parts))["connection_grant"] < GRANTS:
                    await asyncio.sleep(0.2)
        # nothing lost, nothing doubled: rows, what was sent to Temporal, its runs, and each one's own tokens
        grown = {name: number - before[name] for name, number in (await counts(parts)).items()}
        assert grown == dict.fromkeys(COUNTED, GRANTS)
        found = await connections(parts)
        assert Counter((it.state, it.generation) for it in found) == {(LifecycleState.ACTIVE, 1): GRANTS}
        assert {it.subject: await tokens(parts, it) for it in found} == {
            f"user-{n}": (f"at-{n}", f"rt-{n}") for n in range(GRANTS)
        }
        assert [await runs(parts, it) for it in found] == [1] * GRANTS
        recorded = await audited(parts)
        assert recorded == {AuditAction.CONNECTION_IMPORTED: GRANTS, AuditAction.GRANT_INSTALLED: GRANTS}
        assert (await verify_log(parts.store, TENANT)).ok
