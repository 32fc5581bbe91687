"""Walks one tree or one chain of the audit log from its beginning to its end, and says where it is wrong.

Memory stays the same however long it is: one page of records, the frontier of their tree, and the hashes of
the tiles that aren't full.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

from sqlalchemy import select, text, tuple_

from evergrant_server.audit.bodies import Head, beginning, format_timestamp
from evergrant_server.audit.chains import GENESIS_HASH, ChainEnd, link_of
from evergrant_server.audit.erasing import is_erased
from evergrant_server.audit.shards import Shard
from evergrant_server.audit.tree import HASH_BYTES, TILE_WIDTH, Frontier, leaf_hash, tile_root
from evergrant_server.audit.trees import HEADS, TreeEnd, is_heads_log, is_of_gateways
from evergrant_server.core.audit import INSTALLATION, AuditAction
from evergrant_server.core.ids import Tenant
from evergrant_server.store import Store
from evergrant_server.store.audit_tables import (
    NO_LEASE_CONDITION,
    AuditNodeRow,
    AuditRow,
    AuditTreeRow,
    detail_of,
)
from evergrant_server.store.database.columns import table_of
from evergrant_server.store.database.rows import fetch_all, fetch_first

_STRIDE = 4_096  # records read at a time
_AUDIT, _NODES, _TREES = table_of(AuditRow).c, table_of(AuditNodeRow).c, table_of(AuditTreeRow).c
_READ = [
    _AUDIT[name]
    for name in ("tenant", "shard", "seq", "at", "action", "object", "body", "leaf", "erased_mac")
]
_COPY_EDITED = "the record was edited: its row says otherwise than its body"
_TILE_BITS = TILE_WIDTH.bit_length() - 1
_Nodes = dict[tuple[int, int], bytes]  # hashes by level and number


class FlawKind(StrEnum):
    """What is wrong at a place of the log."""

    EDITED = "edited"  # a record isn't what was hashed, or its row says otherwise than its body
    MISSING = "missing"  # no record has the number
    CUT = "cut"  # the tail is gone
    ADDED = "added"  # beyond the end
    REPLACED = "replaced"  # one of some records was swapped, renumbered or hashed anew
    FORGED_END = "forged end"
    FORGED_HEAD = "forged head"
    FORGED_NODE = "forged node"
    GONE = "gone"  # a shard with its end
    UNKNOWN = "unknown"  # a shard that Evergrant never began


class ShardHead(NamedTuple):
    """The size of a tree and its root in hex, to be kept outside the database; of a chain its length and its
    last hash."""

    size: int
    root: str


class Flaw(NamedTuple):
    seq: int
    kind: FlawKind
    why: str


class Told(NamedTuple):
    """What records that are good by themselves say of the shards of these tenants."""

    tenants: frozenset[str]
    births: set[Shard]
    chains: dict[Shard, ShardHead]  # how each chain has ended


class Walk:
    """The passes over shards, as long as the heads log was at the beginning. `told` grows with each."""

    def __init__(self, store: Store, told: Told, heads_size: int) -> None:
        self._store, self.told, self._heads_size = store, told, heads_size

    async def tree(self, end: TreeEnd) -> tuple[int, Flaw | None]:
        """Check one tree up to its end; returns how many records were good, and the first flaw."""
        frontier, tiles, good = Frontier(), _Tiles(), 0
        heads = self._heads_of(end)
        head = await anext(heads, None)
        async for rows in self._pages(end, end.size):
            flaw = next(filter(None, map(self._record_flaw, rows, range(frontier.size, end.size))), None)
            if flaw is not None:
                return flaw.seq, flaw
            leaves = [row["leaf"] for row in rows]
            full = tiles.appended(leaves)
            while head is not None and head.size <= frontier.size + len(leaves):
                count = head.size - frontier.size
                if count < 0:
                    why = f"a head of {head.size} records is recorded behind one of {frontier.size}"
                    return good, Flaw(head.size, FlawKind.FORGED_HEAD, why)
                frontier, leaves = frontier.appended(leaves[:count]), leaves[count:]
                if frontier.root != head.root:
                    return good, _replaced(good, head.size)
                good, head = head.size, await anext(heads, None)
            frontier = frontier.appended(leaves)
            forged = await self._forged_node(end, full)
            if forged is not None:
                return frontier.size, forged
        return frontier.size, await self._end_flaw(end, frontier, good, head)

    async def _end_flaw(self, end: TreeEnd, frontier: Frontier, good: int, head: Head | None) -> Flaw | None:
        """A flaw of the end, once all records before it are good by themselves, and the first `good` by a
        head. `head` is one of a larger tree."""
        if frontier.size < end.size:
            why = f"the tail is cut: {end.size} records were committed"
            return Flaw(frontier.size, FlawKind.CUT, why)
        if head is not None:
            why = f"the tail is cut with the recorded end: by the heads log there were {head.size} records"
            return Flaw(end.size, FlawKind.CUT, why)
        if not end.is_authentic(self._store.ring):
            why = "the recorded end of the tree wasn't written by Evergrant"
            return Flaw(max(end.size - 1, 0), FlawKind.FORGED_END, why)
        if frontier.peaks != end.peaks:
            return _replaced(*_differing(frontier, end.frontier, good))
        return await self._node_beyond(end)

    def _record_flaw(self, row: Mapping[str, Any], number: int) -> Flaw | None:
        if row["seq"] != number:
            return Flaw(number, FlawKind.MISSING, "a record is missing")
        body: str | None = row["body"]
        if body is None:
            why = "the record was erased, and not by Evergrant"
            return None if is_erased(self._store.ring, row) else Flaw(number, FlawKind.EDITED, why)
        if row["erased_mac"] is not None or leaf_hash(body.encode()) != row["leaf"]:
            return Flaw(number, FlawKind.EDITED, "the record was edited: its leaf doesn't cover its body")
        if is_heads_log(row["tenant"], row["shard"]):
            return self._head_flaw(row, body)
        if not body.startswith(beginning(format_timestamp(row["at"]), row["action"], row["object"])):
            return Flaw(number, FlawKind.EDITED, _COPY_EDITED)
        if row["action"] == AuditAction.CHAIN_ENDED:
            detail = detail_of(body)
            ended = ShardHead(detail["count"], detail["last_hash"])
            self.told.chains[Tenant(row["tenant"]), row["object"]] = ended
        return None

    def _head_flaw(self, row: Mapping[str, Any], body: str) -> Flaw | None:
        try:
            head = Head.parse(body)
        except ValueError:
            return Flaw(row["seq"], FlawKind.FORGED_HEAD, "the record is no head")
        if is_of_gateways(row["shard"]) and not is_of_gateways(head.shard):
            return Flaw(row["seq"], FlawKind.FORGED_HEAD, f"a gateway doesn't begin {head.name}")
        is_birth = row["action"] == AuditAction.SHARD_BEGUN
        action = AuditAction.SHARD_BEGUN if is_birth or head.size == 0 else AuditAction.HEAD_RECORDED
        if (row["object"], row["at"], row["action"]) != (head.name, head.at, action):
            return Flaw(row["seq"], FlawKind.EDITED, _COPY_EDITED)
        if head.tenant in self.told.tenants:
            self.told.births.add((head.tenant, head.shard))
        return None

    async def _heads_of(self, end: TreeEnd) -> AsyncGenerator[Head]:
        """The heads of this tree in the heads log as the snapshot has it, by their size."""
        order = (_AUDIT.at, _AUDIT.seq)
        query = select(_AUDIT.at, _AUDIT.seq, _AUDIT.body).where(
            _AUDIT.tenant == INSTALLATION, _AUDIT.object == end.name, _AUDIT.shard == HEADS
        )
        query = (
            query.where(text(NO_LEASE_CONDITION), _AUDIT.seq < self._heads_size)
            .order_by(*order)
            .limit(_STRIDE)
        )
        page = query
        while True:
            async with self._store.read() as tx:
                rows = await fetch_all(tx.connection, page)
            for row in rows:
                yield Head.parse(row["body"])
            if len(rows) < _STRIDE:
                return
            types = [column.type for column in order]
            page = query.where(tuple_(*order) > tuple_(rows[-1]["at"], rows[-1]["seq"], types=types))

    async def _pages(self, end: TreeEnd | ChainEnd, until: int) -> AsyncGenerator[list[dict[str, Any]]]:
        """The records of a shard before number `until`, page by page, from 0 or 1 on."""
        last = -1 if isinstance(end, TreeEnd) else 0
        query = select(*_READ).where(
            _AUDIT.tenant == end.tenant, _AUDIT.shard == end.shard, _AUDIT.seq < until
        )
        while True:
            async with self._store.read() as tx:
                page = query.where(_AUDIT.seq > last).order_by(_AUDIT.seq).limit(_STRIDE)
                rows = await fetch_all(tx.connection, page)
            if rows:
                yield rows
                last = rows[-1]["seq"]
            if len(rows) < _STRIDE:
                return

    # --- tiles ---------------------------------------------------------------------------

    async def _forged_node(self, end: TreeEnd, full: _Nodes) -> Flaw | None:
        """The first stored hash of these full tiles that isn't theirs. Not all are stored yet."""
        if not full:
            return None
        query = select(_NODES.level, _NODES.number, _NODES.hash).where(
            _NODES.tenant == end.tenant,
            _NODES.shard == end.shard,
            tuple_(_NODES.level, _NODES.number).in_(list(full)),
        )
        async with self._store.read() as tx:
            rows = await fetch_all(tx.connection, query.order_by(_NODES.level, _NODES.number))
        for row in rows:
            if row["hash"] != full[row["level"], row["number"]]:
                return _node_flaw(row["level"], row["number"], "isn't that of its tile")
        return None

    async def _node_beyond(self, end: TreeEnd) -> Flaw | None:
        """A stored hash of a tile that isn't full."""
        of_tree = (_NODES.tenant == _TREES.tenant) & (_NODES.shard == _TREES.shard)
        full = _TREES.size.op(">>")(_TILE_BITS * _NODES.level)
        query = (
            select(_NODES.level, _NODES.number)
            .where(of_tree, _NODES.tenant == end.tenant, _NODES.shard == end.shard, _NODES.number >= full)
            .order_by(_NODES.level, _NODES.number)
            .limit(1)
        )
        async with self._store.read() as tx:
            row = await fetch_first(tx.connection, query)
        why = "is of a tile that isn't full"
        return None if row is None else _node_flaw(row["level"], row["number"], why)

    # --- chains of before ----------------------------------------------------------------

    async def chain(self, end: ChainEnd) -> tuple[int, Flaw | None]:
        """Check one chain up to its end; returns how many records were good, and the first flaw."""
        seen, previous = 0, GENESIS_HASH
        async for rows in self._pages(end, end.count + 1):
            for row in rows:
                flaw = self._link_flaw(row, seen + 1, previous)
                if flaw is not None:
                    return seen, flaw
                seen, previous = row["seq"], row["leaf"].hex()
        if seen < end.count:
            return seen, Flaw(seen + 1, FlawKind.CUT, f"the tail is cut: {end.count} records were committed")
        if previous != end.last_hash:
            why = "the last record isn't the one that was committed last"
            return seen, Flaw(seen, FlawKind.REPLACED, why)
        if not end.is_authentic(self._store.ring):
            why = "the recorded end of the chain wasn't written by Evergrant"
            return seen, Flaw(seen, FlawKind.FORGED_END, why)
        return seen, None

    def _link_flaw(self, row: Mapping[str, Any], number: int, previous: str) -> Flaw | None:
        if row["seq"] != number:
            return Flaw(number, FlawKind.MISSING, "a record is missing")
        link = link_of(self._store.ring, row, previous)
        if not link.is_intact:
            why = "the record was edited or moved: its hash doesn't cover its content"
            return Flaw(number, FlawKind.EDITED, why)
        if not link.follows:
            return Flaw(number, FlawKind.REPLACED, "the record doesn't follow the one before it")
        return None


