"""Records in Merkle trees, one per tenant and shard: hashed before the lock, appended in order under it.

The end of a tree has an authenticator: one that was cut or rewritten has none of ours. The heads log of the
installation says which trees there are: the transaction that begins one appends its head of size 0.
"""

import hmac
import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import bindparam, case, exists, func, select, text, update

from evergrant_server.audit.bodies import Head, body_of, record_of
from evergrant_server.audit.merkle_tree import EMPTY_ROOT, Frontier, leaf_hash
from evergrant_server.audit.publishing import publish_events
from evergrant_server.core.audit import INSTALLATION, AuditAction, AuditEntry, AuditRecord
from evergrant_server.core.errors import Failure
from evergrant_server.core.ids import Tenant
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.crypto import KeyRing, Role
from evergrant_server.store import Transaction
from evergrant_server.store.audit_tables import (
    END_ACTIONS,
    END_CONDITION,
    LEASE_ACTIONS,
    AuditRow,
    AuditShardRow,
    AuditTreeRow,
)
from evergrant_server.store.authority.authenticators import authority_broken
from evergrant_server.store.database.columns import table_of
from evergrant_server.store.database.rows import Values, change, columns_equal, fetch_all, fetch_first, insert
from evergrant_server.store.webhooks import WebhookRow
from evergrant_server.telemetry.alarms import report_broken_authority

HEADS = "heads"  # the installation's shard of heads, and behind `gateway-` that of a gateway's births
_GATEWAY = "gateway"
_WRITERS = 8
_WRITER = secrets.randbelow(_WRITERS)  # of this process
_TICK = timedelta(microseconds=1)


def main_shard(role: Role) -> str:
    """The shard of all records of this process but its leases: processes don't wait for each other, and no
    transaction locks two trees of a tenant. A gateway's are apart: its key makes no other end."""
    return f"{_GATEWAY if role is Role.GATEWAY else 'main'}-{_WRITER}"


def heads_shard(role: Role) -> str:
    """The installation's shard in which this role records that trees begin."""
    return f"{_GATEWAY}-{HEADS}" if role is Role.GATEWAY else HEADS


def is_of_gateways(shard: str) -> bool:
    return shard.partition("-")[0] == _GATEWAY


def is_heads_log(tenant: str, shard: str) -> bool:
    return tenant == INSTALLATION and shard in (HEADS, f"{_GATEWAY}-{HEADS}")


class TreeEnd(NamedTuple):
    """The end of the tree of (tenant, shard): the next record has the number `size`."""

    tenant: str
    shard: str
    size: int
    peaks: bytes
    mac: str | None

    @classmethod
    def first(cls, ring: KeyRing, tenant: str, shard: str) -> "TreeEnd":
        empty = cls(tenant, shard, 0, b"", None)
        return empty._replace(mac=empty.made(ring))

    @property
    def name(self) -> str:
        return f"{self.tenant}/{self.shard}"

    @property
    def frontier(self) -> Frontier:
        return Frontier(self.size, self.peaks)

    def made(self, ring: KeyRing) -> str:
        """The authenticator that this end should have."""
        purpose = "audit head gateway" if is_of_gateways(self.shard) else "audit head"
        return ring.keyed_hash(purpose, "tree", self.tenant, self.shard, self.size, self.peaks.hex())

    def is_authentic(self, ring: KeyRing) -> bool:
        return self.mac is not None and hmac.compare_digest(self.made(ring), self.mac)

    def appended(self, ring: KeyRing, leaves: Sequence[bytes], *, authentic: bool = True) -> "TreeEnd":
        """The new end. Behind one that isn't authentic it has no authenticator: that stays visible."""
        size, peaks = self.frontier.appended(leaves)
        after = self._replace(size=size, peaks=peaks, mac=None)
        return after._replace(mac=after.made(ring)) if authentic else after

    @property
    def broken(self) -> Failure:
        """The failure that names it."""
        return authority_broken("audit_tree", self.name)


