"""Runs the API in granian, the fastest server for the lease path."""

import asyncio
import os
import resource
import socket
from typing import Any

from granian import Granian
from granian.constants import Interfaces
from granian.log import LogLevels

from evergrant_server.cli.mtls_listener import mtls_listener
from evergrant_server.core.clock import SystemClock
from evergrant_server.crypto.keyring import KeyRing, Role
from evergrant_server.setting_types import without_password
from evergrant_server.settings import BadSettings, Settings, load_settings
from evergrant_server.store import Store
from evergrant_server.store.store import require_matching_key_ring
from providers.definition.registry import Registry

_MOST_CONNECTIONS = 16_384  # of one worker
_OTHER_FILES = 256  # that a worker has open besides
_PASSED_TO_CHILDREN = (
    "data_dir",
    "database_url",
    "key_file",
    "host",
    "port",
    "public_url",
    "api_workers",
    "temporal_address",
    "temporal_namespace",
    "temporal_task_queue",
    "allow_unbound_consent",
    "log_level",
    "log_format",
)


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
    asyncio.run(_check_keys_and_store(settings))
    os.environ.update(settings_environment(settings))  # granian's processes read the settings from it


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


def settings_environment(settings: Settings) -> dict[str, str]:
    """The variables that give a child process these settings, without a secret that it reads from a file.

    Each further child inherits them, and every process of the same user can read them.
    """
    values = {f"EVERGRANT_{name.upper()}": str(getattr(settings, name)) for name in _PASSED_TO_CHILDREN}
    values["EVERGRANT_EGRESS_ALLOW"] = ",".join(settings.egress_allow)
    if settings.database_password_file is not None and not settings.uses_sqlite:
        values["EVERGRANT_DATABASE_URL"] = without_password(settings.database_url)
        values["EVERGRANT_DATABASE_PASSWORD_FILE"] = str(settings.database_password_file.absolute())
    elif _is_read_without_flags(settings.database_url):
        del values["EVERGRANT_DATABASE_URL"]
    return values


def _is_read_without_flags(database_url: str) -> bool:
    """Whether a child that starts in this folder reads this URL by itself, perhaps from the settings file."""
    try:
        return load_settings().database_url == database_url
    except BadSettings:  # a flag replaces the setting that is wrong
        return False


def require_free_port(setting: str, host: str, port: int) -> None:
    """Raise BadSettings when another process listens on the port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise BadSettings(
                f"{setting}: {host}:{port} can't be used ({error.strerror}); "
                "stop the process that listens there, or choose another port"
            ) from None


async def _check_keys_and_store(settings: Settings) -> None:
    ring = KeyRing.open(settings.key_path, Role.API)
    Registry.load()
    store = await Store.open(settings.database_url, ring, SystemClock())
    try:
        await require_matching_key_ring(store, ring)
    finally:
        await store.close()
