"""Verifies the audit log: every tree and every chain of a tenant, and which of them there are."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from sqlalchemy import func, select
from sqlmodel import col

from evergrant_server.audit.chains import ChainEnd
from evergrant_server.audit.shards import Births, Shard, births_of, ends
from evergrant_server.audit.trees import HEADS, TreeEnd, is_heads_log
from evergrant_server.audit.verification.walks import Flaw, FlawKind, ShardHead, Told, Walk
from evergrant_server.core.audit import INSTALLATION
from evergrant_server.core.ids import Tenant
from evergrant_server.core.messages.maintenance import AuditCheckpoint
from evergrant_server.store import Store, Transaction
from evergrant_server.store.audit_tables import AuditRow, AuditShardRow, AuditTreeRow
from evergrant_server.store.database.columns import table_of
from evergrant_server.store.database.rows import fetch_all, fetch_first, find_one

_AUDIT = table_of(AuditRow).c


@dataclass(frozen=True)
class AuditVerification:
    """`ok`, or the first bad place: shard, number, kind and why. `heads` can be kept elsewhere."""

    ok: bool
    records: int
    shard: str | None = None
    seq: int | None = None
    kind: FlawKind | None = None
    problem: str | None = None
    heads: dict[str, ShardHead] = field(default_factory=dict)


class _Snapshot(NamedTuple):
    """What there is of a tenant's and the installation's log at one moment."""

    ends: Mapping[Shard, TreeEnd | ChainEnd]
    spans: Mapping[Shard, tuple[int, int]]  # the first and the last number of the records of each shard
    births: Births  # as columns have them
    has_begun: bool


async def verify_log(store: Store, tenant: Tenant) -> AuditVerification:
    """Check every tree of a tenant against its leaves, numbers, heads and recorded end, and the chains of
    before.

    Finds a record that was deleted, edited, moved or added by hand, a tail that was cut, a tree that was
    written anew: its end lacks our authenticator; and a shard that was deleted as a whole: the heads log of
    the installation, which is checked first, says that it began, and which root it had at which size. It
    can't detect a writer of the database who puts an earlier state of the whole log back. A checkpoint, or
    `heads`, kept outside the database shows that. Raises Failure STORE_UNAVAILABLE.
    """
    snapshot = await _snapshot(store, tenant)
    log = snapshot.ends.get((INSTALLATION, HEADS))
    heads_size = log.size if isinstance(log, TreeEnd) else 0
    walk = Walk(store, Told(frozenset((tenant, INSTALLATION)), set(), {}), heads_size)
    verdict = await _shards_of(walk, snapshot, INSTALLATION)
    if tenant == INSTALLATION:
        return verdict
    if not verdict.ok:
        why = f"which shards there are isn't known: in the installation's log {verdict.problem}"
        return replace(verdict, shard=f"{INSTALLATION}/{verdict.shard}", problem=why)
    return await _shards_of(walk, snapshot, tenant)


async def _shards_of(walk: Walk, snapshot: _Snapshot, tenant: Tenant) -> AuditVerification:
    """Whether every tree and chain of the tenant is whole, and each that began is there."""
    shards = {shard: end for (of, shard), end in snapshot.ends.items() if of == tenant}
    heads = {shard: _head_of(end) for shard, end in shards.items()}
    checked = 0
    for shard in sorted(shards, key=lambda shard: (not is_heads_log(tenant, shard), shard)):
        end = shards[shard]
        seen, flaw = await (walk.tree(end) if isinstance(end, TreeEnd) else walk.chain(end))
        checked += seen
        flaw = flaw or _beyond(end, snapshot.spans.get((tenant, shard)))
        if flaw is not None:
            return AuditVerification(False, checked, shard, *flaw, heads)
    wrong = _wrong_shard(walk.told, snapshot, tenant)
    if wrong is not None:
        shard, flaw = wrong
        return AuditVerification(False, checked, shard, *flaw, heads)
    return AuditVerification(True, checked, heads=heads)


def _head_of(end: TreeEnd | ChainEnd) -> ShardHead:
    if isinstance(end, TreeEnd):
        return ShardHead(end.size, end.frontier.root.hex())
    return ShardHead(end.count, end.last_hash)


def _beyond(end: TreeEnd | ChainEnd, span: tuple[int, int] | None) -> Flaw | None:
    """A record before the first, or beyond the recorded end."""
    if span is None:
        return None
    first, last = (0, end.size - 1) if isinstance(end, TreeEnd) else (1, end.count)
    if span[0] < first:
        return Flaw(span[0], FlawKind.ADDED, "there are records before the first")
    if span[1] > last:
        return Flaw(span[1], FlawKind.ADDED, "there are records beyond the recorded end")
    return None


def _wrong_shard(told: Told, snapshot: _Snapshot, tenant: Tenant) -> tuple[str, Flaw] | None:
    """The first shard that has no end, that is missing, that Evergrant never began, or that isn't as it
    ended."""
    for of, shard in sorted(snapshot.spans.keys() - snapshot.ends.keys()):
        if of == tenant:
            last = snapshot.spans[of, shard][1]
            return shard, Flaw(last, FlawKind.ADDED, "there are records beyond the recorded end: it has none")
    ends_of = {name: end for name, end in snapshot.ends.items() if name[0] == tenant}
    known = {name for name in ends_of if not is_heads_log(*name)}
    born = {name for name in told.births | snapshot.births.born.keys() if name[0] == tenant}
    born -= snapshot.births.lost
    if tenant == INSTALLATION:  # the births of its chains were never recorded
        born |= {name for name in known if isinstance(ends_of[name], ChainEnd)}
    elif not born and snapshot.has_begun:
        why = "the tenant has begun, and no shard of it is known"
        return f"{INSTALLATION}/{HEADS}", Flaw(0, FlawKind.GONE, why)
    for name in sorted(born ^ known):
        if name in born:
            return name[1], Flaw(0, FlawKind.GONE, "all its records were deleted")
        return name[1], Flaw(0, FlawKind.UNKNOWN, "Evergrant never began this shard")
    for name, ended in sorted(told.chains.items()):
        if name in ends_of and _head_of(ends_of[name]) != ended:
            why = f"the chain had {ended.size} records when it was closed"
            return name[1], Flaw(ended.size, FlawKind.FORGED_END, why)
    return None


async def _snapshot(store: Store, tenant: Tenant) -> _Snapshot:
    tenants = (tenant, INSTALLATION)
    spans = select(
        _AUDIT.tenant, _AUDIT.shard, func.min(_AUDIT.seq).label("first"), func.max(_AUDIT.seq).label("last")
    )
    spans = spans.where(_AUDIT.tenant.in_(tenants)).group_by(_AUDIT.tenant, _AUDIT.shard)
    async with store.read() as tx:
        shards = {(Tenant(end.tenant), end.shard): end for end in await ends(tx, tenants)}
        rows = await fetch_all(tx.connection, spans)
        births = await births_of(tx, tenant)
        lost = (await births_of(tx, INSTALLATION)).lost | births.lost
        has_begun = await tx.tenants.to_change(tenant) is not None
    numbers = {(Tenant(row["tenant"]), row["shard"]): (row["first"], row["last"]) for row in rows}
    return _Snapshot(shards, numbers, Births(births.born, lost), has_begun)


async def newest_checkpoint(tx: Transaction) -> AuditCheckpoint | None:
    """The newest record of any tenant that a process but a gateway wrote, its leases aside; None while there
    is none."""
    for table, is_last in (
        (AuditTreeRow, _AUDIT.seq == col(AuditTreeRow.size) - 1),
        (AuditShardRow, _AUDIT.seq == col(AuditShardRow.count)),
    ):
        shard = table_of(table).c
        last = (_AUDIT.tenant == shard.tenant) & (_AUDIT.shard == shard.shard) & is_last
        query = (
            select(_AUDIT.tenant, _AUDIT.shard, _AUDIT.seq, _AUDIT.leaf)
            .join(table_of(table), last)
            .where(shard.shard.like("main%"))
            .order_by(_AUDIT.at.desc(), _AUDIT.tenant)
            .limit(1)
        )
        row = await fetch_first(tx.connection, query)
        if row is not None:
            place = {name: row[name] for name in ("tenant", "shard", "seq")}
            return AuditCheckpoint(**place, hash=row["leaf"].hex())
    return None


async def contains_checkpoint(tx: Transaction, checkpoint: AuditCheckpoint) -> bool:
    """False when the record isn't there, or another one is in its place."""
    place = {"tenant": checkpoint.tenant, "shard": checkpoint.shard, "seq": checkpoint.seq}
    row = await find_one(tx.connection, AuditRow, **place)
    return row is not None and row["leaf"].hex() == checkpoint.hash
