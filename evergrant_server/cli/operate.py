"""The operator's commands that end by themselves: schema, keys, audit; and what reconcile prints."""

import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from evergrant_server import audit
from evergrant_server.access.authentication import Authenticator
from evergrant_server.api.apps.keys import bootstrap_admin
from evergrant_server.cli.app import Flags, settings_of
from evergrant_server.cli.break_glass import break_glass
from evergrant_server.cli.gateway.database_role import gateway_password, gateway_role
from evergrant_server.cli.gateway.key_exports import export_api, export_gateway
from evergrant_server.cli.private_files import write_private
from evergrant_server.core.clock import SystemClock
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import Tenant
from evergrant_server.crypto.keyfile import key_file_error
from evergrant_server.crypto.keyring import KeyPurpose, KeyRing, Role
from evergrant_server.settings import BadSettings, Settings
from evergrant_server.store import Store
from evergrant_server.store.database import schema
from evergrant_server.store.database.engine import sqlite_path
from evergrant_server.store.review.gateway_role import put_gateway_role
from evergrant_server.temporal_link.connect import connect, prepare_namespace
from evergrant_server.temporal_link.reconcile import ReconcileCounts
from evergrant_server.wiring.platform import open_platform

db, keys, audit_log = App(name="db"), App(name="keys"), App(name="audit")


@db.command
async def upgrade(
    *,
    namespace: bool = True,
    gateway_role: str | None = None,
    gateway_password_file: Path | None = None,
    flags: Flags | None = None,
) -> None:
    """Bring the schema up to date, and prepare the Temporal namespace.

    Args:
        namespace: Also register search attributes and set the retention of closed runs.
        gateway_role: The role of PostgreSQL as which gateways connect: give it what a gateway reads and
            writes, and nothing else.
        gateway_password_file: Make that role, or give it the password in this file.
    """
    settings = settings_of(flags)
    password = gateway_password(settings, gateway_role, gateway_password_file)
    before = await schema.upgrade(settings.database_url)
    print(f"schema {before or 'none'} -> {schema.expected_version()}")
    if gateway_role is not None:
        await put_gateway_role(settings.database_url, gateway_role, password)
        print(f"role {gateway_role}: what a gateway reads and writes, and nothing else")
    if namespace:
        client = await connect(settings)
        await prepare_namespace(client, settings.history_retention)
        print(
            f"namespace {client.namespace}: search attributes, retention {settings.history_retention.days} d"
        )


db.command(gateway_role)


@db.command
async def current(*, flags: Flags | None = None) -> None:
    """Print the schema's version, and the newest that this release knows."""
    settings = settings_of(flags)
    version = await schema.current_version(settings.database_url)
    print(f"{version or 'none'} (newest: {schema.expected_version()})")


@keys.command
async def create(*, flags: Flags | None = None) -> None:
    """Create the key file. Never overwrites an existing one, nor replaces one that a database needs."""
    await create_keys(settings_of(flags))


async def create_keys(settings: Settings) -> None:
    """Create the key file.

    Raises Failure KEY_UNAVAILABLE when there is one, or the database was filled with another.
    """
    if not settings.key_path.exists() and await _needs_its_keys(settings.database_url):
        raise missing_key_file(settings)
    KeyRing.create(settings.key_path)
    print(f"created {settings.key_path}; back it up: without it no stored token can be read")


async def _needs_its_keys(database_url: str) -> bool:
    """Whether the database was filled with a key file. One that can't be reached yet may come later."""
    try:
        return await schema.is_in_use(database_url)
    except Failure as failure:
        if failure.code is not ErrorCode.STORE_UNAVAILABLE:
            raise
        return False


def missing_key_file(settings: Settings) -> Failure:
    """The failure of an installation whose database is there and whose key file isn't."""
    database = str(sqlite_path(settings.database_url) or "of EVERGRANT_DATABASE_URL")
    return key_file_error(
        settings.key_path,
        f"doesn't exist, and the database {database} needs it: what it sealed can't be read with new keys",
        "Restore the file from its backup, or name it with EVERGRANT_KEY_FILE. Without a backup every "
        "connection has to be made anew: move the database away, then start again.",
    )


