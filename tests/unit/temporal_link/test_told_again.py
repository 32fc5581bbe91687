"""Who was to hear again from a run: the one that follows it, because it was behind, knows of them."""

from datetime import timedelta

import pytest

from evergrant_server.core.clock import SetClock
from evergrant_server.core.connections.connection import LifecycleState
from evergrant_server.core.connections.grant import Grant, TokenSet
from evergrant_server.core.ids import ConnectionId, Tenant
from evergrant_server.core.messages.connection import ConnectionDescription, ConnectionStart, EventKind
from evergrant_server.core.secret import Secret
from evergrant_server.store import Store
from tests.unit.temporal_link.conftest import Place

TENANT, CONNECTION = Tenant("acme"), ConnectionId(f"con_{0:026}")


@pytest.mark.parametrize("waiting", [(), ("pipeline-1", "pipeline-2")])
async def test_a_run_that_follows_one_that_was_behind_looks_at_once_whom_to_tell(
    place: Place, store: Store, clock: SetClock, monkeypatch: pytest.MonkeyPatch, waiting: tuple[str, ...]
):
    reconciler, link = await place(1)
    pending = await link.describe(TENANT, CONNECTION)
    await granted(store, clock)
    starts: list[ConnectionStart] = []

    async def describe(
        tenant: Tenant, connection_id: ConnectionId, timeout: float = 2.0
    ) -> ConnectionDescription:
        return pending.model_copy(update={"reply_later": waiting})

    async def idle(workflow: str) -> bool:
        return True

    async def start(start: ConnectionStart, *, again: bool = False, instead: bool = False) -> None:
        starts.append(start)

    monkeypatch.setattr(link, "describe", describe)
    monkeypatch.setattr(link, "is_idle", idle)
    monkeypatch.setattr(link, "start_connection", start)
    clock.advance(60)
    assert (await reconciler.reconcile_all()).restarted == 1
    (began,) = starts
    assert (began.life.state, began.life.reply_later) == (LifecycleState.ACTIVE, waiting)
    assert [it.kind for it in began.waiting] == ([EventKind.TIMER_FIRED] if waiting else [])


async def granted(store: Store, clock: SetClock) -> None:
    """The store has a grant of which the workflow hasn't heard."""
    now = clock.now()
    async with store.write() as tx:
        current = await tx.connections.get(TENANT, CONNECTION)
        assert current is not None
        after = current.granted(now)
        tokens = TokenSet(access_token=Secret("at-1"), expires_in=timedelta(hours=1).total_seconds())
        grant = Grant.from_tokens(tokens, generation=after.generation, requested=(), at=now)
        await tx.grants.install(after, tokens, grant, expected=current.revision)
