"""A pass that takes longer than a run may: it goes on where it stopped, and looks at each connection once."""

from dataclasses import replace
from datetime import timedelta

from temporalio.testing import ActivityEnvironment

from activities.maintenance.reconcile import RUN_LIMIT, ReconcileActivities
from evergrant_server import audit
from evergrant_server.core.audit import AuditAction, AuditEntry
from evergrant_server.core.clock import SetClock
from evergrant_server.core.ids import Tenant
from evergrant_server.core.messages.connection import RequestContext
from evergrant_server.core.messages.maintenance import AuditCheckpoint, ReconcileRequest, ReconcileResult
from evergrant_server.store import Store
from evergrant_server.temporal_link import ClosedRunExporter, Reconciler
from tests.fakes.scripted_link import ScriptedLink
from tests.unit.temporal_link.conftest import Place

LOST = AuditCheckpoint(tenant=Tenant("acme"), seq=7, hash="of a record that the backup doesn't have")
MANY = 450  # three batches


def upkeep(
    store: Store,
    reconciler: Reconciler,
    link: ScriptedLink,
    clock: SetClock,
    longest: timedelta = RUN_LIMIT,
) -> ReconcileActivities:
    closed = ClosedRunExporter(store, link, clock)
    return ReconcileActivities(store, reconciler, closed, clock, timedelta(days=30), longest)


def following(last: ReconcileResult) -> ReconcileRequest:
    """What `ReconcileWorkflow` makes of the last run's result."""
    return ReconcileRequest(mark=last.mark, so_far=last if last.after else None)


async def recorded(store: Store, clock: SetClock) -> None:
    now, tenant = clock.now(), Tenant("acme")
    async with store.write() as tx:
        action = AuditAction.HISTORY_EXPORTED
        await audit.append(
            tx,
            AuditEntry(
                tenant=tenant, at=now, action=action, object="con", context=RequestContext(by="schedule")
            ),
        )


async def test_it_goes_on_where_it_stopped_until_it_is_at_the_end(
    place: Place, store: Store, clock: SetClock
):
    reconciler, link = await place(MANY)
    await recorded(store, clock)
    activities = upkeep(store, reconciler, link, clock, timedelta(0))
    runs, order = [], ReconcileRequest(mark=LOST)
    while not runs or (runs[-1].after is not None and len(runs) < 5):
        runs.append(await ActivityEnvironment().run(activities.reconcile, order))
        order = following(runs[-1])
    assert [it.live for it in runs] == [200, 400, 450]
    assert [it.mark == LOST for it in runs] == [True, True, False], "it moves with the end alone"
    assert runs[-1].mark is not None
    assert (len(link.asked), set(link.asked.values())) == (MANY, {1})
    assert link.closed_looks == 3, "what follows a pass follows a part of it"


async def test_who_didn_t_answer_in_an_earlier_run_keeps_the_mark_at_the_end(
    place: Place, store: Store, clock: SetClock
):
    reconciler, link = await place(MANY)
    await recorded(store, clock)
    silent = next(iter(await link.running_connections())).rpartition(":")[2]
    link.silent = {silent: 2}
    activities = upkeep(store, reconciler, link, clock, timedelta(0))
    last = await ActivityEnvironment().run(activities.reconcile, ReconcileRequest(mark=LOST))
    assert last.after is not None
    for _ in range(2):
        last = await ActivityEnvironment().run(activities.reconcile, following(last))
    assert last.after is None
    assert (last.unanswered, last.first_unanswered, last.mark) == (1, (silent,), LOST)


async def test_a_store_that_was_restored_in_the_middle_is_compared_from_the_beginning(
    place: Place, store: Store, clock: SetClock
):
    reconciler, link = await place(MANY)
    activities = upkeep(store, reconciler, link, clock, timedelta(0))
    first = await ActivityEnvironment().run(activities.reconcile, ReconcileRequest())
    assert (first.live, link.asked) == (200, {})
    order = following(first).model_copy(update={"mark": LOST})
    again = await ActivityEnvironment().run(activities.reconcile, order)
    assert (again.live, len(link.asked)) == (200, 200)


async def test_the_time_of_a_worker_that_died_counts(place: Place, store: Store, clock: SetClock):
    """The run as a whole has an hour, whoever carries it out."""
    reconciler, link = await place(MANY)
    environment = ActivityEnvironment()
    before = ReconcileResult(spent_s=RUN_LIMIT.total_seconds())
    environment.info = replace(environment.info, heartbeat_details=[before])
    done = await environment.run(upkeep(store, reconciler, link, clock).reconcile, ReconcileRequest())
    assert (done.live, done.after is None, done.spent_s) == (200, False, 0)
    whole = upkeep(store, reconciler, link, clock)
    rest = await ActivityEnvironment().run(whole.reconcile, following(done))
    assert (rest.live, rest.after) == (MANY, None)
