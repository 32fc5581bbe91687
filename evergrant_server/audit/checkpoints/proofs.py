"""Proofs of the log's trees: that a tree has a record, and that a newer tree appends to an older one.

They are made of hashes: leaves (level 0) stand beside their records, each level above is written when the
level below has 256 more. Where that isn't done yet the reader does it.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sqlalchemy import select
from sqlmodel import col

from evergrant_server.audit.appending import HEADS
from evergrant_server.audit.checkpoints.notes import HEADS_LOG, TreeName
from evergrant_server.audit.merkle_tree import (
    TILE_WIDTH,
    TileSlice,
    consistency_path,
    inclusion_path,
    node_hash,
    roots,
    slices,
    tile_root,
)
from evergrant_server.core.audit import INSTALLATION
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.ids import Tenant
from evergrant_server.core.messages.maintenance import AuditCheckpoint
from evergrant_server.store import Store, Transaction
from evergrant_server.store.audit.checkpoints import LogKey, SignedTree
from evergrant_server.store.audit_tables import AuditRow, AuditShardRow, AuditTreeRow
from evergrant_server.store.authority.authenticators import authority_broken
from evergrant_server.store.database.columns import table_of
from evergrant_server.store.database.rows import fetch_first, find_one

_AUDIT = table_of(AuditRow).c
_AT_ONCE = 32  # nodes of a transaction, each of 256 hashes

Path = Sequence[bytes]


class Proven(NamedTuple):
    """A record of a tree that the log has signed, and the path to its root."""

    name: TreeName
    index: int
    body: str | None  # None: erased
    leaf: bytes
    path: Path
    tree: SignedTree


class Receipt(NamedTuple):
    """A record with the proof of its place, and its shard's head with the proof of its own."""

    key: LogKey
    record: Proven
    head: Proven


class Extension(NamedTuple):
    """The newest checkpoint, and the path that shows that it extends an older one."""

    key: LogKey
    checkpoint: SignedTree
    path: Path


async def receipt(tx: Transaction, tenant: Tenant, shard: str, index: int) -> Receipt | None:
    """The receipt of a record; None while no checkpoint covers it, or when there is no such record.

    Raises Failure AUTHORITY_BROKEN when what is stored doesn't lead to what was signed.
    """
    key, head = await tx.checkpoints.key(), await tx.checkpoints.head(tenant, shard)
    if key is None or head is None or index >= head.tree.size:
        return None
    tree = await tx.checkpoints.covering(head.place)
    if tree is None:
        return None
    record = await _proven(tx, (tenant, shard), TreeName(tenant, shard), index, head.tree)
    return Receipt(key, record, await _proven(tx, (INSTALLATION, HEADS), HEADS_LOG, head.place, tree))


async def extension(tx: Transaction, older: int) -> Extension | None:
    """The newest checkpoint with the proof that it extends the heads log of `older` records; None when the
    log is smaller, or no worker has signed it yet."""
    key, newest = await tx.checkpoints.key(), await tx.checkpoints.newest()
    if key is None or newest is None or newest.tree.size < older:
        return None
    return Extension(key, newest.tree, await extension_path(tx, older, newest.tree.size))


async def extension_path(tx: Transaction, older: int, newer: int) -> Path:
    """That the heads log of `newer` records extends that of `older` ones. Raises Failure AUTHORITY_BROKEN."""
    subtrees = consistency_path(older, newer)
    hashes = _Hashes(tx, INSTALLATION, HEADS)
    await hashes.load(slices(subtrees))
    return roots(subtrees, hashes.read)


# --- what is kept in Temporal -----------------------------------------------------------


async def newest_checkpoint(tx: Transaction) -> AuditCheckpoint | None:
    """The newest record of any tenant that a process but a gateway wrote, its leases aside, and the newest
    checkpoint that the log has signed; None while there is no record."""
    newest = await tx.checkpoints.newest()
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
            note = None if newest is None else newest.tree.note
            return AuditCheckpoint(**place, hash=row["leaf"].hex(), note=note)
    return None


async def contains_checkpoint(tx: Transaction, checkpoint: AuditCheckpoint) -> bool:
    """False when the record isn't there, or another one is in its place; and when the heads log doesn't
    extend what it had signed."""
    place = {"tenant": checkpoint.tenant, "shard": checkpoint.shard, "seq": checkpoint.seq}
    row = await find_one(tx.connection, AuditRow, **place)
    if row is None or row["leaf"].hex() != checkpoint.hash:
        return False
    return checkpoint.note is None or await log_extends(tx, checkpoint.note)


