"""A caller who waits, and the refresh ahead of its own connection: in the queue, or already begun."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

from temporalio import activity
from temporalio.client import Client

from activities.support.temporal import heartbeating, to_its_end
from evergrant_server.core.ids import Tenant
from evergrant_server.core.messages import jobs
from evergrant_server.core.messages.activities import GrantResult, RefreshGrant
from tests.fakes.patience import eventually
from tests.workflows.connection_runs import a_grant
from tests.workflows.test_one_tenants_backlog import Place, until_waiting

ACME = Tenant("acme")


class Provider:
    """Answers a refresh once `answers` is set, and counts those under way."""

    def __init__(self) -> None:
        self.began: list[str] = []
        self.running = self.most = self.cancels = 0
        self.answers = asyncio.Event()

    @activity.defn(name=jobs.REFRESH_GRANT.name)
    async def refresh_grant(self, request: RefreshGrant) -> GrantResult:
        async with heartbeating():
            return await to_its_end(asyncio.create_task(self._refresh(request)))

    async def _refresh(self, request: RefreshGrant) -> GrantResult:
        self.began.append(request.connection_id)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            answered = asyncio.create_task(self.answers.wait())
            while not answered.done():
                await asyncio.wait((answered,), timeout=0.05)
                self.cancels += activity.is_cancelled()
            return a_grant(request.generation + 1)
        finally:
            self.running -= 1

    @asynccontextmanager
    async def answering(self) -> AsyncIterator[None]:
        """Answers all in the end, also where the test has failed: a worker waits for its activities."""
        try:
            yield
        finally:
            self.answers.set()

    async def until_begun(self, times: int) -> None:
        async def begun() -> int:
            return len(self.began)

        await eventually(begun, lambda it: it >= times)


async def test_a_caller_comes_before_the_backlog_in_which_its_own_refresh_waits(
    client: Client, tmp_path: Path
):
    place, provider, backlog = Place(client, tmp_path), Provider(), 24
    async with place.worker(provider, 1), provider.answering():
        starts = await place.connections(ACME, backlog, timedelta(seconds=1))
        await until_waiting(client, place.queue, backlog - 1)
        waited_for = [it for it in starts if it.connection_id not in provider.began][-4:]
        callers = [asyncio.create_task(place.refreshed(it)) for it in waited_for]
        await until_waiting(client, place.queue, backlog - 1 + len(waited_for))  # the overtaken ones too
        provider.answers.set()
        assert set(await asyncio.gather(*callers)) == {2}
        await provider.until_begun(backlog)
    after_the_first = provider.began[1:]
    assert set(after_the_first[:4]) == {it.connection_id for it in waited_for}
    assert len(provider.began) == len(set(provider.began)), "each was refreshed once"


async def test_a_refresh_that_has_begun_is_finished_and_no_second_one_beside_it(
    client: Client, tmp_path: Path
):
    """The caller comes while it is at the provider: it may have spent the credential."""
    place, provider = Place(client, tmp_path), Provider()
    async with place.worker(provider, 10), provider.answering():
        (start,) = await place.connections(ACME, 1, timedelta(seconds=1))
        await provider.until_begun(1)
        caller = asyncio.create_task(place.refreshed(start))

        async def cancels() -> int:
            return provider.cancels

        await eventually(cancels, lambda it: it > 0)
        provider.answers.set()
        assert await caller == 2
    assert (provider.began, provider.most) == ([start.connection_id], 1)
