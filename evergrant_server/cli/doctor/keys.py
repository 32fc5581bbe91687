"""Checks of the keys: the key file, the key service, and whether the database's keys open; and the store that
other checks read with them."""

import os
import shlex
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import ContextVar
from pathlib import Path

from evergrant_server.cli.doctor import COMMAND, CheckFailed, unreachable
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.crypto import ROOT_PURPOSES, KeyPurpose, KeyRing, Role, keyfile
from evergrant_server.crypto.key_services.bound import BoundKeyService
from evergrant_server.crypto.key_services.port import (
    FailureReason,
    KeyDescription,
    KeyServiceFailure,
    ServicePurpose,
)
from evergrant_server.crypto.keyring import PURPOSES_OF_ROLE, widest_role
from evergrant_server.crypto.root_keys import RootState, service_purposes
from evergrant_server.settings import BadSettings, Settings
from evergrant_server.store import Store, Transaction
from evergrant_server.store.database.rows import fetch_all
from evergrant_server.store.keys import ROOTS_IN_USE
from evergrant_server.store.rotation.processes import that_go_on
from evergrant_server.store.store import unwrap_newest_tenant_key
from evergrant_server.wiring import platform

ROLE: ContextVar[Role | None] = ContextVar("role", default=None)  # of the container that is checked
_PROCESSES = {
    Role.GATEWAY: "gateways",
    Role.API: "the API",
    Role.WORKER: "workers",
    Role.OPERATOR: "workers and operators",
}
_MOST_NAMED = 5
_COPIES = {Role.API: "export-api", Role.GATEWAY: "export-gateway"}
_REPAIRS = {
    FailureReason.AWAY: "Start the key service, or correct EVERGRANT_KEY_SERVICE",
    FailureReason.DENIED: "Allow this principal to use that key, as docs/security/keys.md has it for each "
    "role; in the container of an API or a gateway: doctor --role api, --role gateway",
    FailureReason.GONE: "Enable or restore that key in the key service",
    FailureReason.BROKEN: "Restore the row from a backup, or name the key service that wrapped it",
}


async def key_file(settings: Settings) -> str:
    """The key file exists, is private to this user, is complete, and fits the container's role alone."""
    path, role = settings.key_path, ROLE.get()
    if not settings.uses_key_file:
        if role is not None and role in _COPIES and path.exists():
            why = (
                f"{path} is here, and {settings.key_service} wraps the keys: {_PROCESSES[role]} need no file"
            )
            raise CheckFailed(why, f"rm {shlex.quote(str(path))}")
        return f"not needed: {settings.key_service} wraps the keys"
    try:
        file = keyfile.read(path)
    except Failure as failure:
        if await platform.is_key_file_lost(settings):
            why = f"The key file {path} doesn't exist, and the database needs it"
            raise CheckFailed(why, platform.LOST_KEY_FILE) from None
        raise CheckFailed(failure.detail, _key_repair(path)) from None
    widest = widest_role(file)
    role = role or widest
    missing = PURPOSES_OF_ROLE[role] - file.purposes.keys()
    if missing:
        raise CheckFailed(f"{path} lacks the keys for {', '.join(sorted(missing))}", _file_repair(path, role))
    if widest is not role and PURPOSES_OF_ROLE[widest] != PURPOSES_OF_ROLE[role]:
        beyond = f"who takes this container has more than {_PROCESSES[role]} need"
        raise CheckFailed(f"{path} is for {_PROCESSES[widest]}: {beyond}", _file_repair(path, role))
    try:
        KeyRing.open(path, role)
    except Failure as failure:
        raise CheckFailed(failure.detail, _file_repair(path, role)) from None
    return f"{path}: for {_PROCESSES[role]}, with keys for {', '.join(sorted(file.purposes))}"


