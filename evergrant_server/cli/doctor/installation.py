"""Checks of the installation as a whole: what `dev` runs here, its admin key, the connections' workflows."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from evergrant_server.access.authentication import Authenticator
from evergrant_server.access.credentials import parse_key
from evergrant_server.cli.dev.leftovers import recorded_processes, running_dev
from evergrant_server.cli.dev.settings_file import read, server_file
from evergrant_server.cli.doctor import COMMAND, CheckFailed
from evergrant_server.cli.doctor.keys import open_store, reading
from evergrant_server.cli.doctor.temporal import open_client
from evergrant_server.core.cells.moves import ENDED, STOPS_REFRESHES, WORKING, TenantMove
from evergrant_server.core.clock import SystemClock
from evergrant_server.core.errors import Failure
from evergrant_server.core.ids import ErasureId, Tenant
from evergrant_server.core.messages.names import connection_workflow_id, erasure_workflow_id
from evergrant_server.settings import Settings
from evergrant_server.store import Store, Transaction
from evergrant_server.temporal_link.runs import NewestRun, WorkflowRuns

_PARTS = ("temporal", "api", "worker")
_MOST_NAMED = 5
_BEGUN_BY = timedelta(minutes=10)  # after the order, an erasure has a workflow
_OVERDUE = timedelta(hours=1)  # after the time for which it waits for providers
_MOVED_BY = timedelta(minutes=10)  # a tenant's refreshes are paused for seconds
_SAMPLE = 100  # connections whose workflows are looked up: where Temporal's database is lost, none is there


async def processes(settings: Settings) -> str:
    """`dev` runs with all of its processes, where it is what runs here; none runs without it."""
    folder = settings.data_dir
    processes = recorded_processes(folder)
    if (dev := running_dev(folder)) is not None:
        missing = [name for name in _PARTS if name not in {process.name for process in processes}]
        if missing:
            why = f"of `dev` (process {dev}) {' and '.join(missing)} doesn't stay up"
            raise CheckFailed(why, f"tail {folder / missing[0]}.log")
        if stopped := [process for process in processes if process.is_stopped]:
            named = ", ".join(f"{process.name} (process {process.pid})" for process in stopped)
            pids = " ".join(str(process.pid) for process in stopped)
            raise CheckFailed(
                f"of `dev` (process {dev}) {named} was stopped by a signal", f"kill -CONT {pids}"
            )
        return f"`dev` runs as process {dev}, with {', '.join(_PARTS)}"
    if processes:
        named = ", ".join(f"{process.name} (process {process.pid})" for process in processes)
        pids = " ".join(str(process.pid) for process in processes)
        why = f"left behind by a `dev` that was killed: {named}"
        raise CheckFailed(why, f"{_start(folder)}    # which ends them first; or: kill {pids}")
    if not _is_of_dev(settings):
        return "not run by `dev`"
    raise CheckFailed(f"`dev` isn't running with {folder}", _start(folder))


def _is_of_dev(settings: Settings) -> bool:
    """Whether `dev` was the last to run with this data folder, and no other Temporal is set."""
    try:
        written = read(server_file(settings.data_dir))
    except OSError:
        return False
    return written.get("EVERGRANT_TEMPORAL_ADDRESS") == settings.temporal_address


def _start(folder: Path) -> str:
    usual = folder == Path(".evergrant").absolute()
    return "make dev" if usual else f"EVERGRANT_DATA_DIR={folder} make dev"


async def admin_key(settings: Settings) -> str:
    """The key in the data folder's `admin.key`, which `dev` and `keys bootstrap --out` write, is accepted."""
    path = settings.data_dir / "admin.key"
    try:
        key = path.read_text(encoding="utf-8").strip()
    except OSError:
        return f"no {path}"
    async with open_store(settings) as store:
        try:
            caller = await Authenticator(store, SystemClock()).caller_of(key)
        except Failure as failure:
            raise CheckFailed(
                f"{path} is answered with 401: {await _why_refused(store, key, failure)}",
                f"{COMMAND} keys bootstrap --again --out {path}",
            ) from None
    return f"{path}: of the app {caller.app.name}, until {caller.credential.valid_until:%Y-%m-%d}"


async def _why_refused(store: Store, key: str, failure: Failure) -> str:
    try:
        parsed = parse_key(key)
    except Failure:
        return "it holds no API key"
    async with store.read() as tx:
        stored = await tx.access.key(parsed.id)
    if stored is None:
        return (
            "this database doesn't know the key. It was deleted and made anew, or is another one than the "
            "key's: apps, permits, integrations and connections of before are not in it either"
        )
    if stored[0].revoked_at is not None:
        return "the key was revoked"
    return failure.detail or failure.rule.meaning


