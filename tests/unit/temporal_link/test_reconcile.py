"""Reconcile: missing workflows are started, workflows that don't answer are queried again and then named."""

import tracemalloc

import pytest
from sqlalchemy import update
from sqlmodel import col

from evergrant_server.core.access import MovePhase, TenantStanding
from evergrant_server.core.connections.connection import LifecycleState, RevocationOutcome
from evergrant_server.core.connections.grant import Grant, Origin, TokenSet
from evergrant_server.core.ids import ConnectionId, Tenant
from evergrant_server.core.messages.connection import EventKind
from evergrant_server.core.secret import Secret
from evergrant_server.store import Store
from evergrant_server.store.connections.tables import ConnectionGrantRow, ConnectionRow
from evergrant_server.temporal_link import reconcile
from evergrant_server.temporal_link.reconcile import Reconciler
from evergrant_server.temporal_link.runs import NewestRun, RunningWorkflow
from tests.fakes.clock import SetClock
from tests.unit.temporal_link.conftest import Prepare, connection_ids

NEVER = 1_000  # more queries than a pass sends
TENANT, CONNECTION = Tenant("acme"), ConnectionId(*connection_ids(0))


@pytest.mark.parametrize(("newest", "started"), [(NewestRun("run", True, None), []), (None, [CONNECTION])])
async def test_a_workflow_is_started_unless_it_is_running(
    prepare: Prepare, newest: NewestRun | None, started: list[ConnectionId]
):
    reconciler, link = await prepare(1)
    link.newest = newest
    assert await reconciler.start_workflow(TENANT, CONNECTION)
    assert [start.connection_id for start in link.started] == started


async def test_no_workflow_is_started_for_a_final_or_unknown_connection(
    prepare: Prepare, store: Store, clock: SetClock
):
    reconciler, _ = await prepare(1)
    assert await reconciler.start_workflow(TENANT, ConnectionId("con_unknown")) is False
    async with store.write() as tx:
        current = await tx.connections.get(TENANT, CONNECTION)
        assert current is not None
        revoking = current.revocation_requested("left", clock.now())
        revoked = revoking.revocation_ended(RevocationOutcome.NOTHING_HELD, clock.now())
        await tx.connections.replace(revoked, expected=current.revision)
    assert await reconciler.start_workflow(TENANT, CONNECTION) is False


async def test_no_workflow_is_started_for_a_tenant_that_a_move_closes_during_a_pass(
    prepare: Prepare, store: Store, monkeypatch: pytest.MonkeyPatch
):
    reconciler, link = await prepare(1)
    link.newest = None

    async def closed_meanwhile(_: object) -> dict[str, RunningWorkflow]:
        moved = TenantStanding(tenant=TENANT, id=TENANT, phase=MovePhase.MOVED, disabled=True)
        async with store.write() as tx:
            await tx.tenants.put(moved, expected=None)
        return {}

    monkeypatch.setattr(link, "running_connections", closed_meanwhile)
    assert (await reconciler.reconcile_all()).started == 0
    assert link.started == []


@pytest.mark.parametrize("pending", [(), ("pipeline-1", "pipeline-2")])
async def test_a_workflow_that_is_behind_is_replaced_and_its_pending_replies_are_kept(
    prepare: Prepare, store: Store, clock: SetClock, pending: tuple[str, ...]
):
    reconciler, link = await prepare(1)
    link.pending_replies = pending
    await install_grant(store, clock)
    clock.advance(60)
    assert (await reconciler.reconcile_all()).restarted == 1
    (start,) = link.started
    assert (start.state.state, start.state.waiting_callers) == (LifecycleState.ACTIVE, pending)
    assert [event.kind for event in start.pending_events] == ([EventKind.TIMER_FIRED] if pending else [])


