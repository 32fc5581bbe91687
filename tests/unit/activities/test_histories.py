"""A run that ends requests the export of its history once, also when the answer to its commit is lost."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import func, select
from temporalio.testing import ActivityEnvironment

from activities.histories import HistoryActivities
from activities.support import transactions
from evergrant_server.core.messages.activities import ExportRunHistory
from evergrant_server.core.messages.base import Provenance, RequestContext
from evergrant_server.store import Store, Transaction
from evergrant_server.store.database.errors import store_unavailable
from evergrant_server.store.outbox import OutboxRow
from tests.conformance.store.samples import ACME, granted
from tests.fakes.clock import SetClock


async def test_an_export_whose_commit_is_not_answered_is_requested_once(
    store: Store, clock: SetClock, monkeypatch: pytest.MonkeyPatch
):
    connection, write, answers = await granted(store), store.write, [False, True]

    @asynccontextmanager
    async def unanswered(*keys: Any) -> AsyncIterator[Transaction]:
        async with write(*keys) as tx:
            yield tx
        if not answers.pop(0):
            raise store_unavailable("the connection was lost", "")

    monkeypatch.setattr(store, "write", unanswered)
    monkeypatch.setattr(transactions, "_FIRST_WAIT_S", 0.0)
    link: Any = None
    run = ExportRunHistory(
        tenant=ACME,
        connection_id=connection.id,
        provenance=Provenance(workflow_id="w", run_id="r", event_id=1),
        context=RequestContext(by="schedule"),
    )
    await ActivityEnvironment().run(HistoryActivities(store, link, clock).run_ends, run)
    assert answers == []
    async with store.read() as tx:
        count = select(func.count()).select_from(OutboxRow)
        assert (await tx.connection.execute(count)).scalar_one() == 1
