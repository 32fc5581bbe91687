"""Verifies the audit log: walks every hash chain, and compares with a record remembered elsewhere."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from sqlalchemy import func, select
from sqlmodel import col

from evergrant_server.audit.erasing import is_erased
from evergrant_server.audit.hash_chain import GENESIS_HASH, ChainHead, record_hash
from evergrant_server.audit.shards import born_shards
from evergrant_server.core.audit import INSTALLATION
from evergrant_server.core.ids import Tenant
from evergrant_server.core.messages.maintenance import AuditCheckpoint
from evergrant_server.crypto import KeyRing
from evergrant_server.store import Store, Transaction
from evergrant_server.store.audit_tables import AuditRow, AuditShardRow
from evergrant_server.store.database.columns import table_of
from evergrant_server.store.database.rows import columns_equal, fetch_all, fetch_first, find_one

_STRIDE = 1_000  # records read at a time


class ShardHead(NamedTuple):
    """The length of a hash chain and the hash of its last record, to be kept outside the database."""

    count: int
    last_hash: str


@dataclass(frozen=True)
class AuditVerification:
    """`ok`, or the first bad place: shard, number and why. `heads` can be kept elsewhere."""

    ok: bool
    records: int
    shard: str | None = None
    seq: int | None = None
    problem: str | None = None
    heads: dict[str, ShardHead] = field(default_factory=dict)


class _Flaw(NamedTuple):
    seq: int
    why: str


async def verify_log(store: Store, tenant: Tenant) -> AuditVerification:
    """Check every chain of a tenant against its hashes, numbers and recorded end.

    Finds a record that was deleted, edited, moved or added by hand, a tail that was cut, a chain
    that was written anew: its end lacks our authenticator, and a shard that was deleted as a whole: the
    installation's chain, which is checked too, says that it began. It can't detect a writer of the
    database who puts an earlier state of a chain back, with the end of then. Only a copy of `heads` outside
    the database shows that: the last known head must still be in the chain. Raises Failure
    STORE_UNAVAILABLE.
    """
    verdict = await _verify_chains(store, tenant)
    if not verdict.ok:
        return verdict
    births = await _verify_chains(store, INSTALLATION)
    if not births.ok:
        why = f"which shards there are isn't known: in the installation's chain {births.problem}"
        return replace(verdict, ok=False, shard=f"{INSTALLATION}/{births.shard}", seq=births.seq, problem=why)
    async with store.read() as tx:
        born = {shard for _, shard in await born_shards(tx, tenant)}
        begun = await tx.tenants.to_change(tenant) is not None
    if not born and begun:
        born = {"main"}  # a tenant begins with a record
    wrong = sorted(born ^ verdict.heads.keys())
    if not wrong:
        return verdict
    gone = "all its records were deleted" if wrong[0] in born else "Evergrant never began this shard"
    return replace(verdict, ok=False, shard=wrong[0], seq=1, problem=gone)


async def _verify_chains(store: Store, tenant: Tenant) -> AuditVerification:
    """Whether every chain that the database has is whole."""
    heads, broken, strays = await _heads(store, tenant)
    checked = 0
    for shard, head in sorted(heads.items()):
        seen, flaw = await _walk(store, tenant, shard, head)
        checked += seen
        if flaw is None and shard in broken:
            flaw = _Flaw(head.count, "the recorded end of the chain wasn't written by Evergrant")
        if flaw is not None:
            return AuditVerification(False, checked, shard, flaw.seq, flaw.why, heads)
    for shard, newest in sorted(strays.items()):
        why = "there are records beyond the recorded end of the chain"
        return AuditVerification(False, checked, shard, newest, why, heads)
    return AuditVerification(True, checked, heads=heads)


async def _heads(store: Store, tenant: Tenant) -> tuple[dict[str, ShardHead], set[str], dict[str, int]]:
    """The recorded end of every chain, those that aren't ours, and chains whose records go beyond it, in
    one snapshot."""
    row = table_of(AuditShardRow).c
    shards = select(row.tenant, row.shard, row.count, row.last_hash, row.mac)
    newest = select(col(AuditRow.shard), func.max(col(AuditRow.seq)))
    async with store.read() as tx:
        recorded = await tx.connection.execute(shards.where(columns_equal(AuditShardRow, tenant=tenant)))
        ends_of = [ChainHead(*end) for end in recorded]
        heads = {end.shard: ShardHead(end.count, end.last_hash) for end in ends_of}
        broken = {end.shard for end in ends_of if not end.is_authentic(store.ring)}
        grouped = newest.where(columns_equal(AuditRow, tenant=tenant)).group_by(col(AuditRow.shard))
        ends = {shard: seq for shard, seq in await tx.connection.execute(grouped)}
    return (
        heads,
        broken,
        {shard: seq for shard, seq in ends.items() if shard not in heads or seq > heads[shard].count},
    )


async def _walk(store: Store, tenant: Tenant, shard: str, head: ShardHead) -> tuple[int, _Flaw | None]:
    """Check one chain up to its head; returns how many records were good, and the first flaw."""
    seen, previous = 0, GENESIS_HASH
    while True:
        span = (col(AuditRow.seq) > seen) & (col(AuditRow.seq) <= head.count)
        query = select(AuditRow).where(columns_equal(AuditRow, tenant=tenant, shard=shard), span)
        async with store.read() as tx:
            rows = await fetch_all(tx.connection, query.order_by(col(AuditRow.seq)).limit(_STRIDE))
        for row in rows:
            flaw = _flaw_of(store.ring, row, seen + 1, previous)
            if flaw is not None:
                return seen, flaw
            seen, previous = row["seq"], row["hash"]
        if len(rows) < _STRIDE:
            break
    if seen < head.count:
        return seen, _Flaw(seen + 1, f"the tail is cut: {head.count} records were committed")
    if previous != head.last_hash:
        return seen, _Flaw(seen, "the last record isn't the one that was committed last")
    return seen, None


def _flaw_of(ring: KeyRing, row: Mapping[str, Any], expected: int, previous: str) -> _Flaw | None:
    if row["seq"] != expected:
        return _Flaw(expected, "a record is missing")
    try:
        intact = is_erased(ring, row) or record_hash(row) == row["hash"]
    except (ValueError, TypeError):
        intact = False  # the detail isn't even JSON any more
    if not intact:
        return _Flaw(expected, "the record was edited or moved: its hash doesn't cover its content")
    if row["previous_hash"] != previous:
        return _Flaw(expected, "the record doesn't follow the one before it")
    return None


async def newest_checkpoint(tx: Transaction) -> AuditCheckpoint | None:
    """The newest record of any tenant's main chain; None while there is none."""
    last = (
        (col(AuditRow.tenant) == col(AuditShardRow.tenant))
        & (col(AuditRow.shard) == col(AuditShardRow.shard))
        & (col(AuditRow.seq) == col(AuditShardRow.count))
    )
    query = (
        select(col(AuditRow.tenant), col(AuditRow.seq), col(AuditRow.hash))
        .join(AuditShardRow, last)
        .where(col(AuditShardRow.shard) == "main")
        .order_by(col(AuditRow.at).desc(), col(AuditRow.tenant))
        .limit(1)
    )
    row = await fetch_first(tx.connection, query)
    return None if row is None else AuditCheckpoint.model_validate(row)


async def contains_checkpoint(tx: Transaction, checkpoint: AuditCheckpoint) -> bool:
    """False when the record isn't there, or another one is in its place."""
    row = await find_one(tx.connection, AuditRow, tenant=checkpoint.tenant, shard="main", seq=checkpoint.seq)
    return row is not None and row["hash"] == checkpoint.hash
