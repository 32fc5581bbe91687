"""The short form of `make faults`, and the proof that it can fail: broken builds, in `make soak`."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from zlib import crc32

import pytest
import pytest_asyncio

from evergrant_server.core.clock import SystemClock
from evergrant_server.core.connections.connection import Connection, LifecycleState
from evergrant_server.core.integrations import Rotation
from tests.e2e.servers.test_authorization_server import REDIRECT, Client
from tests.fakes.providers.authorization_server import running_authorization_server
from tests.fakes.providers.scripted_provider import Answer, drip, drop_after_commit, error
from tests.fakes.rows import a_connection, an_integration
from tests.faults.harness.database import TENANT, FinalState, HarnessDatabase
from tests.faults.harness.instrumentation.passages import AFTER, BEFORE, Fault
from tests.faults.harness.instrumentation.points import ROOT, Point, existing, kind_of, labelled
from tests.faults.harness.provider import StrictProvider
from tests.faults.harness.random_run.aftermath import Aftermath, judge_real
from tests.faults.harness.random_run.plan import KINDS, SLOW, plan, told
from tests.faults.harness.random_run.real_server import RealServer
from tests.faults.harness.random_run.run import run
from tests.faults.harness.table.case_run import Case, Layout
from tests.faults.harness.table.cases import WRITING, Table
from tests.faults.harness.table.judge import BAD, Verdict
from tests.faults.harness.table.scenarios import JOURNALLED, SCENARIOS
from tests.faults.harness.table.table_run import Choose, TableResult, walk_table
from tests.faults.harness.workers.limits import BEAT_S

REFRESH = SCENARIOS[:1]
CASES, SEED = 5, 1


async def test_the_table_has_every_await_of_the_path_and_a_sample_of_it_loses_nothing(tmp_path: Path):
    """This build passes the cases that broken builds fail, and replies lost in the window are named so."""
    walked = await walk_table(tmp_path, _sample_and_given, short=True)
    assert walked.table.never == []
    assert [str(it) for it in walked.bad] == []
    assert not walked.failed
    assert 0 < walked.table.share(walked.reached) < 100  # a sample says what it walked itself
    assert walked.verdicts[Verdict.KEPT] > CASES / 3
    windows = {str(it.told.case): it for it in walked.judged if it.told.case in _LOST_IN_THE_WINDOW}
    assert len(windows) == len(_LOST_IN_THE_WINDOW)
    # on a busy machine the first beat can come before the code is sent, which is named, too, or after the
    # reply was kept
    honest = {Verdict.UNKNOWN, Verdict.ASKED_AGAIN}
    told = {
        name: (it.verdict, it.story)
        for name, it in windows.items()
        if it.verdict not in honest | ({Verdict.KEPT} if "beat#" in name else set())
    }
    assert told == {}
    assert any(it.verdict in honest for it in windows.values())


def _killed_with_an_answer_in_the_journal(table: Table) -> Sequence[Case]:
    killed = Fault(point=JOURNALLED, side=AFTER, kind="die")
    return [it for it in table.cases if it == Case(SCENARIOS[0], killed, Layout.ONE, Rotation.STRICT)]


def _revoked_while_the_answer_is_committed(table: Table) -> Sequence[Case]:
    commits = ("RefreshSpend.install#", "RefreshSpend._replace_grant#")
    return [
        it
        for it in table.cases
        if it.revoked
        and (it.layout, it.rotation) == (Layout.TWO, Rotation.STRICT)
        and any(name in str(it.fault) for name in commits)
    ]


def _stopped_while_the_answer_is_on_its_way(table: Table) -> Sequence[Case]:
    """Once its bytes are written. It is answered late, but before a takeover is allowed, and the other worker
    is there is asked meanwhile."""
    slow = replace(SCENARIOS[0], answers=lambda _: (Answer(wait=5 * BEAT_S, wait_first=False),))
    listens = Fault(point=WRITING, kind="stop", passage=7)  # of the transport's events
    return [Case(slow, listens, layout, Rotation.STRICT) for layout in (Layout.TWO, Layout.HOSTS)]


def _lost_in_the_window() -> list[Case]:
    """The provider acted, and no journal had its answer when the worker died."""
    trial = next(it for it in SCENARIOS if it.name == "refresh, definition on trial fails")
    room = next(it for it in SCENARIOS if it.name == "refresh, a dead worker's room")
    found = [
        # When a worker beats is a matter of time: a slow exchange is under way at its first beat.
        (
            replace(SCENARIOS[1], answers=lambda _: (drip(3 * BEAT_S),)),
            Fault(point="activities.support.temporal:heartbeating.beat#1", side=AFTER, kind="die"),
        ),
        # A busy machine lets a short limit pass: what was kept is the no to the version on trial.
        (
            replace(trial, answers=lambda _: (error("invalid_grant"), drop_after_commit())),
            Fault(point=labelled("a try is counted"), kind="die"),
        ),
        # The same worker sends again, and dies with the no to that in its journal.
        (
            replace(SCENARIOS[0], answers=lambda _: (drop_after_commit(),)),
            Fault(point=labelled("the reply is concluded"), kind="die"),
        ),
        # A worker before this one left a room, and no answer.
        (
            replace(room, answers=lambda _: (drop_after_commit(),)),
            Fault(
                point="activities.single_use.journal_replay:JournalReplayer._close_unsent#6",
                side=AFTER,
                kind="cut",
                answered_by="task",
            ),
        ),
    ]
    return [Case(scenario, fault, Layout.ONE, Rotation.STRICT) for scenario, fault in found]


_LOST_IN_THE_WINDOW = _lost_in_the_window()


def _sample_and_given(table: Table) -> Sequence[Case]:
    given = (
        _killed_with_an_answer_in_the_journal,
        _revoked_while_the_answer_is_committed,
        _stopped_while_the_answer_is_on_its_way,
    )
    sample = table.sample(CASES, SEED)
    return [*sample, *(case for choose in given for case in choose(table)), *_LOST_IN_THE_WINDOW]


async def _broken(folder: Path, choose: Choose, build: str) -> TableResult:
    walked = await walk_table(folder, choose, broken=(build,), scenarios=REFRESH)
    assert walked.cases > 0
    return walked


@pytest.mark.soak
async def test_a_build_without_a_journal_loses_connections(tmp_path: Path):
    broken = await _broken(tmp_path, _killed_with_an_answer_in_the_journal, "no-journal")
    assert broken.verdicts[Verdict.LOST] == broken.cases


@pytest.mark.soak
async def test_a_build_without_compare_and_set_undoes_a_revocation(tmp_path: Path):
    broken = await _broken(tmp_path, _revoked_while_the_answer_is_committed, "no-compare-and-set")
    assert any("revoking became active" in str(it) for it in broken.bad)


@pytest.mark.soak
async def test_a_build_that_takes_over_at_once_is_seen_on_one_host_and_on_two(tmp_path: Path):
    broken = await _broken(tmp_path, _stopped_while_the_answer_is_on_its_way, "no-waiting")
    if len(broken.bad) < broken.cases:  # on a busy machine the answer may arrive before the takeover
        broken = await _broken(tmp_path, _stopped_while_the_answer_is_on_its_way, "no-waiting")
    on_one, on_two = sorted(broken.judged, key=lambda it: it.told.case.layout is Layout.HOSTS)
    assert on_one.verdict in BAD
    assert "1 uses of one credential in flight together on one host" in on_one.why
    assert on_two.verdict in BAD
    assert any("host-b took over from host-a" in why for why in on_two.why)


def _writes_a_refresh(point: Point) -> bool:
    return "RefreshSpend._replace_grant" in point.name and point.source.startswith("tx.grants.install(")


@pytest.mark.soak
async def test_the_command_exits_with_1_for_a_broken_build(tmp_path: Path):
    """A piece of the table so small that it is hardly more than a case that this build fails."""
    (writes,) = [it.name for it in existing() if _writes_a_refresh(it)]
    stopped = Fault(point=writes, side=BEFORE, kind="stop")
    undone = Case(SCENARIOS[0], stopped, Layout.TWO, Rotation.STRICT, revoked=True)
    of = 4000
    number = crc32(str(undone).encode()) % of + 1
    command = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.faults.harness",
        "--broken", "no-compare-and-set", "--shard", f"{number}/{of}", "--seconds", "0", "--short",
        "--scenario", SCENARIOS[0].name,
        cwd=ROOT, env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'clients/python/src'}"},
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    said = (await command.communicate())[0].decode()
    assert f"VIOLATION: {undone}: " in said
    assert "revoking became active" in said
    assert command.returncode == 1


@pytest.mark.soak
async def test_a_random_run_loses_nothing_and_gives_every_reader_a_typed_answer(tmp_path: Path):
    ran = await run(tmp_path, 12, SEED, readers=20, connections=24, without=SLOW)
    assert ran.violations == []
    assert ran.aftermath.lost == []
    assert ran.not_injected == []
    assert ran.missing == []
    assert ran.seen.leases > 0
    assert ran.aftermath.changes > 0
    assert ran.aftermath.refreshes > 0
    assert ran.aftermath.real_states[LifecycleState.ACTIVE] > 0


async def test_a_connection_whose_family_the_real_server_has_killed_counts_as_lost(tmp_path: Path):
    """A build that sends a spent token again would leave it so: active in the store, dead at the server."""
    async with running_authorization_server(tmp_path, "--grace", "0") as server:
        await server.register(REDIRECT)
        client = Client(server)
        first = await client.refresh_token()
        use = {"grant_type": "refresh_token", "refresh_token": first}
        newest = (await client.token_request(**use)).json()["refresh_token"]
        assert (await client.token_request(**use)).status_code == 400
        real, after = RealServer(server), Aftermath()
        await judge_real(real, [FinalState(_active(), None, newest, None, ())], after)
        await client.http.aclose()
    assert [it.partition(": ")[2] for it in after.lost] == [
        "the store calls it active, the provider has killed it"
    ]
    assert after.violations == ["1 active connections, the real server has 0 grants"]


def _active() -> Connection:
    now = SystemClock().now()
    return a_connection(an_integration(TENANT, now), now).granted(now)


@pytest_asyncio.fixture
async def ground(tmp_path: Path) -> AsyncIterator[HarnessDatabase]:
    opened = await HarnessDatabase.open(tmp_path)
    yield opened
    await opened.close()


async def _granted(ground: HarnessDatabase) -> Connection:
    async with StrictProvider(Rotation.STRICT, 60) as idp, ground.store.write() as tx:
        integration = await ground.integration(tx, idp, Rotation.STRICT, "generic", "right")
        connection = await ground.connection(tx, integration)
        return await ground.granted(tx, connection, idp, refreshable=True)


async def test_a_change_of_state_without_its_record_is_seen(ground: HarnessDatabase):
    connection = await _granted(ground)
    told = "pending_consent at 0 became active at 1 without a record in its transaction"
    assert await ground.changes_without_a_record() == [f"{connection.id}: {told}"]
    await ground.forget_changes()
    assert await ground.changes_without_a_record() == []


async def test_a_grant_of_another_generation_than_its_connection_is_a_violation(ground: HarnessDatabase):
    """A build without compare-and-set can leave such rows, and the harness still comes to its end."""
    connection = await _granted(ground)
    await ground.rows("UPDATE connection SET generation = 2, revision = revision + 1")
    end = await ground.end(connection.id, None)
    assert end.refresh_token is None
    (wrong,) = end.wrongs
    assert "another generation than its connection" in wrong


def test_the_pieces_of_the_table_are_the_whole_of_it():
    table = Table([])
    fault = Fault(point="", kind="die")
    table.cases = [
        Case(SCENARIOS[0], fault.model_copy(update={"passage": it}), Layout.ONE, Rotation.STRICT)
        for it in range(40)
    ]
    pieces = [table.shard(number, 4) for number in (1, 2, 3, 4)]
    assert sorted(map(str, chain(*pieces))) == sorted(map(str, table.cases))
    assert all(pieces)


def test_an_arguments_name_doesnt_say_who_answers():
    assert kind_of("activities.grants.spend", "single_use.open(kind, read=keys)") == "task"
    assert kind_of("activities.grants.spend", "tx.read(keys)") == "store"


def test_a_seed_draws_the_same_plan_with_every_kind_of_fault():
    assert plan(SEED, 120) == plan(SEED, 120)
    assert plan(SEED, 120) != plan(SEED + 1, 120)
    assert set(told(plan(SEED, 25))) == set(KINDS)