_TREES, _AUDIT = table_of(AuditTreeRow), table_of(AuditRow)
_ADD_RECORD = _AUDIT.insert()
_MOVE_END = (
    update(_TREES)
    .where(_TREES.c.tenant == bindparam("of_tenant"), _TREES.c.shard == bindparam("of_shard"))
    .values(
        size=bindparam("size"),
        peaks=bindparam("peaks"),
        mac=bindparam("mac"),
        filed=case((_TREES.c.filed == _TREES.c.size, bindparam("filed_to")), else_=_TREES.c.filed),
        revision=_TREES.c.revision + 1,
    )
)
_LOCK_END = (
    select(
        _TREES.c.size,
        _TREES.c.peaks,
        _TREES.c.mac,
        exists()
        .where(columns_equal(WebhookRow, tenant=bindparam("tenant"), disabled_by=None))
        .label("has_webhooks"),
    )
    .where(_TREES.c.tenant == bindparam("tenant"), _TREES.c.shard == bindparam("shard"))
    .with_for_update()
)
_LAST_END = select(func.max(_AUDIT.c.at).label("at")).where(
    _AUDIT.c.tenant == bindparam("tenant"), _AUDIT.c.object == bindparam("object"), text(END_CONDITION)
)
_LAST_RECORD = select(_AUDIT.c.at).where(
    *(_AUDIT.c[name] == bindparam(name) for name in ("tenant", "shard", "seq"))
)


async def append(tx: Transaction, entry: AuditEntry, *, shard: str | None = None) -> AuditRecord:
    """As `append_all`, for one entry: its record."""
    (row,) = await append_all(tx, [entry], shard=shard)
    return record_of(row)


async def append_all(
    tx: Transaction, entries: Sequence[AuditEntry], *, shard: str | None = None
) -> list[Values]:
    """Add records of one tenant to its tree in `shard` (None: the one of this process), committed or
    rolled back with `tx`, and write the webhook events that follow from them. Returns their rows.

    Change the rows first and append last: from here to the commit the tree is locked, and
    writers that lock a tree before a row would wait for each other crosswise.

    A broken end stops no record, for a revocation must be recorded: it raises an alarm each time.

    Raises TypeError when a detail holds what JSON can't say: a Secret never gets in.
    """
    (tenant,) = {entry.tenant for entry in entries}
    shard = shard or main_shard(tx.sealer.ring.role)
    entries = await _in_order(tx, entries)
    bodies = [body_of(entry) for entry in entries]
    rows = [_row(entry, body) for entry, body in zip(entries, bodies, strict=True)]
    end, has_webhooks = await _locked_end(tx, tenant, shard, entries[0].at)
    await _append(tx, end, rows)
    if has_webhooks:
        for entry in entries:
            await publish_events(tx, entry)
    return rows


async def begin_tree(tx: Transaction, tenant: str, shard: str) -> None:
    """Begin the tree of a shard, and record that in the heads log, unless it has begun."""
    await _locked_end(tx, tenant, shard, tx.now)


async def append_heads(tx: Transaction, heads: Sequence[Head], *, begun: bool = False) -> None:
    """Add heads to the heads log. `begun`: they are the first of their trees there.

    In the order of the log their moments ascend, so that the heads of one tree are read by the index.
    """
    shard = heads_shard(tx.sealer.ring.role)
    end = await lock_heads(tx)
    if end.size:
        place = {"tenant": INSTALLATION, "shard": shard, "seq": end.size - 1}
        last = await fetch_first(tx.connection, _LAST_RECORD, place)
        at = heads[0].at if last is None else max(heads[0].at, last["at"] + _TICK)
        heads = [head._replace(at=max(head.at, at + number * _TICK)) for number, head in enumerate(heads)]
    action = AuditAction.SHARD_BEGUN if begun else AuditAction.HEAD_RECORDED
    await _append(tx, end, [_head_row(head, action) for head in heads])


async def lock_heads(tx: Transaction) -> TreeEnd:
    """The end of this role's heads log, locked until the transaction ends. What is read of trees after this
    is at least as new as all heads in the log."""
    end, _ = await _locked_end(tx, INSTALLATION, heads_shard(tx.sealer.ring.role), tx.now)
    return end


async def _append(tx: Transaction, end: TreeEnd, rows: Sequence[Values]) -> None:
    """Write the rows behind this end, which is locked; they get their places."""
    authentic = end.is_authentic(tx.sealer.ring)
    if not authentic:
        report_broken_authority(end.broken)
    for seq, row in enumerate(rows, end.size):
        row |= {"tenant": end.tenant, "shard": end.shard, "seq": seq}
    if len(rows) == 1:
        await change(tx.connection, _ADD_RECORD, rows[0])
    else:
        await tx.connection.execute(_ADD_RECORD, rows)
    after = end.appended(tx.sealer.ring, [row["leaf"] for row in rows], authentic=authentic)
    has_leases = any(row["action"] in LEASE_ACTIONS for row in rows)
    moved = {"size": after.size, "peaks": after.peaks, "mac": after.mac}
    moved["filed_to"] = end.size if has_leases else after.size
    await change(tx.connection, _MOVE_END, {"of_tenant": end.tenant, "of_shard": end.shard, **moved})


