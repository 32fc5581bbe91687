"""The API is killed in the middle of an import; the same command again loses nothing and doubles nothing."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from bench.processes import python_module, running_process
from evergrant_server.audit import verify_log
from evergrant_server.cli.serve import settings_environment
from evergrant_server.core.secret import Secret
from evergrant_server.crypto.keyring import Role
from evergrant_server.settings import Settings
from evergrant_server.wiring.platform import Platform, open_platform
from tests.e2e.world import COMMAND, run
from tests.fakes.databases import sqlite_url
from tests.fakes.patience import PATIENCE_S
from tests.fakes.platform.installation import admin_key, prepared
from tests.fakes.platform.observations import TENANT
from tests.fakes.ports import free_port
from tests.fakes.providers.scripted_provider import ScriptedProvider
from tests.fakes.rows import an_integration, discovered

GRANTS = int(os.environ.get("EVERGRANT_TEST_GRANTS", "60"))
COUNTED = ("connection", "consent", "outbox", "audit")


async def counts(parts: Platform) -> dict[str, int]:
    async with parts.store.read() as tx:
        found = [await tx.connection.exec_driver_sql(f"SELECT count(*) FROM {it}") for it in COUNTED]
        return {name: int(it.scalar_one()) for name, it in zip(COUNTED, found, strict=True)}


def line(number: int) -> str:
    grant = {"access_token": f"at-{number}", "refresh_token": f"rt-{number}", "expires_in": 3600}
    return json.dumps({"integration": "crm", "subject": f"user-{number}", "scopes": ["read"], **grant})


@asynccontextmanager
async def api(settings: Settings, folder: Path) -> AsyncIterator[int]:
    """The API in a process of its own; yields its process id."""
    process = python_module("evergrant_server serve", folder, env=settings_environment(settings))
    async with running_process(process, port=settings.port):
        yield int(process.pid_file.read_text().split()[0])


async def test_an_import_whose_api_is_killed_goes_on_where_it_was(temporal_address: str, tmp_path: Path):
    file = tmp_path / "grants.jsonl"
    file.write_text("".join(line(it) + "\n" for it in range(GRANTS)))
    database = sqlite_url(tmp_path)
    settings = await prepared(temporal_address, database, tmp_path, (), port=free_port())
    url = f"http://127.0.0.1:{settings.port}"
    async with ScriptedProvider() as idp, open_platform(settings, Role.OPERATOR) as parts:
        row = an_integration(TENANT, parts.clock.now(), **discovered(idp))
        async with parts.store.write() as tx:
            await tx.integrations.put(row, Secret(idp.client_secret), expected=None)
        key = await admin_key(parts)
        before = await counts(parts)

        async def imported() -> tuple[int | None, dict[str, Any], str]:
            status, out, err = await run(url, key, COMMAND, "import", str(file), "--no-verify", "-o", "json")
            return status, json.loads(out), err

        async with api(settings, tmp_path) as pid:
            first = asyncio.create_task(imported())
            async with asyncio.timeout(PATIENCE_S):
                while (await counts(parts))["connection"] < GRANTS // 4:
                    assert not first.done()
                    await asyncio.sleep(0)
            os.killpg(pid, signal.SIGKILL)
            status, stopped, said = await first
        assert status not in (0, None)
        assert stopped["imported"] < GRANTS
        assert "run it again to go on" in said
        async with api(settings, tmp_path):
            status, again, _ = await imported()
        assert status == 0
        assert again["imported"] + again["exists"] == GRANTS
        assert again["exists"] >= stopped["imported"]
        grown = {name: number - before[name] for name, number in (await counts(parts)).items()}
        assert grown == {
            "connection": GRANTS,
            "consent": GRANTS,
            "outbox": 2 * GRANTS,  # the workflow's start, and the signal that the tokens are there
            "audit": GRANTS,
        }
        assert (await verify_log(parts.store, TENANT)).ok
