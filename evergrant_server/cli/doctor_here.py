"""The doctor's checks of this host: packages, catalogue, key file, folders, the public URL."""

import fcntl
import os
import secrets
import shlex
import stat
from pathlib import Path

import httpx2

from evergrant_server.checkout import ROOT, refuse_strangers
from evergrant_server.cli.diagnosis import ME, Problem
from evergrant_server.core.errors import Failure
from evergrant_server.crypto import Lane, keyfile
from evergrant_server.journal.journal import left_behind
from evergrant_server.settings import BadSettings, Settings
from providers.registry import CATALOG, Registry

_NOT_NEEDED = "an API with PostgreSQL keeps nothing on disk"


async def packages(settings: Settings) -> str:
    """`workflows`, `activities` and `providers` are ours."""
    try:
        refuse_strangers()
    except BadSettings as error:
        raise Problem(str(error), f"cd {ROOT} && {ME} doctor") from None
    return f"workflows, activities and providers come from {ROOT}"


async def catalogue(settings: Settings) -> str:
    try:
        return f"{len(Registry.load().names())} providers"
    except Failure as failure:
        raise Problem(failure.detail, f"Correct the named file in {CATALOG}") from None


async def key_file(settings: Settings) -> str:
    """Exists, belongs to us, closed to others, whole, and with the lanes of some role."""
    path = settings.keys
    try:
        file = keyfile.read(path)
    except Failure as failure:
        raise Problem(failure.detail, _key_repair(path)) from None
    missing = {Lane.LEASE, Lane.INTAKE} - file.lanes.keys()
    if missing:
        repair = f"EVERGRANT_KEY_FILE=<the full file> {ME} keys export-api {shlex.quote(str(path))}"
        raise Problem(f"{path} lacks the lane {', '.join(sorted(missing))}", repair)
    kind = "the API's file" if Lane.REFRESH not in file.lanes else "full, for workers and operators"
    return f"{path}: {kind}, lanes {', '.join(sorted(file.lanes))}"


def _key_repair(path: Path) -> str:
    quoted = shlex.quote(str(path))
    try:
        facts = path.stat()
    except FileNotFoundError:
        return f"Restore a backup to {path}; for a new installation: {ME} keys create"
    except OSError:
        return f"Give this user access to {path.parent}"
    if facts.st_uid != os.geteuid():
        return f"chown {os.geteuid()} {quoted}"
    if facts.st_mode & 0o077:
        return f"chmod 600 {quoted}"
    return f"Restore {path} from its backup"


def _nothing_kept(settings: Settings) -> bool:
    """An API with its own key file and PostgreSQL writes no file: its disk may be read-only."""
    if settings.sqlite:
        return False
    try:
        return Lane.REFRESH not in keyfile.read(settings.keys).lanes
    except Failure:
        return False


async def data_folder(settings: Settings) -> str:
    if _nothing_kept(settings):
        return _NOT_NEEDED
    folder = settings.data_dir
    quoted = shlex.quote(str(folder))
    if not folder.is_dir():
        raise Problem(f"{folder} doesn't exist", f"install -d -m 700 {quoted}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise Problem(
            f"{folder} can't be written", f"chown {os.geteuid()} {quoted}    # or remount it writable"
        )
    mode = stat.S_IMODE(folder.stat().st_mode)
    if mode & 0o077:
        raise Problem(f"{folder} is open to others (mode {mode:04o})", f"chmod 700 {quoted}")
    return f"{folder}, mode {mode:04o}"


async def journal(settings: Settings) -> str:
    """A worker must be able to write its journal here, and to lock it."""
    if _nothing_kept(settings):
        return _NOT_NEEDED
    folder = settings.data_dir / "journals"
    above = folder if folder.is_dir() else settings.data_dir
    probe = above / f".doctor-{secrets.token_hex(8)}"  # a file: workers look at folders alone
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
        raise Problem(f"{above} can't be written and locked ({error.strerror})", repair) from None
    if above != folder:
        return f"{folder} will be made by the first worker"
    waiting, unreadable = left_behind(folder)
    if unreadable:
        repair = f"ls {shlex.quote(str(folder))}/*/*.set-aside    # named by attempt; see docs/protocol.md"
        raise Problem(f"{len(unreadable)} entries of {folder} can't be read, and are kept", repair)
    count = sum(it.is_dir() for it in folder.iterdir())
    return f"{folder}: written, locked; {count} journals, {len(waiting)} answers wait for the store"


async def public_url(settings: Settings) -> str:
    """The callback's and the connect pages' address leads to an Evergrant."""
    url = f"{settings.public_url}/livez"
    start = f"{ME} serve    # or correct EVERGRANT_PUBLIC_URL, or what ends TLS in front of the API"
    try:
        async with httpx2.AsyncClient(trust_env=False, timeout=3) as http:
            answer = await http.get(url)
    except httpx2.HTTPError as error:
        raise Problem(f"{url} can't be reached ({type(error).__name__})", start) from None
    if answer.status_code != 200 or answer.text != '{"status":"ok"}':
        raise Problem(f"{url} answers {answer.status_code}, and not as Evergrant does", start)
    return f"{settings.public_url} leads to an Evergrant"
