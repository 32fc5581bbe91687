"""The recurring pass continues where a run stopped, and moves its mark only when all is compared."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from sqlalchemy import func, select, update
from temporalio.testing import ActivityEnvironment

from activities.histories import HistoryActivities
from activities.pruning import Periods, Pruning
from activities.reconcile import RUN_LIMIT, ReconcileActivities
from evergrant_server import audit
from evergrant_server.audit.checkpoints.heads import HeadsLog
from evergrant_server.core.audit import INSTALLATION, AuditAction, AuditEntry
from evergrant_server.core.ids import AppId, ConnectionId, Tenant
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.maintenance import AuditCheckpoint, ReconcileRequest, ReconcileResult
from evergrant_server.core.messages.names import connection_workflow_id
from evergrant_server.core.single_use.attempt import AttemptOutcome
from evergrant_server.store import Store
from evergrant_server.store.connections.attempts import Attempts
from evergrant_server.store.connections.tables import AttemptRow, ConnectionRow
from evergrant_server.store.database.rows import RowPlace
from evergrant_server.temporal_link.reconcile import Reconciler
from tests.conformance.store.samples import an_attempt
from tests.fakes.clock import SetClock
from tests.unit.temporal_link.conftest import Prepare, ScriptedLink, connection_ids

ACME, APP = Tenant("acme"), AppId("app_1")
LOST = AuditCheckpoint(tenant=ACME, seq=7, hash="of a record that the backup doesn't have")
SEVERAL_BATCHES = 450
STOP_AFTER_A_BATCH = timedelta(0)

MakeActivities = Callable[..., ReconcileActivities]


@pytest.fixture
def activities_of(store: Store, clock: SetClock) -> MakeActivities:
    def make(
        reconciler: Reconciler, link: ScriptedLink, run_limit: timedelta = RUN_LIMIT
    ) -> ReconcileActivities:
        closed_runs = HistoryActivities(store, link, clock)
        pruning = Pruning(store, clock, Periods())
        return ReconcileActivities(store, reconciler, closed_runs, clock, pruning, run_limit)

    return make


async def run(
    activities: ReconcileActivities, request: ReconcileRequest, environment: ActivityEnvironment | None = None
) -> ReconcileResult:
    return await (environment or ActivityEnvironment()).run(activities.reconcile, request)


async def append_record(store: Store, clock: SetClock) -> None:
    entry = AuditEntry(
        tenant=ACME,
        at=clock.now(),
        action=AuditAction.HISTORY_EXPORTED,
        object="con",
        context=RequestContext(by="schedule"),
    )
    async with store.write() as tx:
        await audit.append(tx, entry)


async def test_a_pass_of_several_runs_checks_each_connection_once(
    prepare: Prepare, activities_of: MakeActivities, store: Store, clock: SetClock
):
    reconciler, link = await prepare(SEVERAL_BATCHES)
    await append_record(store, clock)
    activities = activities_of(reconciler, link, STOP_AFTER_A_BATCH)
    runs = [await run(activities, ReconcileRequest(audit_checkpoint=LOST))]
    while runs[-1].after is not None and len(runs) < 5:
        runs.append(await run(activities, ReconcileRequest().following(runs[-1])))
    assert [result.live for result in runs] == [200, 400, 450]
    assert [result.audit_checkpoint == LOST for result in runs] == [True, True, False], "it moves at the end"
    assert runs[-1].audit_checkpoint is not None
    assert (len(link.queries), set(link.queries.values())) == (SEVERAL_BATCHES, {1})
    assert link.closed_run_queries == 3, "every run exports histories"


async def test_the_mark_stays_when_a_workflow_did_not_answer_in_an_earlier_run(
    prepare: Prepare, activities_of: MakeActivities, store: Store, clock: SetClock
):
    reconciler, link = await prepare(SEVERAL_BATCHES)
    await append_record(store, clock)
    silent = connection_ids(0)
    link.silent = {silent[0]: 2}
    activities = activities_of(reconciler, link, STOP_AFTER_A_BATCH)
    last = await run(activities, ReconcileRequest(audit_checkpoint=LOST))
    assert last.after is not None
    for _ in range(2):
        last = await run(activities, ReconcileRequest().following(last))
    assert last.after is None
    assert (last.unanswered, last.first_unanswered, last.audit_checkpoint) == (1, silent, LOST)


async def test_a_store_that_is_restored_during_a_pass_is_compared_from_the_beginning(
    prepare: Prepare, activities_of: MakeActivities
):
    reconciler, link = await prepare(SEVERAL_BATCHES)
    link.open_runs -= 1
    activities = activities_of(reconciler, link, STOP_AFTER_A_BATCH)
    first = await run(activities, ReconcileRequest())
    assert (first.live, link.queries.total()) == (200, 0)
    again = await run(
        activities, ReconcileRequest().following(first).model_copy(update={"audit_checkpoint": LOST})
    )
    assert (again.live, len(link.queries)) == (200, 200)


async def test_the_time_of_an_attempt_that_crashed_counts_for_the_run(
    prepare: Prepare, activities_of: MakeActivities
):
    reconciler, link = await prepare(SEVERAL_BATCHES)
    link.open_runs -= 1
    environment = ActivityEnvironment()
    before = ReconcileResult(spent_s=RUN_LIMIT.total_seconds())
    environment.info = replace(environment.info, heartbeat_details=[before])
    stopped = await run(activities_of(reconciler, link), ReconcileRequest(), environment)
    assert (stopped.live, stopped.after is None, stopped.spent_s) == (200, False, 0)
    rest = await run(activities_of(reconciler, link), ReconcileRequest().following(stopped))
    assert (rest.live, rest.after) == (SEVERAL_BATCHES, None)


async def test_while_the_counts_agree_each_pass_looks_at_a_share_and_all_have_their_turn(
    prepare: Prepare, activities_of: MakeActivities
):
    reconciler, link = await prepare(SEVERAL_BATCHES)
    passes = [await run(activities_of(reconciler, link), ReconcileRequest())]
    while passes[-1].walked_to is not None and len(passes) < 5:
        following = ReconcileRequest().following(passes[-1])
        passes.append(await run(activities_of(reconciler, link), following))
    assert [(result.live, result.after) for result in passes] == [(200, None), (200, None), (50, None)]
    (first, second, third) = (result.walked_to for result in passes)
    assert (first, second, third) == (*connection_ids(199), *connection_ids(399), None)


@pytest.mark.parametrize("which", ["a run is missing", "one that revokes is missing"])
async def test_a_pass_looks_at_all_when_the_counts_differ(
    prepare: Prepare, activities_of: MakeActivities, store: Store, clock: SetClock, which: str
):
    reconciler, link = await prepare(SEVERAL_BATCHES)
    if which == "a run is missing":
        link.open_runs -= 1
    else:
        async with store.write() as tx:
            (connection, *_) = await tx.connections.page(ACME)
            revoking = connection.revocation_requested("left", clock.now())
            await tx.connections.replace(revoking, expected=connection.revision)
    result = await run(activities_of(reconciler, link), ReconcileRequest(walked_to=connection_ids(300)[0]))
    assert (result.live, result.after, result.walked_to) == (SEVERAL_BATCHES, None, None)


async def test_a_connection_whose_run_fails_again_and_again_gets_another_at_the_next_pass(
    prepare: Prepare, activities_of: MakeActivities
):
    """Whichever share the pass looks at."""
    reconciler, link = await prepare(SEVERAL_BATCHES)
    link.failing, link.newest = (connection_workflow_id(ACME, ConnectionId(*connection_ids(7))),), None
    await run(activities_of(reconciler, link), ReconcileRequest(walked_to=connection_ids(300)[0]))
    assert [start.connection_id for start in link.started] == [*connection_ids(7)]


async def test_the_mark_moves_once_every_workflow_has_answered(
    prepare: Prepare, activities_of: MakeActivities, caplog: pytest.LogCaptureFixture
):
    reconciler, link = await prepare(3)
    silent = connection_ids(1)
    link.silent = {silent[0]: 2}
    activities = activities_of(reconciler, link)
    first = await run(activities, ReconcileRequest(audit_checkpoint=LOST))
    assert (first.unanswered, first.first_unanswered, first.compared, first.audit_checkpoint) == (
        1,
        silent,
        True,
        LOST,
    )
    assert f"not compared: 1 didn't answer, the first {silent[0]}" in caplog.text
    second = await run(activities, ReconcileRequest(audit_checkpoint=first.audit_checkpoint))
    assert (second.unanswered, second.audit_checkpoint) == (0, None), "the audit log has no record yet"


async def test_temporal_keeps_the_signed_checkpoint_and_the_log_has_to_extend_it(
    prepare: Prepare, activities_of: MakeActivities, store: Store, clock: SetClock
):
    """A log that was written anew has every record of the mark, and another story before."""
    reconciler, link = await prepare(3)
    heads = HeadsLog(store, clock, "evergrant.example/audit")
    await append_record(store, clock)
    await heads.advance()
    activities = activities_of(reconciler, link)
    first = await run(activities, ReconcileRequest())
    mark = first.audit_checkpoint
    assert mark is not None
    assert mark.note is not None
    assert mark.note.startswith("evergrant.example/audit\n")
    await append_record(store, clock)
    await heads.advance()
    second = await run(activities, ReconcileRequest().following(first))
    assert second.audit_checkpoint is not None
    assert second.audit_checkpoint.note not in (None, mark.note)
    assert link.queries == {}, "nothing was put back"
    lines = mark.note.split("\n")
    forged = mark.__replace__(note="\n".join([*lines[:2], "A" * 43 + "=", *lines[3:]]))
    for note in (forged, mark.__replace__(note="nonsense"), mark.__replace__(note="log\n99999999\nx\n")):
        link.queries.clear()
        third = await run(activities, ReconcileRequest(audit_checkpoint=note))
        assert (third.live, len(link.queries)) == (3, 3), "every workflow is compared"
    async with store.read() as tx:
        records = await audit.page(tx, INSTALLATION, limit=100)
    refused = [record.object for record in records if record.action is AuditAction.ANCHOR_REFUSED]
    assert refused == ["temporal"], "once a day"


@pytest.mark.parametrize(
    "earlier", [{"unanswered": 1, "first_unanswered": connection_ids(0)}, {"compared": False}]
)
async def test_another_attempt_keeps_what_the_heartbeat_says_is_unanswered(
    prepare: Prepare, activities_of: MakeActivities, earlier: dict
):
    reconciler, link = await prepare(3)
    environment = ActivityEnvironment()
    before = ReconcileResult(live=1, comparing=True, after=connection_ids(0)[0], **earlier)
    environment.info = replace(environment.info, heartbeat_details=[before])
    result = await run(
        activities_of(reconciler, link), ReconcileRequest(audit_checkpoint=LOST, compare=True), environment
    )
    assert result.model_dump(include=set(earlier)) == earlier
    assert (result.live, result.audit_checkpoint) == (3, LOST)


async def test_a_response_that_showed_a_key_is_deleted_after_a_day(
    prepare: Prepare, activities_of: MakeActivities, store: Store, clock: SetClock
):
    activities = activities_of(*await prepare(0))
    async with store.write() as tx:
        await tx.idempotency.store(ACME, APP, "k", "hash", 201, '{"key": "evg_shown_once"}', clock.now())

    async def exists_after(passed: timedelta) -> bool:
        clock.advance(passed.total_seconds())
        await run(activities, ReconcileRequest())
        async with store.read() as tx:
            return await tx.idempotency.find(ACME, APP, "k") is not None

    assert await exists_after(timedelta(hours=23))
    assert not await exists_after(timedelta(hours=2))


async def test_a_pass_looks_once_at_attempts_that_stay_and_deletes_those_that_grants_have_followed(
    prepare: Prepare, store: Store, clock: SetClock, monkeypatch: pytest.MonkeyPatch
):
    """The last attempt of each connection stays: a pass that read them all would cost more with each."""
    await prepare(600)
    async with store.write() as tx:
        page = await tx.connections.live_in_all_tenants(limit=1000)
        for number, connection in enumerate(page):
            opened = clock.now() + timedelta(microseconds=number)
            attempt = an_attempt(connection, opened_at=opened, send_by=opened)
            await tx.attempts.open(attempt)
            await tx.attempts.close(attempt, AttemptOutcome.REFUSED, opened)
    steps, prune = list[RowPlace](), Attempts.prune

    async def counted(attempts: Attempts, before: datetime, seen: RowPlace, now: datetime) -> RowPlace | None:
        steps.append(seen)
        return await prune(attempts, before, seen, now)

    monkeypatch.setattr(Attempts, "prune", counted)
    clock.advance(timedelta(days=91).total_seconds())
    pruning = Pruning(store, clock, Periods())
    await pruning.run()
    assert len(steps) == 3, "500, 100 and none"
    await pruning.run()
    assert len(steps) == 4
    assert steps[3] == steps[2]
    assert await attempts_left(store) == 600
    async with store.write() as tx:
        await tx.connection.execute(update(ConnectionRow).values(generation=7))
    await pruning.run()
    assert await attempts_left(store) == 600
    clock.advance(timedelta(days=1).total_seconds())
    await pruning.run()
    assert await attempts_left(store) == 0, "once a day all are looked at anew"


async def attempts_left(store: Store) -> int:
    async with store.read() as tx:
        return (await tx.connection.execute(select(func.count()).select_from(AttemptRow))).scalar_one()
