"""What became of a workflow that a message did not reach."""

import pytest

from evergrant_server.core.clock import SetClock
from evergrant_server.core.connections.connection import Connection, RevocationOutcome
from evergrant_server.core.ids import ConnectionId, Tenant
from evergrant_server.core.messages.connection import ConnectionStart
from evergrant_server.store import Store
from evergrant_server.temporal_link.reconcile import StartOutcome
from evergrant_server.temporal_link.runs import NewestRun
from tests.unit.temporal_link.conftest import Place

TENANT, CONNECTION = Tenant("acme"), ConnectionId(f"con_{0:026}")


@pytest.mark.parametrize(
    ("newest", "revival"),
    [(NewestRun("run", True, None), StartOutcome.ALREADY_RUNNING), (None, StartOutcome.STARTED)],
)
async def test_it_runs_or_is_started(
    place: Place, monkeypatch: pytest.MonkeyPatch, newest: NewestRun | None, revival: StartOutcome
):
    reconciler, link = await place(1)
    started: list[str] = []

    async def newest_run(workflow: str) -> NewestRun | None:
        return newest

    async def start(start: ConnectionStart, *, again: bool = False, instead: bool = False) -> None:
        started.append(start.connection_id)

    monkeypatch.setattr(link, "newest_run", newest_run)
    monkeypatch.setattr(link, "start_connection", start)
    assert await reconciler.start_workflow(TENANT, CONNECTION) is revival
    assert started == ([CONNECTION] if revival is StartOutcome.STARTED else [])


async def test_one_that_has_ended_is_left_alone(place: Place, store: Store, clock: SetClock):
    reconciler, _ = await place(1)
    assert await reconciler.start_workflow(TENANT, ConnectionId("con_of_nobody")) is StartOutcome.NOT_NEEDED

    def ended(it: Connection) -> Connection:
        return it.revocation_requested("left", clock.now()).revocation_ended(
            RevocationOutcome.NOTHING_HELD, clock.now()
        )

    async with store.write() as tx:
        current = await tx.connections.get(TENANT, CONNECTION)
        assert current is not None
        await tx.connections.replace(ended(current), expected=current.revision)
    assert await reconciler.start_workflow(TENANT, CONNECTION) is StartOutcome.NOT_NEEDED