def _file_repair(path: Path, role: Role) -> str:
    """How this container gets the newest file of its role."""
    if role not in _COPIES:
        return f"Put the full key file at {path}, the one that keys create made and keys rotate changed last"
    return (
        f"Where the full key file is: {COMMAND} keys {_COPIES[role]} NEW.json; put that file at {path}, and "
        "restart (docs/guide/operations.md#which-process-has-which-keys)"
    )


def _key_repair(path: Path) -> str:
    quoted = shlex.quote(str(path))
    try:
        facts = path.stat()
    except FileNotFoundError:
        return f"Restore a backup to {path}; for a new installation: {COMMAND} keys create"
    except OSError:
        return f"Give this user access to {path.parent}"
    if facts.st_uid != os.geteuid():
        return f"chown {os.geteuid()} {quoted}"
    if facts.st_mode & 0o077:
        return f"chmod 600 {quoted}"
    return f"Restore {path} from its backup"


async def key_service(settings: Settings) -> str:
    """The service knows a key for every purpose of a role, and each is enabled."""
    if settings.key_service == "file":
        return "the key file wraps the keys"
    try:
        service, *_ = services = platform.key_services(settings)
    except BadSettings as error:
        raise CheckFailed(str(error), "Correct the setting") from None
    role = role_of(settings)
    failures: list[KeyServiceFailure] = []
    known: list[KeyDescription] = []
    try:
        for purpose in sorted(service_purposes(role)):
            try:
                known.append(await _enabled(service, purpose))
            except KeyServiceFailure as failure:
                failures.append(failure)
    finally:
        for service in services:
            await service.close()
    if failures:
        why = " ".join(failure.detail for failure in failures)
        raise CheckFailed(f"for {_PROCESSES[role]}: {why}", _REPAIRS[failures[0].reason])
    principal = next((f", as {key.principal}" for key in known if key.principal is not None), "")
    return f"for {_PROCESSES[role]}{principal}: {', '.join(_described(key) for key in known)}"


async def _enabled(service: BoundKeyService, purpose: ServicePurpose) -> KeyDescription:
    description = await service.describe(purpose)
    if not description.is_enabled:
        raise KeyServiceFailure(
            FailureReason.GONE, description.key, "is disabled", principal=description.principal
        )
    return description


def _described(key: KeyDescription) -> str:
    facts = [f"version {key.version}" if key.version else "", "in hardware" if key.in_hardware else ""]
    return f"{key.key} ({', '.join(fact for fact in facts if fact)})" if any(facts) else key.key


async def keys_open(settings: Settings) -> str:
    """Unwrap one tenant key for each purpose of this process, which holds every root that is in use."""
    async with open_store(settings) as store:
        try:
            store.ring.require_all()
        except Failure as failure:
            raise _unusable(failure) from None
        await _hold_roots_in_use(settings, store)
        opened: list[str] = []
        for purpose in sorted(set(ROOT_PURPOSES) & PURPOSES_OF_ROLE[store.ring.role]):
            try:
                if await unwrap_newest_tenant_key(store, store.ring, purpose):
                    opened.append(f"{purpose} (seals with {store.ring.current_root_id(purpose)})")
            except Failure as failure:
                if failure.code not in (ErrorCode.KEY_UNAVAILABLE, ErrorCode.SEAL_BROKEN):
                    raise
                raise CheckFailed(
                    f"{store.ring.source} doesn't open this database's keys: {failure.detail}",
                    "Set EVERGRANT_KEY_FILE to the key file of this database, or restore that file",
                ) from None
        before = await _before(settings, store)
    if not opened:
        return f"the database holds no sealed value yet{before}"
    return f"opened a tenant's key for {', '.join(opened)}{before}"


async def _before(settings: Settings, store: Store) -> str:
    """Whether the service of before is needed, where the settings name one."""
    if not settings.key_service_before:
        return ""
    service, *_ = services = platform.key_services(settings)
    async with store.read() as tx:
        roots = [row.root for row in await tx.root_keys.all()]
    needed = [
        root
        for root in roots
        if root.state is not RootState.RETIRED and root.service != service.key_name(root.purpose)
    ]
    for opened in services:
        await opened.close()
    if needed:
        why = f"{len(needed)} rows of root_key need EVERGRANT_KEY_SERVICE_BEFORE"
        return f"; {why}: {COMMAND} keys rotate all moves them"
    return "; nothing needs EVERGRANT_KEY_SERVICE_BEFORE any more"


