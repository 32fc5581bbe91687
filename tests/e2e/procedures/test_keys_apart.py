"""docs/security/erasure.md: a backup whose keys are kept apart, made while keys are replaced; its restore."""

import asyncio
import sys
from pathlib import Path

from evergrant_server.core.clock import SystemClock
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import Tenant
from evergrant_server.core.secret import Secret
from evergrant_server.crypto import KeyRing
from evergrant_server.store import Store
from tests.fakes.databases import NOW, postgres
from tests.fakes.failures import fails
from tests.fakes.patience import PATIENCE_S
from tests.fakes.platform.docker import blocks
from tests.fakes.postgresql.program import postgresql_programs
from tests.fakes.rows import an_integration

PAGE = Path(__file__).parents[3] / "docs/security/erasure.md"
TENANT = Tenant("acme")
# Before it dumps the rows of `key`, they are gone: what a rotation does, at the worst moment.
_PG_DUMP = """#!/bin/sh
case "$*" in *--data-only*) psql "$URL" --quiet --command 'DELETE FROM "key"' ;; esac
exec {program} "$@"
"""


async def shell(block: str, folder: Path, url: str) -> None:
    """Run lines of the page, with PostgreSQL's own programs."""
    path = f"{folder}:{postgresql_programs()}:{Path(sys.executable).parent}:/usr/bin:/bin"
    child = await asyncio.create_subprocess_exec(
        "sh", "-euc", block, cwd=folder, env={"PATH": path, "URL": url},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await asyncio.wait_for(child.communicate(), PATIENCE_S)
    assert (child.returncode, output.decode()) == (0, "")


async def secret_of(url: str, ring: KeyRing) -> str:
    """The client secret that lies sealed in this database."""
    store = await Store.open(url, ring, SystemClock())
    try:
        async with store.read() as tx:
            integration = await tx.integrations.by_name(TENANT, "github")
            assert integration is not None
            secret = await tx.integrations.client_secret(integration)
    finally:
        await store.close()
    assert secret is not None
    return secret.reveal()


async def test_two_files_of_one_snapshot_open_together_and_not_alone(tmp_path: Path):
    server, ring = postgres(), KeyRing.create(tmp_path / "keys.json")
    before, after = await server.fresh(), await server.fresh(migrated=False)
    program = tmp_path / "pg_dump"
    program.write_text(_PG_DUMP.format(program=postgresql_programs() / "pg_dump"))
    program.chmod(0o755)
    store = await Store.open(before, ring, SystemClock())
    async with store.write() as tx:
        integration = an_integration(TENANT, NOW, name="github", provider="github")
        await tx.integrations.put(integration, Secret("hush"), expected=None)
    await store.close()
    backup, restore = blocks(PAGE, "## Backups", "apart")
    rows, keys = restore.splitlines()
    plain = "postgresql" + before.partition("+asyncpg")[2]
    await shell(backup, tmp_path, plain)
    with fails(ErrorCode.KEY_UNAVAILABLE):
        await secret_of(before, ring)  # what was dumped last is gone by now
    plain = "postgresql" + after.partition("+asyncpg")[2]
    await shell(rows, tmp_path, plain)
    with fails(ErrorCode.KEY_UNAVAILABLE):
        await secret_of(after, ring)
    await shell(keys, tmp_path, plain)
    assert await secret_of(after, ring) == "hush"
    for url in (before, after):
        await server.drop(url)
