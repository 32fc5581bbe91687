"""Runs the API in granian, the fastest server for the lease path."""

import asyncio
import gc
import os
import resource
from typing import Any

from granian import Granian
from granian.constants import Interfaces
from granian.log import LogLevels

from evergrant_server.cli.machine import require_free_port
from evergrant_server.cli.mtls_listener import mtls_listener
from evergrant_server.cli.process import settings_environment
from evergrant_server.crypto.keyring import Role
from evergrant_server.settings import Settings
from evergrant_server.store.store import require_matching_key_ring
from evergrant_server.wiring.platform import open_store
from providers.definition.registry import Registry

_MOST_CONNECTIONS = 16_384  # of one worker
_OTHER_FILES = 256  # that a worker has open besides


def serve_api(settings: Settings) -> None:
    """Serve until a signal ends the process. Checks port, keys and store before.

    Raises Failure for keys and store, BadSettings for a port that is taken.
    """
    require_free_port("EVERGRANT_PORT", settings.host, settings.port)
    _prepare(settings)
    granian_server(
        "evergrant_server.asgi:application", settings.api_workers, address=settings.host, port=settings.port
    ).serve()


def serve_behind_mtls(settings: Settings) -> None:
    """As `serve_api`, on the hop that only the proxy reaches, which hands on certificates of apps."""
    listener = mtls_listener(settings)
    if settings.mtls_port is not None:
        require_free_port("EVERGRANT_MTLS_PORT", settings.mtls_host, settings.mtls_port)
    _prepare(settings)
    granian_server("evergrant_server.asgi:mtls_application", settings.api_workers, **listener).serve()


def _prepare(settings: Settings) -> None:
    asyncio.run(check_keys_and_store(settings, Role.API))
    os.environ.update(settings_environment(settings))  # granian's processes read the settings from it
    gc.disable()  # until they have imported the application: `tune_garbage_collector`


def granian_server(target: str, workers: int, **listener: Any) -> Any:
    """granian as it runs the API; the benchmarks compare with an application in the same server."""
    return Granian(
        target,
        **listener,
        interface=Interfaces.ASGI,
        workers=workers,
        backpressure=_most_connections(),
        log_level=LogLevels.warning,
        log_access=False,
        websockets=False,
    )


def _most_connections() -> int:
    """How many connections each worker accepts. Raises the limit of open files as far as this user may.

    granian's own limit is 1,024 for all workers together: one client that keeps so many open, idle or not,
    would keep all others away.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = _MOST_CONNECTIONS + _OTHER_FILES
    if resource.RLIM_INFINITY not in (soft, hard):
        files = min(files, hard)
    if resource.RLIM_INFINITY != soft < files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    return max(files - _OTHER_FILES, _OTHER_FILES)


async def check_keys_and_store(settings: Settings, role: Role) -> None:
    """Raise the Failure with which a process of this role couldn't start."""
    Registry.load()
    async with open_store(settings, role) as (store, _):
        await require_matching_key_ring(store, store.ring)