async def workflows(settings: Settings) -> str:
    """Live connections have workflows: without, nothing is refreshed and no consent is completed."""
    async with reading(settings) as tx:
        live = await tx.connections.live_in_all_tenants(limit=_SAMPLE)
    runs = WorkflowRuns(await open_client(settings), settings.temporal_task_queue)
    missing = [str(connection.id) for connection in live if not await _has_workflow(runs, connection)]
    if missing:
        why = f"{len(missing)} of {len(live)} live connections have no workflow, {missing[0]} among them"
        lost = ": was Temporal's database lost, or the store restored?" if len(missing) == len(live) else ""
        raise CheckFailed(why + lost, f"{COMMAND} reconcile    # starts them from the store")
    return f"each of {len(live)} live connections has one"


async def erasures(settings: Settings) -> str:
    """Erasures go on, and none is undone: Temporal knows those that ended after a backup was made."""
    now = SystemClock().now()
    runs = WorkflowRuns(await open_client(settings), settings.temporal_task_queue)
    async with reading(settings) as tx:
        unfinished = await tx.erasures.unfinished(now - _BEGUN_BY, _SAMPLE)
        undone = [id async for id in runs.ended_erasures() if await _is_unknown(tx, id)]
    if undone:
        why = f"{len(undone)} erasures have ended that the store doesn't know: it was restored from a backup"
        raise CheckFailed(
            f"{why}. What they had erased is back: {', '.join(undone[:_MOST_NAMED])}",
            "Order each again, by the list that you keep outside the database (docs/security/erasure.md): "
            f"evergrant connections erase, evergrant subjects erase, {COMMAND} tenants erase; "
            f"then: temporal workflow delete --workflow-id {undone[0]}",
        )
    stuck = [
        f"{erasure.id} (tenant {erasure.tenant}, {erasure.state}, of {erasure.created_at:%Y-%m-%d %H:%M} UTC)"
        for erasure in unfinished
        if erasure.waits_until + _OVERDUE < now
        or not _goes_on(await runs.newest_run(erasure_workflow_id(erasure.tenant, erasure.id)))
    ]
    if stuck:
        raise CheckFailed(
            f"{len(stuck)} erasures don't go on: {', '.join(stuck[:_MOST_NAMED])}",
            f"{COMMAND} worker    # whose log says why; a pass of reconcile starts what has no workflow",
        )
    return f"{len(unfinished)} go on, and the store knows each that has ended"


async def _is_unknown(tx: Transaction, workflow: str) -> bool:
    tenant, _, id = workflow.removeprefix("erasure:").rpartition(":")
    return await tx.erasures.get(Tenant(tenant), ErasureId(id)) is None


async def _has_workflow(runs: WorkflowRuns, connection: Any) -> bool:
    return _goes_on(await runs.newest_run(connection_workflow_id(connection.tenant, connection.id)))


def _goes_on(newest: NewestRun | None) -> bool:
    return newest is not None and newest.running and not (newest.is_foreign or newest.is_stuck)


async def moves(settings: Settings) -> str:
    """Tenants' moves between cells go on: while the source is paused, the tenant's tokens grow old."""
    now = SystemClock().now()
    async with reading(settings) as tx:
        under_way = [move for move in await tx.tenant_moves.page() if move.state not in ENDED]
    stuck = [move for move in under_way if _stands_still(move, now)]
    if stuck:
        named = [
            f"{move.tenant} ({move.state}; the other cell is {move.peer}) {move.problem}".rstrip()
            for move in stuck[:_MOST_NAMED]
        ]
        raise CheckFailed(
            f"{len(stuck)} moves of tenants don't go on: {', '.join(named)}",
            f"{COMMAND} tenants moves    # in both cells, and the log of the workers there; "
            f"{COMMAND} tenants undo {stuck[0].tenant}, in the cell that receives it, ends a move",
        )
    states = ", ".join(f"{move.tenant} is {move.state}" for move in under_way[:_MOST_NAMED])
    return states or "no tenant moves"


def _stands_still(move: TenantMove, now: datetime) -> bool:
    if move.state in STOPS_REFRESHES:
        return move.paused_at is not None and move.paused_at < now - _MOVED_BY
    return move.state in WORKING and bool(move.problem)
