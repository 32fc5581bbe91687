"""Leases whose connection changes after it was read and before they are recorded: they are judged again."""

from collections.abc import Callable

import pytest
from sqlalchemy import update

from evergrant_server.audit.lease_ledger import LeaseLedger
from evergrant_server.core.access import Action
from evergrant_server.store.connections.tables import ConnectionRow
from evergrant_server.store.database.columns import table_of
from tests.fakes.api import Api

_CONNECTIONS = table_of(ConnectionRow)


async def change_every_connection(api: Api) -> None:
    """As a refresh does in another process, for what a lease looks at."""
    async with api.worker.write() as tx:
        await tx.connection.execute(update(_CONNECTIONS).values(revision=_CONNECTIONS.c.revision + 1))


@pytest.fixture
def overtake(api: Api, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[int]]:
    """Change connections just before each of the next records. The list has an item for each one."""
    record = LeaseLedger.record_pair

    def overtaken(times: int) -> list[int]:
        tried: list[int] = []

        async def record_later(ledger: LeaseLedger, *lease: object) -> None:
            tried.append(len(tried))
            if len(tried) <= times:
                await change_every_connection(api)
            await record(ledger, *lease)  # type: ignore[arg-type]  # as it came

        monkeypatch.setattr(LeaseLedger, "record_pair", record_later)
        return tried

    return overtaken


async def test_a_connection_that_changes_again_and_again_is_leased_once_it_rests(
    api: Api, overtake: Callable[[int], list[int]]
):
    await api.active(await api.integration())
    key = await api.app_with("pipeline", Action.TOKEN)
    tried = overtake(12)
    answer = await api.lease(key)
    assert (answer.status_code, answer.json().get("code")) == (200, None)
    assert len(tried) == 13


async def test_a_connection_that_never_rests_is_answered_once_a_lease_has_waited(
    api: Api, overtake: Callable[[int], list[int]]
):
    await api.active(await api.integration())
    key = await api.app_with("pipeline", Action.TOKEN)
    overtake(10**9)
    answer = await api.lease(key)
    assert (answer.status_code, answer.json()["code"], answer.headers["retry-after"]) == (
        409,
        "store_conflict",
        "1",
    )


async def test_what_a_judged_pair_finds_changed_is_read_again_before_it_is_judged(
    api: Api, overtake: Callable[[int], list[int]]
):
    await api.active(await api.integration())
    key = await api.app_with("pipeline", Action.TOKEN)
    assert (await api.lease(key)).status_code == 200
    await change_every_connection(api)
    tried = overtake(0)
    assert (await api.lease(key)).status_code == 200
    assert len(tried) == 2  # by the pair, and by what stands in the store