@keys.command
def rotate(purpose: str, *, flags: Flags | None = None) -> None:
    """Add a new current root key for a purpose (lease, refresh or intake). Old rows stay readable."""
    settings = settings_of(flags)
    if purpose not in set(KeyPurpose):
        raise BadSettings(f"there is no key purpose {purpose!r}: use {', '.join(KeyPurpose)}")
    ring = KeyRing.open(settings.key_path, Role.OPERATOR)
    current = ring.rotate(KeyPurpose(purpose)).current_root_id(KeyPurpose(purpose))
    print(f"{purpose}: the current key is now {current}; restart API and workers")


keys.command(export_api)
keys.command(export_gateway)


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


keys.command(break_glass)


async def make_admin_key(settings: Settings, again: bool, out: Path | None) -> None:
    ring = KeyRing.open(settings.key_path, Role.OPERATOR)
    clock = SystemClock()
    store = await Store.open(settings.database_url, ring, clock)
    try:
        tenant, lifetime = Tenant(settings.tenant), settings.api_key_lifetime
        key = await bootstrap_admin(store, clock, tenant, lifetime, force=again)
    finally:
        await store.close()
    if out is None:
        print(key)
        title = f"the key of the app admin of the tenant {tenant}"
        print(f"{title}, shown once; send it as: Authorization: Bearer <key>", file=sys.stderr)
    else:
        write_private(out, key + "\n")


async def is_valid_key(settings: Settings, key: str) -> bool:
    """Whether this installation accepts the API key."""
    clock = SystemClock()
    store = await Store.open(settings.database_url, KeyRing.open(settings.key_path, Role.OPERATOR), clock)
    try:
        await Authenticator(store, clock).caller_of(key)
    except Failure as failure:
        return failure.code is ErrorCode.TENANT_DISABLED
    finally:
        await store.close()
    return True


async def reconcile(settings: Settings, older_than: timedelta | None, compare: bool) -> None:
    progress = ProgressPrinter()
    async with open_platform(settings, Role.OPERATOR) as parts:
        result = await parts.reconciler.reconcile_all(
            compare=compare, older_than=older_than, on_progress=progress.print_progress
        )
    print_report(result, restarting=older_than is not None)


def print_report(result: ReconcileCounts, *, restarting: bool) -> None:
    """Print the result of a pass.

    Raises Failure STORE_BEHIND, TEMPORAL_UNAVAILABLE without answers, or INTERNAL for unreadable rows.
    """
    print(f"{result.live} live connections, {result.started} workflows started")
    if restarting:
        waiting = len(result.awaiting_provider)
        print(f"{result.restarted} restarted, {waiting} left for later: their provider may still answer")
    for connection_id in result.store_behind:
        print(f"{connection_id}: the store is behind its workflow; restore a newer backup, or reauthorize it")
    for connection_id, why in result.unreadable:
        print(f"{connection_id}: skipped, {why}")
    for connection_id in result.unanswered:
        print(f"{connection_id}: its workflow doesn't answer, so the store may be behind")
    if not result.workers_answered:
        print("no worker answers, so the rest was not compared; start a worker and run this again")
    if result.store_behind:
        raise Failure(
            ErrorCode.STORE_BEHIND, f"{len(result.store_behind)} connections are behind their workflows"
        )
    if result.unanswered or not result.workers_answered:
        raise Failure(ErrorCode.TEMPORAL_UNAVAILABLE, f"{len(result.unanswered)} workflows didn't answer")
    if result.unreadable:
        raise Failure(ErrorCode.INTERNAL, f"{len(result.unreadable)} connections have unreadable rows")


class ProgressPrinter:
    """Prints the progress of a pass, at most once a second."""

    def __init__(self) -> None:
        self._printed_at = time.monotonic()

    def print_progress(self, counts: ReconcileCounts) -> None:
        if time.monotonic() - self._printed_at < 1:
            return
        self._printed_at = time.monotonic()
        line = f"{counts.live} live, {counts.started} started, {len(counts.store_behind)} behind"
        print(f"{line}, {counts.restarted} restarted" if counts.restarted else line, flush=True)


@audit_log.command
async def verify(*, flags: Flags | None = None) -> None:
    """Check every hash chain of the audit log, and name the first record that doesn't match."""
    settings = settings_of(flags)
    ring = KeyRing.open(settings.key_path, Role.API)
    store = await Store.open(settings.database_url, ring, SystemClock())
    try:
        verdict = await audit.verify_log(store, Tenant(settings.tenant))
    finally:
        await store.close()
    print(verdict)
    if not verdict.ok:
        raise Failure(ErrorCode.AUDIT_UNAVAILABLE, "the audit log was altered at the record above")
