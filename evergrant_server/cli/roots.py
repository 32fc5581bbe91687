"""`keys status`, `rotate`, `rewrap` and `retire`: the installation's roots, and what stands under them."""

import asyncio
import json
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from evergrant_server.cli.flags import Flags, settings_of
from evergrant_server.core.audit import INSTALLATION
from evergrant_server.core.clock import SystemClock
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import KeyRotationId, new_id
from evergrant_server.core.key_rotation import RotationCommand, RotationKind
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.messages.keys import KeyRotationStart
from evergrant_server.core.messages.names import key_rotation_workflow_id
from evergrant_server.core.outbox import key_rotation_message
from evergrant_server.crypto.key_services.port import ServicePurpose
from evergrant_server.crypto.keyring import ROOT_PURPOSES, KeyPurpose, KeyRing, Role
from evergrant_server.settings import BadSettings, Settings
from evergrant_server.store import Store, Transaction
from evergrant_server.store.rotation.requests import add_request, last_request
from evergrant_server.wiring.platform import Platform, new_ring, open_platform, open_store

Output = Annotated[Literal["text", "json"], Parameter(name=["--output", "-o"])]
_POLL_S = 0.5
_WIDTH = 30  # of the bar
_ALL = "all"
_WORKFLOW = key_rotation_workflow_id(INSTALLATION, RotationKind.ROOT)
_WITH_ROOTS = tuple(map(ServicePurpose, ROOT_PURPOSES))


async def status(*, output: Output = "text", flags: Flags | None = None) -> None:
    """Show the root keys, how many tenants' keys stand under each, and which processes hold which.

    Args:
        output: `text` or `json`.
    """
    async with open_store(settings_of(flags), Role.OPERATOR) as (store, _), store.read() as tx:
        shown = {"roots": await _roots(tx), "processes": await _processes(tx)}
    if output == "json":
        print(json.dumps(shown, indent=1))
        return
    for root in shown["roots"]:
        keys = f"{root['tenant_keys']} keys under it"
        print(f"{root['purpose']}: {root['id']}, {root['state']}, {root['service']}, {keys}")
    for process in shown["processes"]:
        print(
            f"{process['role']} on {process['host']}: {process['state']}, seals with {process['seals_with']}"
        )


async def rotate(
    purpose: str, *, wait: bool = True, output: Output = "text", flags: Flags | None = None
) -> None:
    """Make a new current root key of a purpose: lease, refresh or intake; `all` of them.

    A key service wraps it, and a worker moves everything to it and retires the old one. To a key file it is
    added: restart the processes with it, then run `keys rewrap`. What the old one wrapped opens all along.
    `authority` and `gateway` are wrapped anew, unchanged; `all` is these too. So `all` moves an installation
    from EVERGRANT_KEY_SERVICE_BEFORE to EVERGRANT_KEY_SERVICE.

    Args:
        wait: Wait for the end, with a progress bar.
        output: `text` or `json`.
    """
    settings, purposes = settings_of(flags), _purposes(purpose, tuple(ServicePurpose))
    if await has_rows(settings):
        return await _run(settings, RotationCommand.ROTATE, purposes, wait, output)
    of = _purposes(purpose, _WITH_ROOTS, one=True)[0]
    current = (
        KeyRing.open(settings.key_path, Role.OPERATOR).rotate(KeyPurpose(of)).current_root_id(KeyPurpose(of))
    )
    print(f"{of}: the current key is now {current}; restart API, workers and gateways with the new file")
    print(f"then move what stands under the older one: python -m evergrant_server keys rewrap {of}")


async def rewrap(
    purpose: str, *, wait: bool = True, output: Output = "text", flags: Flags | None = None
) -> None:
    """Have a worker move what stands under older roots of a purpose to the current one.

    Args:
        wait: Wait for the end, with a progress bar.
        output: `text` or `json`.
    """
    await _run(settings_of(flags), RotationCommand.REWRAP, _purposes(purpose, _WITH_ROOTS), wait, output)


async def retire(
    purpose: str, *, wait: bool = True, output: Output = "text", flags: Flags | None = None
) -> None:
    """Have a worker retire the older roots of a purpose, once nothing stands under them and no process seals
    with them. Roots of a key file stay in it: older backups open with them alone.

    Args:
        wait: Wait for the end, with a progress bar.
        output: `text` or `json`.
    """
    settings, purposes = settings_of(flags), _purposes(purpose, tuple(ServicePurpose))
    if not await has_rows(settings):
        why = "The roots lie in the key file, and stay there: older backups open with them alone."
        raise Failure(ErrorCode.INVALID_REQUEST, why)
    await _run(settings, RotationCommand.RETIRE, purposes, wait, output)