def _row(entry: AuditEntry, body: str) -> Values:
    """The row of a record, but its place."""
    columns = {"at": entry.at, "action": entry.action.value, "object": entry.object}
    leaf = leaf_hash(body.encode())
    return {**columns, "body": body, "leaf": leaf, "erased_mac": None, "revision": 1}


def _head_row(head: Head, action: AuditAction) -> Values:
    columns = {"at": head.at, "action": action.value, "object": head.name}
    leaf = leaf_hash(head.body.encode())
    return {**columns, "body": head.body, "leaf": leaf, "erased_mac": None, "revision": 1}


async def _in_order(tx: Transaction, entries: Sequence[AuditEntry]) -> list[AuditEntry]:
    """The entries, each that ends something behind all earlier ends of its object, whatever the clocks of
    their writers say: the last one counts (`store.revived_rows`), and they stand in several trees."""
    last: dict[str, datetime] = {}
    ordered: list[AuditEntry] = []
    for entry in entries:
        if entry.action in END_ACTIONS:
            if entry.object not in last:
                of_object = {"tenant": entry.tenant, "object": entry.object}
                row = await fetch_first(tx.connection, _LAST_END, of_object)
                if row is not None and row["at"] is not None:
                    last[entry.object] = row["at"]
            at = entry.at
            if entry.object in last:
                at = max(at, last[entry.object] + _TICK)
            last[entry.object] = at
            ordered.append(entry if at == entry.at else entry.__replace__(at=at))
        else:
            ordered.append(entry)
    return ordered


async def _locked_end(tx: Transaction, tenant: str, shard: str, at: datetime) -> tuple[TreeEnd, bool]:
    """The end of the tree, and whether the tenant has a webhook.

    The end's row is locked until the transaction ends, so that numbers have no gaps. (SQLite's write
    transaction locks all.)
    """
    which = {"tenant": tenant, "shard": shard}
    row = await fetch_first(tx.connection, _LOCK_END, which)
    if row is None:
        first = TreeEnd.first(tx.sealer.ring, tenant, shard)
        # the record of its birth is its first head
        begun = {**first._asdict(), "filed": 0, "grown": False, "revision": 1}
        if await insert(tx.connection, AuditTreeRow, begun):
            await _record_birth(tx, tenant, shard, at)
        row = await fetch_first(tx.connection, _LOCK_END, which)
        assert row is not None
    return TreeEnd(tenant, shard, row["size"], row["peaks"], row["mac"]), bool(row["has_webhooks"])


async def _record_birth(tx: Transaction, tenant: str, shard: str, at: datetime) -> None:
    """Record the new tree in the heads log, and as first records of a tenant's first tree how its chains
    have ended."""
    if not is_heads_log(tenant, shard):
        await append_heads(tx, [Head(Tenant(tenant), shard, 0, EMPTY_ROOT, at)], begun=True)
    of_tenant = columns_equal(AuditShardRow, tenant=tenant)
    chains = await fetch_all(tx.connection, select(AuditShardRow).where(of_tenant))
    trees = await fetch_all(tx.connection, select(_TREES.c.shard).where(_TREES.c.tenant == tenant))
    if not chains or any(not is_heads_log(tenant, row["shard"]) and row["shard"] != shard for row in trees):
        return
    if is_heads_log(tenant, shard):
        shard = main_shard(tx.sealer.ring.role)  # whose own birth stands in the heads log
        await _locked_end(tx, tenant, shard, at)
        return
    ends = [
        AuditEntry(
            tenant=Tenant(tenant),
            at=at,
            action=AuditAction.CHAIN_ENDED,
            object=row["shard"],
            context=RequestContext(by=tx.sealer.ring.role),
            detail={"count": row["count"], "last_hash": row["last_hash"]},
        )
        for row in chains
    ]
    await append_all(tx, ends, shard=shard)
