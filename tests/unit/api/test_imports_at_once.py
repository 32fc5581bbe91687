"""PostgreSQL: a grant that several requests import at once is installed once."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from evergrant_server.core.access import Action
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.connections.consent import ConsentStatus
from evergrant_server.core.errors import ErrorCode
from evergrant_server.core.ids import ConnectionId, Tenant
from evergrant_server.store.connections.connections import Connections
from tests.fakes.api import TENANT, Api, running_api
from tests.fakes.databases import lent, postgres_server
from tests.unit.api.test_transfer import item, sent

__all__ = ["postgres_server"]
_AT_ONCE = 3  # an app has no more requests than four at once


@pytest_asyncio.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with lent("postgresql", tmp_path) as url, running_api(tmp_path, database_url=url) as running:
        yield running


async def test_a_dead_import_gets_new_tokens_by_one_of_several_requests(
    api: Api, monkeypatch: pytest.MonkeyPatch
):
    await api.integration("crm")
    key = await api.app_with("boss", Action.ADMIN)
    (first,) = await sent(api, key, item())
    id = ConnectionId(first["connection_id"])
    async with api.worker.write() as tx:
        consent = await tx.consents.import_consent(TENANT, id)
        assert consent is not None
        done = consent.__replace__(status=ConsentStatus.DONE)
        await tx.consents.replace(done, expected=consent.revision)
    dead = {"state": LifecycleState.NEEDS_REAUTH, "reason": ErrorCode.GRANT_REJECTED}
    await api.change(await api.row(TENANT, id), lambda row: row.__replace__(**dead))
    api.clock.advance(1)
    all_read, by_names = asyncio.Barrier(_AT_ONCE), Connections.by_names

    async def read_by_all(
        rows: Connections, tenant: Tenant, integration: str, subject: str, label: str
    ) -> Connection | None:
        connection = await by_names(rows, tenant, integration, subject, label)
        await all_read.wait()
        return connection

    monkeypatch.setattr(Connections, "by_names", read_by_all)
    outcomes = await asyncio.gather(*(sent(api, key, item(access_token="newer")) for _ in range(_AT_ONCE)))
    statuses = sorted(outcome["status"] for (outcome,) in outcomes)
    assert statuses == ["exists"] * (_AT_ONCE - 1) + ["imported"]
