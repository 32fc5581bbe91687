"""Which shards the audit log has: the heads log of the installation says when each tree began.

A shard that was deleted together with its end leaves its birth behind, so that it is missed (ADR 0106). The
births of chains stand in the installation's own chains of before.
"""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import select, text, update
from sqlmodel import col

from evergrant_server.audit.appending import HEADS, TreeEnd, append, append_heads, is_heads_log
from evergrant_server.audit.bodies import Head
from evergrant_server.audit.chains import ChainEnd
from evergrant_server.audit.merkle_tree import EMPTY_ROOT
from evergrant_server.core.audit import INSTALLATION, AuditAction, AuditEntry
from evergrant_server.core.ids import Tenant
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.store import Store, Transaction
from evergrant_server.store.audit_tables import BIRTH_CONDITION, AuditRow, AuditShardRow, AuditTreeRow
from evergrant_server.store.authority.authenticators import BrokenRow, authority_broken
from evergrant_server.store.database.rows import columns_equal, fetch_all

Shard = tuple[Tenant, str]
End = TreeEnd | ChainEnd
_MISSING = "and its records are missing from the audit log"


class Births(NamedTuple):
    """When each shard began; without those whose loss an operator accepted."""

    born: dict[Shard, datetime]
    lost: set[Shard]


async def births_of(tx: Transaction, tenant: Tenant | None = None, before: int | None = None) -> Births:
    """The births of a tenant's shards, or (None) of all; `before`: those among the first records of the heads
    log, as many. Reads records without verifying them: `verify_log` does."""
    query = select(col(AuditRow.object), col(AuditRow.action), col(AuditRow.at)).where(
        columns_equal(AuditRow, tenant=INSTALLATION), text(BIRTH_CONDITION)
    )
    if tenant is not None:
        query = query.where(col(AuditRow.object).startswith(f"{tenant}/", autoescape=True))
    if before is not None:
        query = query.where(col(AuditRow.shard) == HEADS, col(AuditRow.seq) < before)
    births = Births({}, set())
    for row in await fetch_all(tx.connection, query):
        of, _, shard = row["object"].partition("/")
        if row["action"] == AuditAction.SHARD_LOST:
            births.lost.add((Tenant(of), shard))
        births.born[Tenant(of), shard] = row["at"]
    for name in births.lost:
        del births.born[name]
    return births


async def ends(
    tx: Transaction, tenants: Sequence[str] | None = None, *, shard: str | None = None
) -> list[End]:
    """The ends of trees and of chains of these tenants; None: of all; `shard`: those of this name."""
    trees, chains = select(AuditTreeRow), select(AuditShardRow)
    if tenants is not None:
        trees = trees.where(col(AuditTreeRow.tenant).in_(tenants))
        chains = chains.where(col(AuditShardRow.tenant).in_(tenants))
    if shard is not None:
        trees, chains = (
            trees.where(col(AuditTreeRow.shard) == shard),
            chains.where(col(AuditShardRow.shard) == shard),
        )
    return [
        *(TreeEnd(*_fields(row, TreeEnd)) for row in await fetch_all(tx.connection, trees)),
        *(ChainEnd(*_fields(row, ChainEnd)) for row in await fetch_all(tx.connection, chains)),
    ]


async def broken_heads(store: Store) -> list[BrokenRow]:
    """Each shard of any tenant whose end isn't ours or is missing, and each that no log says it began."""
    async with store.read() as tx:
        known = await ends(tx)
        born = (await births_of(tx)).born
    ring = store.ring
    broken = [end for end in known if not end.is_authentic(ring) or not _has_birth(end, born)]
    shards = {(end.tenant, end.shard) for end in known}
    missing = [name for name in born if name not in shards]
    return [
        *(BrokenRow(Tenant(end.tenant), end.broken) for end in broken),
        *(
            BrokenRow(tenant, authority_broken("audit_tree", f"{tenant}/{shard}", _MISSING))
            for tenant, shard in sorted(missing)
        ),
    ]


async def accept_heads(store: Store, names: Collection[str] | None = None) -> list[str]:
    """Accept these ends (`tenant/shard`) as they are now, None: all; returns their names.

    One whose beginning isn't recorded gets a record, and so does one that is missing: its loss stays told.
    """
    async with store.read() as tx:
        known = await ends(tx)
        born = (await births_of(tx)).born
    accepted: list[str] = []
    for end in known:
        if names is not None and end.name not in names:
            continue
        async with store.write() as tx:
            await _accept(tx, end)
            if not _has_birth(end, born):
                head = Head(Tenant(end.tenant), end.shard, 0, EMPTY_ROOT, tx.now)
                await append_heads(tx, [head], begun=True)
        accepted.append(end.name)
    shards = {(end.tenant, end.shard) for end in known}
    for tenant, shard in sorted(born.keys() - shards):
        name = f"{tenant}/{shard}"
        if names is not None and name in names:
            async with store.write() as tx:
                await append(tx, _loss(tx, name))
            accepted.append(name)
    return accepted


async def _accept(tx: Transaction, end: End) -> None:
    table: Any = AuditTreeRow if isinstance(end, TreeEnd) else AuditShardRow
    last = {"peaks": end.peaks} if isinstance(end, TreeEnd) else {"last_hash": end.last_hash}
    now = columns_equal(table, tenant=end.tenant, shard=end.shard, **last)
    await tx.connection.execute(update(table).where(now).values(mac=end.made(tx.ring)))


def _has_birth(end: End, born: Collection[Shard]) -> bool:
    """Whether its beginning is recorded. Those of the installation's chains weren't."""
    if end.tenant == INSTALLATION and (isinstance(end, ChainEnd) or is_heads_log(end.tenant, end.shard)):
        return True
    return (end.tenant, end.shard) in born


def _loss(tx: Transaction, name: str) -> AuditEntry:
    return AuditEntry(
        tenant=INSTALLATION,
        at=tx.now,
        action=AuditAction.SHARD_LOST,
        object=name,
        context=RequestContext(by="operator"),
    )


def _fields(row: dict[str, Any], end: type[End]) -> list[Any]:
    return [row[name] for name in end._fields]
