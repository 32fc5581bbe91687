"""Workflows that don't say what they know: asked again, then named, and the schedule asks the next time."""

from dataclasses import replace
from datetime import timedelta

import pytest
from temporalio.testing import ActivityEnvironment

from activities.maintenance.reconcile import ReconcileActivities
from evergrant_server.core.clock import SetClock
from evergrant_server.core.ids import Tenant
from evergrant_server.core.messages.maintenance import AuditCheckpoint, ReconcileRequest, ReconcileResult
from evergrant_server.store import Store
from evergrant_server.temporal_link import ClosedRunExporter, Reconciler
from tests.fakes.scripted_link import ScriptedLink
from tests.unit.temporal_link.conftest import Place

FOR_EVER = 1_000
LOST = AuditCheckpoint(tenant=Tenant("acme"), seq=7, hash="of a record that the backup doesn't have")


def ids(*numbers: int) -> tuple[str, ...]:
    return tuple(f"con_{number:026}" for number in numbers)


async def test_who_answers_late_is_asked_again_and_who_never_does_is_named(place: Place):
    reconciler, link = await place(6)
    link.silent = {ids(2)[0]: 1, ids(4)[0]: FOR_EVER}
    done = await reconciler.reconcile_all()
    assert (done.live, done.unanswered, done.workers_answered) == (6, ids(4), True)
    assert [link.asked[it] for it in ids(*range(6))] == [1, 1, 2, 1, 2, 1]


async def test_a_worker_that_was_slow_for_all_at_once_is_not_taken_for_none(place: Place):
    reconciler, link = await place(230)
    link.silent = dict.fromkeys(ids(*range(32)), 1)
    done = await reconciler.reconcile_all()
    assert (done.live, done.workers_answered) == (230, True)
    assert len(link.asked) == 230
    assert done.unanswered == ()


async def test_without_a_worker_nobody_is_asked_for_long(place: Place):
    reconciler, link = await place(450)
    link.silent = dict.fromkeys(ids(*range(450)), FOR_EVER)
    done = await reconciler.reconcile_all()
    assert (done.live, done.workers_answered) == (450, False)
    assert done.unanswered == ids(*range(200)), "the rest wasn't asked"
    assert sum(link.asked.values()) < 100


async def test_who_is_not_to_be_compared_is_not_missed(place: Place):
    reconciler, link = await place(3)
    link.silent = dict.fromkeys(ids(*range(3)), FOR_EVER)
    done = await reconciler.reconcile_all(compare=False)
    assert (done.unanswered, done.workers_answered, link.asked) == ((), True, {})


def upkeep(store: Store, reconciler: Reconciler, link: ScriptedLink, clock: SetClock) -> ReconcileActivities:
    return ReconcileActivities(
        store, reconciler, ClosedRunExporter(store, link, clock), clock, timedelta(days=30)
    )


async def test_the_mark_stays_until_everybody_has_answered(
    place: Place, store: Store, clock: SetClock, caplog: pytest.LogCaptureFixture
):
    reconciler, link = await place(3)
    link.silent = {ids(1)[0]: 2}
    activities = upkeep(store, reconciler, link, clock)
    first = await ActivityEnvironment().run(activities.reconcile, ReconcileRequest(mark=LOST))
    assert (first.unanswered, first.first_unanswered, first.compared) == (1, ids(1), True)
    assert first.mark == LOST
    assert f"not compared: 1 didn't answer, the first {ids(1)[0]}" in caplog.text
    second = await ActivityEnvironment().run(activities.reconcile, ReconcileRequest(mark=first.mark))
    assert (second.unanswered, second.mark) == (0, None), "nothing was recorded yet"


@pytest.mark.parametrize("silence", [{"unanswered": 1, "first_unanswered": ids(0)}, {"compared": False}])
async def test_a_worker_that_goes_on_knows_who_didn_t_answer_the_one_before(
    place: Place, store: Store, clock: SetClock, silence: dict
):
    reconciler, link = await place(3)
    environment = ActivityEnvironment()
    before = ReconcileResult(live=1, comparing=True, after=ids(0)[0], **silence)
    environment.info = replace(environment.info, heartbeat_details=[before])
    told: list[ReconcileResult] = []
    environment.on_heartbeat = lambda *details: told.extend(details)
    order = ReconcileRequest(mark=LOST, compare=True)
    done = await environment.run(upkeep(store, reconciler, link, clock).reconcile, order)
    assert done.model_dump(include=set(silence)) == silence
    assert (done.live, done.mark) == (3, LOST)


def test_what_an_older_worker_said_of_its_pass_can_still_be_read():
    said = {"live": 3, "started": 1, "behind": 0, "after": None}
    assert ReconcileResult.model_validate(said).compared
