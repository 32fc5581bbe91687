"""Which shards the audit log has: the installation's own chain says when each began.

A shard that was deleted together with its end leaves its birth behind, so that it is missed (ADR 0065).
"""

from collections.abc import Collection
from datetime import datetime

from sqlalchemy import select, update
from sqlmodel import col

from evergrant_server.audit.hash_chain import ChainHead, append
from evergrant_server.core.audit import INSTALLATION, AuditAction, AuditEntry
from evergrant_server.core.errors import Failure
from evergrant_server.core.ids import Tenant
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.store import Store, Transaction
from evergrant_server.store.audit_tables import AuditRow, AuditShardRow
from evergrant_server.store.authority.authenticators import BrokenRow, authority_broken
from evergrant_server.store.database.rows import columns_equal, fetch_all

_MISSING = "and its records are missing from the audit log"


async def born_shards(tx: Transaction, tenant: Tenant | None = None) -> dict[tuple[Tenant, str], datetime]:
    """When each shard began, of a tenant or (None) of all; without those whose loss an operator accepted.

    Reads records without verifying them: `verify_log` does.
    """
    actions = (AuditAction.SHARD_BEGUN.value, AuditAction.SHARD_LOST.value)
    query = select(col(AuditRow.object), col(AuditRow.action), col(AuditRow.at)).where(
        columns_equal(AuditRow, tenant=INSTALLATION), col(AuditRow.action).in_(actions)
    )
    if tenant is not None:
        query = query.where(col(AuditRow.object).startswith(f"{tenant}/", autoescape=True))
    born: dict[tuple[Tenant, str], datetime] = {}
    lost: set[tuple[Tenant, str]] = set()
    for row in await fetch_all(tx.connection, query):
        of, _, shard = row["object"].partition("/")
        if row["action"] == AuditAction.SHARD_LOST:
            lost.add((Tenant(of), shard))
        born[Tenant(of), shard] = row["at"]
    return {name: at for name, at in born.items() if name not in lost}


async def broken_heads(store: Store) -> list[BrokenRow]:
    """Each chain of any tenant whose end isn't ours or is missing, and each that no chain says it began."""
    async with store.read() as tx:
        heads = await _heads(tx)
        born = await born_shards(tx)
    ring = store.ring
    broken = [head for head in heads if not head.is_authentic(ring) or not _has_birth(head, born)]
    shards = {(head.tenant, head.shard) for head in heads}
    missing = [name for name in born if name not in shards]
    return [
        *(BrokenRow(Tenant(head.tenant), head.broken) for head in broken),
        *(BrokenRow(name[0], _missing(*name)) for name in sorted(missing)),
    ]


async def accept_heads(store: Store, names: Collection[str] | None = None) -> list[str]:
    """Accept these ends (`tenant/shard`) as they are now, None: all; returns their names.

    One whose beginning isn't recorded gets a record, and so does one that is missing: its loss stays told.
    """
    async with store.read() as tx:
        heads = await _heads(tx)
        born = await born_shards(tx)
    accepted: list[str] = []
    for head in heads:
        if names is not None and head.name not in names:
            continue
        now = columns_equal(AuditShardRow, tenant=head.tenant, shard=head.shard, last_hash=head.last_hash)
        async with store.write() as tx:
            await tx.connection.execute(update(AuditShardRow).where(now).values(mac=head.made(store.ring)))
            if not _has_birth(head, born):
                await _record(tx, AuditAction.SHARD_BEGUN, head.name)
        accepted.append(head.name)
    shards = {(head.tenant, head.shard) for head in heads}
    for tenant, shard in sorted(born.keys() - shards):
        name = f"{tenant}/{shard}"
        if names is not None and name in names:
            async with store.write() as tx:
                await _record(tx, AuditAction.SHARD_LOST, name)
            accepted.append(name)
    return accepted


def _missing(tenant: Tenant, shard: str) -> Failure:
    return authority_broken("audit_shard", f"{tenant}/{shard}", _MISSING)


def _has_birth(head: ChainHead, born: Collection[tuple[Tenant, str]]) -> bool:
    return head.tenant == INSTALLATION or (head.tenant, head.shard) in born


async def _record(tx: Transaction, action: AuditAction, name: str) -> None:
    entry = AuditEntry(
        tenant=INSTALLATION,
        at=tx.now,
        action=action,
        object=name,
        context=RequestContext(by="operator"),
    )
    await append(tx, entry)


async def _heads(tx: Transaction) -> list[ChainHead]:
    rows = await fetch_all(tx.connection, select(AuditShardRow))
    return [
        ChainHead(row["tenant"], row["shard"], row["count"], row["last_hash"], row["mac"]) for row in rows
    ]
