"""`doctor` says whether the audit log is signed, and which anchors keep nothing."""

from datetime import timedelta
from pathlib import Path

import pytest

from evergrant_server import audit
from evergrant_server.audit.checkpoints.heads import HeadsLog
from evergrant_server.cli.doctor import CheckFailed
from evergrant_server.cli.doctor.audit_log import checkpoints
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.clock import SystemClock
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.crypto import KeyRing, Role
from evergrant_server.settings import Settings
from evergrant_server.store import Store
from evergrant_server.store.audit.checkpoints import Anchor
from tests.fakes.api import TENANT
from tests.fakes.clock import SetClock
from tests.fakes.databases import migrated_sqlite, sqlite_url


async def test_the_findings_of_a_log(tmp_path: Path):
    KeyRing.create(tmp_path / "keys.json")
    await migrated_sqlite(tmp_path)
    settings = Settings(data_dir=tmp_path, database_url=sqlite_url(tmp_path))
    clock = SetClock(SystemClock().now() - timedelta(hours=1))
    store = await Store.open(settings.database_url, KeyRing.open(settings.key_path, Role.WORKER), clock)
    log = HeadsLog(store, clock, "evergrant.example/audit")

    async def append() -> None:
        entry = AuditEntry(
            tenant=TENANT,
            at=clock.now(),
            action=AuditAction.GRANT_REFRESHED,
            object="con_1",
            context=RequestContext(by="schedule"),
        )
        async with store.write() as tx:
            await audit.append(tx, entry)

    try:
        assert "no worker has signed" in await checkpoints(settings)
        await append()
        await log.advance()
        assert "evergrant.example/audit is signed at" in await checkpoints(settings)
        await append()
        with pytest.raises(CheckFailed, match="there are newer records"):
            await checkpoints(settings)
        await log.advance()
        async with store.write() as tx:
            kept = Anchor("witness w", 1, clock.now(), b"", "witness w: status 403")
            await tx.checkpoints.put_anchor(kept)
        with pytest.raises(CheckFailed, match=r"witness w has kept none since .*status 403"):
            await checkpoints(settings)
        async with store.write() as tx:
            newest = await tx.checkpoints.newest()
            assert newest is not None
            await tx.checkpoints.put_anchor(kept._replace(size=newest.tree.size, problem=None))
        assert "kept by witness w" in await checkpoints(settings)
    finally:
        await store.close()
