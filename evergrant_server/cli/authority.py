"""`authority`: find rows whose authenticator isn't Evergrant's, and accept those that are right."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from cyclopts import App, Parameter

from evergrant_server import audit
from evergrant_server.cli.flags import Flags, settings_of
from evergrant_server.cli.pinned_hosts.acceptance import accept_hosts as accept_hosts_of
from evergrant_server.cli.pinned_hosts.acceptance import pin_accepted_rows
from evergrant_server.cli.pinned_hosts.waiting import print_waiting_hosts
from evergrant_server.core.clock import SystemClock
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.crypto.keyring import Role
from evergrant_server.settings import BadSettings, Settings
from evergrant_server.store import Store
from evergrant_server.store.authority.authenticators import BrokenRow
from evergrant_server.store.authority.scan import accept as accept_table_rows
from evergrant_server.store.authority.scan import broken_configuration, broken_connections
from evergrant_server.wiring.platform import open_store
from providers.definition.registry import Registry

authority = App(name="authority")


@authority.command
async def verify(*, flags: Flags | None = None) -> None:
    """Check every row that says who may do what, and where secrets are sent. Exits 1 if one is broken.

    Apps, permits, integrations, definitions, exports, connections with their grants and pinned accounts, and
    the ends of the audit trees, of every tenant. Needs the full key file.
    """
    broken_count = 0
    async with _store(settings_of(flags)) as store:
        async for broken in _broken(store):
            print(f"{broken.failure.detail} Tenant: {broken.tenant}")
            broken_count += 1
    if broken_count:
        raise Failure(
            ErrorCode.AUTHORITY_BROKEN,
            f"{broken_count} rows were written or changed by other means than Evergrant. Restore them from a "
            "backup, put or delete them anew; or, for one that is right as it is, run: "
            "python -m evergrant_server authority accept ID",
        )
    print("every row is Evergrant's")


@authority.command
async def accept(
    *ids: str,
    everything: Annotated[bool, Parameter(name="--all", negative=())] = False,
    flags: Flags | None = None,
) -> None:
    """Accept rows as they are now: from here on they count as Evergrant's. Look at each of them first.

    Args:
        ids: Ids as `authority verify` names them.
        everything: Accept all rows of the database.
    """
    if bool(ids) is everything:
        raise BadSettings("give the ids of rows, or --all")
    async with _store(settings_of(flags)) as store:
        accepted = await accept_rows(store, None if everything else frozenset(ids))
        if everything:
            await pin_accepted_rows(store, Registry.load())
    missing = sorted(set(ids) - set(accepted))
    if missing:
        raise Failure(ErrorCode.NOT_FOUND, f"There is no row {', '.join(missing)}.")
    print(f"accepted {len(accepted)} rows")


@authority.command
async def hosts(*, flags: Flags | None = None) -> None:
    """List hosts that definitions or metadata name, and at which no grant was made: nothing is sent there.

    Each with its integration and the connections that wait for it. Needs the full key file.
    """
    async with _store(settings_of(flags)) as store:
        await print_waiting_hosts(store, Registry.load())


@authority.command
async def accept_hosts(
    integration: str, *, host: Annotated[list[str], Parameter(negative=())], flags: Flags | None = None
) -> None:
    """Let workers send the tokens and client credentials of an integration to a host.

    Find out first that its provider has moved there. What waits for it is tried again.

    Args:
        integration: The integration's id, as `authority hosts` names it.
        host: The host, as `authority hosts` writes it; several times for several.
    """
    async with _store(settings_of(flags)) as store:
        accepted = await accept_hosts_of(store, SystemClock(), integration, host)
    print(f"{accepted.name} (tenant {accepted.tenant}) may send to {', '.join(sorted(set(host)))}")


async def accept_rows(store: Store, ids: frozenset[str] | None = None) -> list[str]:
    """Write the authenticators of these rows as they are (None: of all); returns their ids."""
    return [*await accept_table_rows(store, ids), *await audit.accept_heads(store, ids)]


async def _broken(store: Store) -> AsyncIterator[BrokenRow]:
    for row in (*await broken_configuration(store), *await audit.broken_heads(store)):
        yield row
    async for row in broken_connections(store):
        yield row


@asynccontextmanager
async def _store(settings: Settings) -> AsyncIterator[Store]:
    async with open_store(settings, Role.OPERATOR) as (store, _):
        yield store
