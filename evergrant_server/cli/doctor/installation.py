"""Checks of the installation as a whole: what `dev` runs here, its admin key, the connections' workflows."""

from pathlib import Path
from typing import Any

from evergrant_server.access.authentication import Authenticator
from evergrant_server.access.credentials import parse_key
from evergrant_server.cli.dev.leftovers import recorded_processes, running_dev
from evergrant_server.cli.dev.settings_file import read, server_file
from evergrant_server.cli.doctor import COMMAND, CheckFailed
from evergrant_server.cli.doctor.keys import open_store, reading
from evergrant_server.cli.doctor.temporal import open_client
from evergrant_server.core.clock import SystemClock
from evergrant_server.core.errors import Failure
from evergrant_server.core.messages.names import connection_workflow_id
from evergrant_server.settings import Settings
from evergrant_server.store import Store
from evergrant_server.temporal_link.runs import WorkflowRuns

_PARTS = ("temporal", "api", "worker")
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


async def _has_workflow(runs: WorkflowRuns, connection: Any) -> bool:
    newest = await runs.newest_run(connection_workflow_id(connection.tenant, connection.id))
    return newest is not None and newest.running and not (newest.is_foreign or newest.is_stuck)