async def log_extends(tx: Transaction, note: str) -> bool:
    """Whether the heads log begins with the tree of this checkpoint of its own."""
    try:
        signed = SignedTree(int(note.split("\n")[1]), note, b"")
        log = await find_one(tx.connection, AuditTreeRow, tenant=INSTALLATION, shard=HEADS)
        if log is None or log["size"] < signed.size:
            return False
        whole, hashes = [(0, signed.size)], _Hashes(tx, INSTALLATION, HEADS)
        await hashes.load(slices(whole))
        return roots(whole, hashes.read) == [signed.root]
    except (ValueError, IndexError):
        return False
    except Failure as failure:  # a record is missing
        if failure.code is not ErrorCode.AUTHORITY_BROKEN:
            raise
        return False


async def fill_nodes(store: Store, tenant: str, shard: str) -> None:
    """Write the nodes that the tree's levels have room for, each level above the one below."""
    level, wrote = 1, True
    while wrote:
        wrote = False
        while await _fill_some(store, tenant, shard, level):
            wrote = True
        async with store.read() as tx:
            wrote = wrote or await tx.checkpoints.count_nodes(tenant, shard, level) >= TILE_WIDTH
        level += 1


async def _fill_some(store: Store, tenant: str, shard: str, level: int) -> bool:
    """Write the next nodes of a level; False when the level below has too few hashes for one."""
    async with store.read() as tx:
        first = await tx.checkpoints.count_nodes(tenant, shard, level)
        start, most = first * TILE_WIDTH, _AT_ONCE * TILE_WIDTH
        below = await tx.checkpoints.nodes(tenant, shard, level - 1, start, start + most)
    hashes = [below[number] for number in range(start, start + len(below)) if number in below]
    tiles = [hashes[at : at + TILE_WIDTH] for at in range(0, len(hashes), TILE_WIDTH)]
    nodes = [tile_root(b"".join(tile)) for tile in tiles if len(tile) == TILE_WIDTH]
    if nodes:
        async with store.write() as tx:
            await tx.checkpoints.add_nodes(tenant, shard, level, first, nodes)
    return bool(nodes)


async def _proven(
    tx: Transaction, place: tuple[str, str], name: TreeName, index: int, tree: SignedTree
) -> Proven:
    """Raises Failure AUTHORITY_BROKEN."""
    subtrees = inclusion_path(index, tree.size)
    hashes = _Hashes(tx, *place)
    await hashes.load(slices(subtrees))
    path = roots(subtrees, hashes.read)
    record = await tx.checkpoints.record(*place, index)
    if record is None:
        raise authority_broken("audit", f"{'/'.join(place)}/{index}", "and is missing from the audit log")
    body, leaf = record
    if _root(leaf, index, tree.size, path) != tree.root:
        raise authority_broken("audit", f"{'/'.join(place)}/{index}", "or a record beside it was edited")
    return Proven(name, index, body, leaf, path, tree)


def _root(leaf: bytes, index: int, size: int, path: Path) -> bytes:
    """The root that the path leads to (RFC 9162 section 2.1.3.2)."""
    place, last, root = index, size - 1, leaf
    for sibling in path:
        if place & 1 or place == last:
            root = node_hash(sibling, root)
            while place and not place & 1:
                place, last = place >> 1, last >> 1
        else:
            root = node_hash(root, sibling)
        place, last = place >> 1, last >> 1
    return root


class _Hashes:
    """Hashes of one tree, read before a proof is made of them."""

    def __init__(self, tx: Transaction, tenant: str, shard: str) -> None:
        self._tx, self._tenant, self._shard = tx, tenant, shard
        self._levels: defaultdict[int, dict[int, bytes]] = defaultdict(dict)

    async def load(self, parts: Iterable[TileSlice]) -> None:
        """Raises Failure AUTHORITY_BROKEN for a hash that isn't there, nor those that it is made of."""
        wanted: defaultdict[tuple[int, int], set[int]] = defaultdict(set)
        for level, first, count in parts:
            for number in range(first, first + count):
                wanted[level, number // TILE_WIDTH].add(number)
        for (level, _), numbers in wanted.items():
            await self._load(level, min(numbers), max(numbers) + 1)

    def read(self, part: TileSlice) -> bytes:
        level = self._levels[part.level]
        return b"".join(level[number] for number in range(part.first, part.first + part.count))

    async def _load(self, level: int, first: int, end: int) -> None:
        hashes = self._levels[level]
        hashes |= await self._tx.checkpoints.nodes(self._tenant, self._shard, level, first, end)
        for number in range(first, end):
            if number not in hashes:
                hashes[number] = await self._made(level, number)

    async def _made(self, level: int, number: int) -> bytes:
        """A node that isn't written yet."""
        if level == 0:
            place = f"{self._tenant}/{self._shard}/{number}"
            raise authority_broken("audit", place, "and is missing from the audit log")
        start = number * TILE_WIDTH
        await self._load(level - 1, start, start + TILE_WIDTH)
        below = self._levels[level - 1]
        return tile_root(b"".join(below[child] for child in range(start, start + TILE_WIDTH)))