async def install_grant(store: Store, clock: SetClock) -> None:
    """Install a grant in the store that the workflow knows nothing of."""
    now = clock.now()
    async with store.write() as tx:
        current = await tx.connections.get(TENANT, CONNECTION)
        assert current is not None
        after = current.granted(now)
        tokens = TokenSet(access_token=Secret("at-1"), expires_in=3600)
        grant = Grant.from_tokens(tokens, generation=after.generation, requested=(), at=now)
        await tx.grants.install(after, tokens, grant, origin=Origin.NEW, expected=current.revision)


async def test_a_late_answer_is_accepted_and_a_missing_one_is_named(prepare: Prepare):
    reconciler, link = await prepare(6)
    late, missing = connection_ids(2, 4)
    link.silent = {late: 1, missing: NEVER}
    counts = await reconciler.reconcile_all()
    assert (counts.live, counts.unanswered.first, counts.workers_answered) == (6, (missing,), True)
    assert [link.queries[name] for name in connection_ids(*range(6))] == [1, 1, 2, 1, 2, 1]


async def test_a_worker_that_was_slow_for_many_at_once_still_counts_as_running(prepare: Prepare):
    reconciler, link = await prepare(230)
    link.silent = dict.fromkeys(connection_ids(*range(32)), 1)
    counts = await reconciler.reconcile_all()
    assert (counts.live, counts.workers_answered, counts.unanswered.first) == (230, True, ())
    assert len(link.queries) == 230


async def test_without_a_worker_the_pass_soon_stops_to_query(prepare: Prepare):
    reconciler, link = await prepare(450)
    link.silent = dict.fromkeys(connection_ids(*range(450)), NEVER)
    counts = await reconciler.reconcile_all()
    assert (counts.live, counts.workers_answered) == (450, False)
    assert counts.unanswered.first == connection_ids(*range(200)), "the rest wasn't queried"
    assert link.queries.total() < 100


async def test_rows_that_cant_be_read_stop_no_pass(prepare: Prepare, store: Store, clock: SetClock):
    """Of the connection, and of its grant, which the start of a workflow reads."""
    reconciler, _ = await prepare(203)
    await install_grant(store, clock)
    clock.advance(60)  # its workflow is behind, and would be replaced
    broken = connection_ids(1, 199, 202)  # in, at the end of and behind a batch
    async with store.write() as tx:
        rows = update(ConnectionRow).where(col(ConnectionRow.id).in_(broken))
        await tx.connection.execute(rows.values(flow="from_the_future"))
        await tx.connection.execute(update(ConnectionGrantRow).values(scopes={"a": 1}))
    found = await reconciler.reconcile_all(compare=False)
    assert sorted(id for id, _ in found.unreadable.first) == sorted([CONNECTION, *broken])
    assert (found.live, found.complete) == (199, True)
    why = dict(found.unreadable.first)
    assert why[CONNECTION] == f"the row of {CONNECTION} in connection_grant can't be read: scopes"
    assert why[broken[0]] == f"the row of {broken[0]} in connection can't be read: flow"


async def test_a_pass_names_no_more_than_a_person_reads_and_counts_all(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(reconcile, "_MOST_NAMED", 10)
    reconciler, link = await prepare(450)
    link.silent = dict.fromkeys(connection_ids(*range(450)), NEVER)
    counts = await reconciler.reconcile_all()
    assert (counts.unanswered.count, counts.unanswered.first) == (200, connection_ids(*range(10)))


async def peak_of_a_pass(reconciler: Reconciler) -> int:
    """The most bytes that a pass holds beside what was there before."""
    tracemalloc.start()
    try:
        await reconciler.reconcile_all(compare=False)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


async def test_a_pass_over_six_times_the_connections_takes_no_more_memory(prepare: Prepare):
    reconciler, _ = await prepare(600)
    await peak_of_a_pass(reconciler)  # statements are compiled once
    few = await peak_of_a_pass(reconciler)
    reconciler, link = await prepare(3_000, first=600)
    many = await peak_of_a_pass(reconciler)
    assert link.most_listed == 200, "what is listed of Temporal is a batch as well"
    assert many < 1.2 * few
