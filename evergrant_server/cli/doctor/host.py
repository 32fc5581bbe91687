"""Checks of this host: packages, catalogue, folders, public URL."""

import fcntl
import os
import secrets
import shlex
import stat
import time
from datetime import UTC, datetime
from pathlib import Path

import httpx2

from evergrant_server.checkout import ROOT, require_own_packages
from evergrant_server.cli.doctor import COMMAND, CheckFailed
from evergrant_server.cli.doctor.keys import ROLE, role_of
from evergrant_server.core.errors import Failure
from evergrant_server.crypto import Role
from evergrant_server.journal.journal import waiting_paths
from evergrant_server.settings import BadSettings, Settings
from providers.definition.registry import CATALOG, Registry

_LONGEST_WAIT_S = 600.0  # of a reply in a journal: a worker concludes it in seconds
_NOT_NEEDED = "an API or a gateway with PostgreSQL keeps nothing on disk"


async def packages(settings: Settings) -> str:
    """`workflows`, `activities` and `providers` come from this checkout."""
    try:
        require_own_packages()
    except BadSettings as error:
        raise CheckFailed(str(error), f"cd {ROOT} && {COMMAND} doctor") from None
    return f"workflows, activities and providers come from {ROOT}"


async def catalogue(settings: Settings) -> str:
    try:
        return f"{len(Registry.load().names())} providers"
    except Failure as failure:
        raise CheckFailed(failure.detail, f"Correct the named file in {CATALOG}") from None


def _keeps_no_files(settings: Settings) -> bool:
    """True for an API or a gateway with PostgreSQL, whose disk may be read-only."""
    if settings.uses_sqlite:
        return False
    try:
        return role_of(settings) in (Role.API, Role.GATEWAY)
    except CheckFailed:
        return False


async def data_folder(settings: Settings) -> str:
    if _keeps_no_files(settings):
        return _NOT_NEEDED
    folder = settings.data_dir
    quoted = shlex.quote(str(folder))
    if not folder.is_dir():
        raise CheckFailed(f"{folder} doesn't exist", f"install -d -m 700 {quoted}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise CheckFailed(
            f"{folder} can't be written", f"chown {os.geteuid()} {quoted}    # or remount it writable"
        )
    mode = stat.S_IMODE(folder.stat().st_mode)
    if mode & 0o077:
        raise CheckFailed(f"{folder} is open to others (mode {mode:04o})", f"chmod 700 {quoted}")
    return f"{folder}, mode {mode:04o}"


async def journal(settings: Settings) -> str:
    """A worker can write and lock its journal here, and left no unreadable entry."""
    if _keeps_no_files(settings):
        return _NOT_NEEDED
    folder = settings.data_dir / "journals"
    above = folder if folder.is_dir() else settings.data_dir
    probe = above / f".doctor-{secrets.token_hex(8)}"  # a file: workers only read folders
    try:
        descriptor = os.open(probe, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.write(descriptor, b"doctor")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
            probe.unlink()
    except OSError as error:
        repair = f"install -d -m 700 {shlex.quote(str(above))}    # on a local disk, writable by this user"
        raise CheckFailed(f"{above} can't be written and locked ({error.strerror})", repair) from None
    if above != folder:
        return f"{folder} will be created by the first worker"
    waiting, unreadable = waiting_paths(folder)
    if unreadable:
        repair = f"ls {shlex.quote(str(folder))}/*/*.set-aside    # named by attempt; see docs/protocol.md"
        raise CheckFailed(f"{len(unreadable)} entries of {folder} can't be read and are kept", repair)
    _require_none_old(folder, waiting)
    count = sum(entry.is_dir() for entry in folder.iterdir())
    return f"{folder}: written, locked; {count} journals, {len(waiting)} answers are not in the store yet"


def _require_none_old(folder: Path, waiting: list[Path]) -> None:
    """Raise CheckFailed where a reply has waited for longer than a worker of this host needs."""
    oldest = min((at for path in waiting if (at := _modified(path)) is not None), default=None)
    if oldest is not None and time.time() - oldest > _LONGEST_WAIT_S:
        since = datetime.fromtimestamp(oldest, UTC)
        raise CheckFailed(
            f"{len(waiting)} answers of providers in {folder} are not in the store, the oldest since"
            f" {since:%Y-%m-%d %H:%M} UTC",
            f"{COMMAND} worker    # on this host; where one runs, its log says why at `journal stuck`; after "
            "a restore: docs/guide/operations.md#the-store-was-restored-from-a-backup",
        )


def _modified(path: Path) -> float | None:
    """When a file was written; None where a worker has just concluded it."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return None


async def public_url(settings: Settings) -> str:
    """The address of callback and connect pages reaches an Evergrant API, asked from where one is."""
    if ROLE.get() in (Role.WORKER, Role.GATEWAY):
        return "nothing here sends requests there; ask in an API's container"
    url = f"{settings.public_url}/livez"
    start = f"{COMMAND} serve    # or correct EVERGRANT_PUBLIC_URL, or the TLS proxy in front of the API"
    try:
        async with httpx2.AsyncClient(trust_env=False, timeout=3) as http:
            answer = await http.get(url)
    except httpx2.HTTPError as error:
        raise CheckFailed(f"{url} can't be reached ({type(error).__name__})", start) from None
    if answer.status_code != 200 or answer.text != '{"status":"ok"}':
        raise CheckFailed(f"{url} answers {answer.status_code}, not as Evergrant does", start)
    return f"{settings.public_url} reaches Evergrant"