async def _hold_roots_in_use(settings: Settings, store: Store) -> None:
    """Raise CheckFailed for roots under which tenants' keys stand, and which this process lacks."""
    held = store.ring.root_ids()
    async with store.read() as tx:
        rows = await fetch_all(tx.connection, ROOTS_IN_USE)
    lacking = [
        f"{row['wrapping_key_id']} of the purpose {purpose}, which {row['keys']} tenants' keys need"
        for row in rows
        if (purpose := KeyPurpose(row["purpose"]).of_roots) in held
        and row["wrapping_key_id"] not in held[purpose]
    ]
    if not lacking:
        return
    has = "; ".join(f"{purpose}: {', '.join(ids)}" for purpose, ids in held.items())
    why = f"{store.ring.source} lacks the root {' and '.join(lacking)}. It has {has}"
    repair = _file_repair(settings.key_path, store.ring.role)
    raise CheckFailed(why, repair if settings.uses_key_file else "Restore the rows of root_key from a backup")


async def roots_of_processes(settings: Settings) -> str:
    """Every live process holds the roots with which others seal: no key file is an older one."""
    async with reading(settings) as tx:
        processes = that_go_on(await tx.processes.all())
    outdated = [
        f"the {process.role} on {process.host} (since {process.started_at:%Y-%m-%d %H:%M} UTC) lacks {root}"
        f" of the purpose {purpose}, with which the {sealing.role} on {sealing.host} seals"
        for process in processes
        for sealing in processes
        for purpose, root in sealing.seals_with.items()
        if purpose in process.roots and root not in process.roots[purpose]
    ]
    if not outdated:
        return f"{len(processes)} processes hold every root with which one of them seals"
    raise CheckFailed(
        "; ".join(dict.fromkeys(outdated[:_MOST_NAMED]))
        + ("; and more" if len(outdated) > _MOST_NAMED else ""),
        "Give it the newest key file of its role, and restart it "
        "(docs/guide/operations.md#which-process-has-which-keys)",
    )


@asynccontextmanager
async def open_store(settings: Settings) -> AsyncIterator[Store]:
    """The store, with the keys of this container's role.

    Raises CheckFailed for keys or a database that can't be used.
    """
    role = role_of(settings)
    async with AsyncExitStack() as opened:
        try:
            store, _ = await opened.enter_async_context(platform.open_store(settings, role))
        except Failure as failure:
            if failure.code is ErrorCode.SCHEMA_MISMATCH:
                raise CheckFailed(f"can't be checked: {failure.detail}", _see_check("migrations")) from None
            if failure.code is ErrorCode.STORE_UNAVAILABLE:
                raise unreachable(failure) from None
            raise _unusable(failure) from None
        yield store


def role_of(settings: Settings) -> Role:
    """The role that was given; else the widest that the key file is for. A key service allows all of them."""
    role = ROLE.get()
    if role is not None:
        return role
    if not settings.uses_key_file:
        return Role.OPERATOR
    try:
        return widest_role(keyfile.read(settings.key_path))
    except Failure as failure:
        raise _unusable(failure) from None


@asynccontextmanager
async def reading(settings: Settings) -> AsyncIterator[Transaction]:
    """A transaction that only reads. Raises as `open_store`."""
    async with open_store(settings) as store, store.read() as tx:
        yield tx


def _unusable(failure: Failure) -> CheckFailed:
    if isinstance(failure, KeyServiceFailure):
        return CheckFailed(failure.detail, _REPAIRS[failure.reason])
    why = f"can't be checked without a usable key file: {failure.detail}"
    return CheckFailed(why, _see_check("key file"))


def _see_check(check: str) -> str:
    return f"See the check '{check}'"
