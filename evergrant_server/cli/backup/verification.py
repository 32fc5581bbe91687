"""Whether a database that was restored is whole: keys, tokens, authority, audit log."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime

from evergrant_server import audit
from evergrant_server.cli.doctor import CheckFailed
from evergrant_server.cli.doctor import keys as doctor_keys
from evergrant_server.core.audit import INSTALLATION
from evergrant_server.core.errors import Failure
from evergrant_server.core.ids import Tenant
from evergrant_server.crypto.keyring import Role
from evergrant_server.settings import Settings
from evergrant_server.store import Store
from evergrant_server.store.authority.authenticators import BrokenRow
from evergrant_server.store.authority.scan import broken_configuration, broken_connections
from evergrant_server.store.database.copies import reading
from evergrant_server.wiring.platform import open_store

_MOST_NAMED = 20
_PAGE = 200


@dataclass
class Verified:
    """What was found. `problems` is empty for a database that is whole; it names the first of each kind.

    `checkpoint`: the size and the moment of the newest signed checkpoint of the log. `newest_at`: of its
    newest record, which is about when the backup was taken.
    """

    tables: dict[str, int] = field(default_factory=dict)
    keys: str = ""
    opened_grants: int = 0
    broken_rows: int = 0
    audit_records: int = 0
    checkpoint: dict[str, int | str] | None = None
    newest_at: datetime | None = None
    problems: list[str] = field(default_factory=list)


async def verify(settings: Settings) -> Verified:
    """Count the rows; open the keys and every grant; check every authenticator and the whole audit log.

    Needs the full key file. Raises Failure STORE_UNAVAILABLE, SCHEMA_MISMATCH.
    """
    found = Verified()
    async with reading(settings.database_url) as copy:
        found.tables, found.newest_at = await copy.table_counts(), await copy.newest_at()
        tenants = sorted({tenant for tenant, _ in await copy.tree_sizes()} - {INSTALLATION})
    role = doctor_keys.ROLE.set(Role.OPERATOR)
    try:
        found.keys = await doctor_keys.keys_open(settings)
    except CheckFailed as failed:
        found.problems.append(f"keys: {failed.detail}. {failed.repair}")
        return found  # nothing below can be told without them
    finally:
        doctor_keys.ROLE.reset(role)
    async with open_store(settings, Role.OPERATOR) as (store, _):
        await _open_grants(store, found)
        async for row in _broken_rows(store):
            found.broken_rows += 1
            if found.broken_rows <= _MOST_NAMED:
                found.problems.append(f"authority: {row.failure.detail} Tenant: {row.tenant}")
        await _verify_audit(store, [Tenant(tenant) for tenant in tenants], found)
    return found


async def _open_grants(store: Store, found: Verified) -> None:
    after = None
    closed = 0
    while True:
        async with store.read() as tx:
            page = await tx.connections.live_in_all_tenants(after, _PAGE)
            for connection in page:
                try:
                    tokens = await tx.grants.sealed_tokens(connection)
                    if tokens.row is None:
                        continue
                    tokens.access_token()
                    tokens.refresh_token()
                    found.opened_grants += 1
                except Failure as failure:
                    closed += 1
                    if closed <= _MOST_NAMED:
                        found.problems.append(f"grant of {connection.id}: {failure.code}: {failure.detail}")
            unreadable = [f"{row.id} can't be read: {row.why}" for row in page.unreadable]
        found.problems += unreadable[:_MOST_NAMED]
        if not page.has_more:
            return
        after = page.last


async def _broken_rows(store: Store) -> AsyncIterator[BrokenRow]:
    for row in (*await broken_configuration(store), *await audit.broken_heads(store)):
        yield row
    async for row in broken_connections(store):
        yield row


async def _verify_audit(store: Store, tenants: list[Tenant], found: Verified) -> None:
    """Every tenant's trees. The heads log is walked as a whole once; beside the other tenants from where the
    last verification of each has ended."""
    for number, tenant in enumerate(tenants or [INSTALLATION]):
        verdict = await audit.verify_log(store, tenant, whole=number == 0)
        found.audit_records += verdict.records
        if not verdict.ok:
            place = f"{tenant}/{verdict.shard}, record {verdict.seq}"
            found.problems.append(f"audit: {place}: {verdict.problem}")
    async with store.read() as tx:
        newest = await tx.checkpoints.newest()
    if newest is not None:
        found.checkpoint = {"heads": newest.tree.size, "at": newest.at.isoformat(timespec="seconds")}