class _Tiles:
    """The hashes above the tiles of a tree that is read from its beginning."""

    def __init__(self) -> None:
        self._open: list[list[bytes]] = [[]]  # by level: the hashes of the tile that isn't full
        self._full: list[int] = [0]  # by level: how many tiles are

    def appended(self, leaves: Sequence[bytes]) -> _Nodes:
        """The hashes, by level and number, of the tiles that these leaves fill."""
        made: _Nodes = {}
        hashes, level = list(leaves), 0
        while hashes:
            tile = self._open[level]
            tile += hashes
            hashes = []
            while len(tile) >= TILE_WIDTH:
                hashes.append(tile_root(b"".join(tile[:TILE_WIDTH])))
                del tile[:TILE_WIDTH]
                made[level + 1, self._full[level]] = hashes[-1]
                self._full[level] += 1
            level += 1
            if level == len(self._open):
                self._open.append([])
                self._full.append(0)
        return made


def _replaced(good: int, end: int) -> Flaw:
    why = f"one of the records {good} to {end - 1} isn't the one that was committed, or not at its place"
    return Flaw(good, FlawKind.REPLACED, why)


def _node_flaw(level: int, number: int, why: str) -> Flaw:
    first = number << (_TILE_BITS * level)
    return Flaw(first, FlawKind.FORGED_NODE, f"the stored hash {number} of level {level} {why}")


def _differing(walked: Frontier, recorded: Frontier, good: int) -> tuple[int, int]:
    """The records, from and before, below the first peak that differs; none of the first `good` does."""
    begin, size = 0, walked.size
    subtrees = [bits for bits in range(size.bit_length(), -1, -1) if size >> bits & 1]
    for place, bits in enumerate(subtrees):
        peak = slice(HASH_BYTES * place, HASH_BYTES * (place + 1))
        end = begin + (1 << bits)
        if walked.peaks[peak] != recorded.peaks[peak]:
            return max(begin, good), end
        begin = end
    return good, size
