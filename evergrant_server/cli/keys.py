"""`keys`: the key file, its exports for other roles, the first API key, and a session for emergencies."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from evergrant_server.access.authentication import Authenticator
from evergrant_server.api.apps.keys import bootstrap_admin
from evergrant_server.api.people.sessions import make_break_glass_session
from evergrant_server.cli import roots
from evergrant_server.cli.flags import Flags, settings_of
from evergrant_server.cli.machine import write_private
from evergrant_server.core.clock import SystemClock
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import Tenant
from evergrant_server.crypto.bundle import GATEWAY_SECRETS, cell_secrets
from evergrant_server.crypto.key_services.port import Context, ServicePurpose
from evergrant_server.crypto.keyfile import (
    KeyFile,
    key_file_error,
    put_cell_secrets,
    read_bundle,
    read_cell_secrets,
)
from evergrant_server.crypto.keyring import HeldKeys, KeyRing, Role, new_key_file
from evergrant_server.crypto.root_keys import RootState, bundle_root, first_roots
from evergrant_server.settings import Settings
from evergrant_server.store import Store
from evergrant_server.store.database import schema
from evergrant_server.wiring.platform import key_services, new_ring, open_store, require_no_lost_key_file

keys = App(name="keys")
for command in (roots.status, roots.rotate, roots.rewrap, roots.retire):
    keys.command(command)


@keys.command
async def create(*, cell_of: Path | None = None, flags: Flags | None = None) -> None:
    """Create the key file. Never overwrites an existing one, nor replaces one that a database needs.

    With EVERGRANT_KEY_SERVICE: have the service wrap the first root keys, in the database. With a service as
    EVERGRANT_KEY_SERVICE_BEFORE: create the key file to which root keys are moved.

    Args:
        cell_of: What `keys export-cell` wrote on the host of another cell: the new keys belong to a cell to
            which that one's tenants can be moved. A key service wraps them later: see keys rotate.
    """
    settings = settings_of(flags)
    if cell_of is not None:
        await create_keys(settings, read_cell_secrets(cell_of))
        return
    if settings.key_service == "file" and settings.key_service_before:
        KeyRing.create(settings.key_path)
        print(f"created {settings.key_path}; back it up. Give each role its copy, restart all with these ")
        print("settings, then move to it: python -m evergrant_server keys rotate all")
    elif settings.key_service == "file":
        await create_keys(settings)
    elif not await create_wrapped_keys(settings):
        raise Failure(ErrorCode.ALREADY_EXISTS, "The database has its root keys already.")


async def create_keys(settings: Settings, cell_of: KeyFile | None = None) -> None:
    """Create the key file; of a cell, with the secrets that it shares.

    Raises Failure KEY_UNAVAILABLE when there is one, or the database was filled with another.
    """
    await require_no_lost_key_file(settings)
    KeyRing.create(settings.key_path, cell_of=cell_of)
    print(f"created {settings.key_path}; back it up: without it no stored token can be read")


async def create_wrapped_keys(settings: Settings) -> bool:
    """Add the first rows of root keys, wrapped by the key service; False where there are rows.

    A key file that is the service before stays what it is: its roots get rows, and the service wraps what
    roles sign with. Raises BadSettings, Failure KEY_UNAVAILABLE, KEY_DENIED, KEY_GONE, STORE_UNAVAILABLE,
    SCHEMA_MISMATCH.
    """
    services, ring, clock = key_services(settings), new_ring(settings, Role.OPERATOR), SystemClock()
    store = await Store.open(settings.database_url, ring, clock)
    try:
        async with store.read() as tx:
            if await tx.root_keys.all():
                return False
        if ring.file is None and await schema.is_in_use(settings.database_url):
            raise key_file_error(
                settings.key_path,
                "isn't used by these settings, and the database was filled with a key file",
                "Set EVERGRANT_KEY_SERVICE_BEFORE to file, so that its keys go on opening.",
            )
        file = ring.file or new_key_file()
        rows = await first_roots(services[0], file, clock.now(), lie_in_file=ring.file is not None)
        ring.hold(HeldKeys(file.purposes, file))  # the rows are signed with what they wrap
        async with store.write() as tx:
            for root, wrapped in rows:
                await tx.root_keys.add(root, wrapped)
    finally:
        for service in services:
            await service.close()
        await store.close()
    for root, wrapped in rows:
        print(f"{root.purpose}: {root.id}, {'wrapped by' if wrapped else 'in'} {root.service}")
    return True


async def renew_gateway_bundle(settings: Settings) -> bool:
    """Have the key service wrap what gateways derive anew, where this version derives more; else False.

    Raises as `create_wrapped_keys`.
    """
    async with open_store(settings, Role.OPERATOR) as (store, _):
        async with store.read() as tx:
            rows = [row for row in await tx.root_keys.all() if row.root.purpose is ServicePurpose.GATEWAY]
        current = next((row for row in rows if row.root.state is RootState.CURRENT and row.wrapped), None)
        if current is None or current.wrapped is None:
            return False
        root, services = current.root, key_services(settings)
        try:
            service = next(service for service in services if service.key_name(root.purpose) == root.service)
            raw = await service.unwrap(root.purpose, current.wrapped, Context(root.id))
            if read_bundle(raw, f"root_key {root.id}").derived.keys() >= GATEWAY_SECRETS:
                return False
            bundle = store.ring.bundle_for(root.purpose)
            renewed, wrapped = await bundle_root(services[0], root.purpose, bundle, SystemClock().now())
        finally:
            for service in services:
                await service.close()
        async with store.write() as tx:
            await tx.root_keys.add(renewed.__replace__(state=RootState.ANNOUNCED, current_at=None), wrapped)
            await tx.root_keys.make_current(renewed.id, tx.now)
    print(f"gateway: {renewed.id}, with what this version derives, wrapped by {renewed.service}")
    return True


@keys.command
async def bootstrap(
    *,
    again: Annotated[bool, Parameter(negative=())] = False,
    out: Path | None = None,
    flags: Flags | None = None,
) -> None:
    """Create the app `admin` and print its API key, once.

    Args:
        again: Create another key even if there is one already. Of two live keys the older one is revoked.
        out: Write the key to this file (mode 0600) instead of printing it.
    """
    await make_admin_key(settings_of(flags), again, out)


async def make_admin_key(settings: Settings, again: bool, out: Path | None) -> None:
    clock = SystemClock()
    tenant, lifetime = Tenant(settings.tenant), settings.api_key_lifetime
    async with open_store(settings, Role.OPERATOR, clock) as (store, _):
        key = await bootstrap_admin(store, clock, tenant, lifetime, force=again)
    if out is None:
        print(key)
        title = f"the key of the app admin of the tenant {tenant}"
        print(f"{title}, shown once; send it as: Authorization: Bearer <key>", file=sys.stderr)
    else:
        write_private(out, key + "\n")


async def is_valid_key(settings: Settings, key: str) -> bool:
    """Whether this installation accepts the API key."""
    clock = SystemClock()
    async with open_store(settings, Role.OPERATOR, clock) as (store, _):
        try:
            await Authenticator(store, clock).caller_of(key)
        except Failure as failure:
            return failure.code is ErrorCode.TENANT_DISABLED
    return True


@keys.command
def export_api(out: Path, *, flags: Flags | None = None) -> None:
    """Write the key file for API processes, without the refresh keys. An older copy there is replaced."""
    written = new_ring(settings_of(flags), Role.OPERATOR).export(out, Role.API)
    _say_written(out, written, "it can open access tokens, but no refresh tokens")


@keys.command
def export_gateway(out: Path, *, flags: Flags | None = None) -> None:
    """Write the key file for gateways, which opens access tokens alone. An older copy there is replaced."""
    written = new_ring(settings_of(flags), Role.OPERATOR).export(out, Role.GATEWAY)
    _say_written(out, written, "it can open access tokens, but no refresh tokens and no client secrets")


@keys.command
async def export_cell(out: Path, *, flags: Flags | None = None) -> None:
    """Write what another cell's keys are made with, so that tenants can be moved between the two.

    It opens no token and signs nothing: it makes the hashes of subjects, accounts and API keys. Carry it to
    the new cell's host as you carry a key file, run there keys create --cell-of FILE, and delete it.

    Args:
        out: The file, which must not exist.
    """
    async with open_store(settings_of(flags), Role.OPERATOR) as (store, _):
        put_cell_secrets(out, cell_secrets(store.ring.bundle_for(ServicePurpose.AUTHORITY)))
    print(f"wrote {out}: on the new cell's host, keys create --cell-of {out.name}; then delete it")


def _say_written(out: Path, written: bool, use: str) -> None:
    if written:
        print(f"wrote {out}: {use}; restart the processes that use it")
    else:
        print(f"{out} is this key file's newest copy already")


@keys.command
async def break_glass(*, who: str, reason: str, out: Path | None = None, flags: Flags | None = None) -> None:
    """Make a session that administers the tenant for one hour, and print its token, once.

    It is an alarm: the audit log, the log and webhooks name who made it and why.

    Args:
        who: The person who uses it.
        reason: Why, such as the number of an incident.
        out: Write the token to this file (mode 0600) instead of printing it.
    """
    settings = settings_of(flags)
    clock = SystemClock()
    async with open_store(settings, Role.OPERATOR, clock) as (store, _):
        token = await make_break_glass_session(store, clock, Tenant(settings.tenant), who, reason)
    if out is not None:
        write_private(out, token + "\n")
        return
    print(token)
    print("shown once, good for an hour; as EVERGRANT_API_KEY it works with every command", file=sys.stderr)