async def has_rows(settings: Settings) -> bool:
    """Whether root keys are rows of the database. Without a database the key file alone decides.

    Raises as `Store.open`, where the settings name a key service.
    """
    try:
        store = await Store.open(settings.database_url, new_ring(settings, Role.OPERATOR), SystemClock())
    except Failure as failure:
        no_database = failure.code in (ErrorCode.STORE_UNAVAILABLE, ErrorCode.SCHEMA_MISMATCH)
        if no_database and settings.key_service_urls == ("file",):
            return False
        raise
    try:
        async with store.read() as tx:
            return bool(await tx.root_keys.all())
    finally:
        await store.close()


async def _run(
    settings: Settings,
    command: RotationCommand,
    purposes: Sequence[ServicePurpose],
    wait: bool,
    output: Output,
) -> None:
    async with open_platform(settings, Role.OPERATOR) as platform:
        now, service = platform.clock.now(), platform.key_services[0]
        rotation = KeyRotationStart(
            tenant=INSTALLATION,
            rotation_id=KeyRotationId(new_id("rot")),
            kind=RotationKind.ROOT,
            command=command,
            purposes=tuple(purpose.value for purpose in purposes),
            wrapped_by=tuple(service.key_name(purpose) for purpose in purposes),
            begun_at=now,
            context=RequestContext(by="operator"),
        )
        last = await _require_none_running(platform)
        async with platform.store.write() as tx:
            await add_request(tx, key_rotation_message(rotation, now), last)
        while wait and not rotation.progress.done:
            await asyncio.sleep(_POLL_S)
            newest = await _newest(platform)
            rotation = newest if newest and newest.rotation_id == rotation.rotation_id else rotation
            _show_bar(rotation)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    if output == "json":
        print(rotation.model_dump_json(exclude={"context"}))
    else:
        print(_line(rotation))


async def _newest(platform: Platform) -> KeyRotationStart | None:
    """The newest rotation of roots; None while no worker answers."""
    try:
        return await platform.link.describe_key_rotation(_WORKFLOW)
    except Failure:
        return None


async def _require_none_running(platform: Platform) -> int:
    """The number of the last request: who finds a later one knows that it has begun since."""
    async with platform.store.read() as tx:
        last = await last_request(tx, _WORKFLOW)
    newest = await _newest(platform)
    if newest is not None and not newest.progress.done:
        raise Failure(ErrorCode.ALREADY_EXISTS, f"A rotation of roots runs already: {_line(newest)}")
    return last


def _line(rotation: KeyRotationStart) -> str:
    progress = rotation.progress
    line = f"{', '.join(rotation.purposes)}, {'done' if progress.done else progress.step or 'begins'}: "
    line += f"{progress.moved:,} of {progress.total:,} moved, {progress.left:,} left under older roots, "
    line += f"{progress.destroyed} roots retired"
    return f"{line}; waits for {', '.join(progress.waits_for)}" if progress.waits_for else line


def _show_bar(rotation: KeyRotationStart) -> None:
    if sys.stderr.isatty():
        progress = rotation.progress
        bar = "█" * round(_WIDTH * min(1.0, progress.moved / progress.total if progress.total else 0.0))
        print(f"\r{bar:<{_WIDTH}} {_line(rotation)}\x1b[K", end="", file=sys.stderr, flush=True)


def _purposes(name: str, known: Sequence[ServicePurpose], *, one: bool = False) -> Sequence[ServicePurpose]:
    """The purposes of this name, or `all` that are known. Raises BadSettings."""
    if name == _ALL and not one:
        return known
    if name not in known:
        names = [*known] if one else [*known, _ALL]
        raise BadSettings(f"there is no key purpose {name!r} here: use {', '.join(names)}")
    return (ServicePurpose(name),)


async def _roots(tx: Transaction) -> list[dict[str, Any]]:
    """The roots, and the rows that wrap what roles sign and derive with."""
    under, ring = await tx.root_moves.tenant_keys_by_root(), tx.ring
    held = {purpose.value: (ids, ring.current_root_id(purpose)) for purpose, ids in ring.root_ids().items()}
    rows = {stored.root.id: stored.root for stored in await tx.root_keys.all()}
    shown: list[dict[str, Any]] = []
    for purpose in ServicePurpose:
        ids, current = held.get(purpose, ((), ""))
        for id in sorted({*ids, *(id for id, root in rows.items() if root.purpose is purpose)}):
            root = rows.get(id)
            state = root.state.value if root else "current" if id == current else "open"
            named = {"purpose": purpose.value, "id": id, "state": state, "tenant_keys": under.get(id, 0)}
            shown.append({**named, "service": root.service if root else f"file:{purpose}"})
    return shown


async def _processes(tx: Transaction) -> list[dict[str, Any]]:
    return [
        {
            "id": process.id,
            "role": process.role,
            "host": process.host,
            "version": process.version,
            "state": process.state.value,
            "seals_with": process.seals_with,
            "roots": process.roots,
            "silent_s": round(process.silent_for.total_seconds(), 1),
        }
        for process in await tx.processes.all()
    ]
